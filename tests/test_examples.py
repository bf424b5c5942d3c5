"""Each program of examples/ runs, on a few small pictures."""

import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from cssformer import CSSFormer, Metadata, Predictor
from cssformer.cli import main
from cssformer.data import SyntheticScenes
from cssformer.inference import predict_files
from cssformer.prepare.label_studio import decode_brush

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL: dict[str, Any] = {"pictures": 4, "size": 64}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and three pictures."""
    root = tmp_path_factory.mktemp("examples")
    scenes = SyntheticScenes(3, (48, 64))
    torch.manual_seed(0)
    model = CSSFormer("test_resnet", num_classes=len(scenes.info.classes), channels=16, cia=False, fusion=False)
    model.metadata = Metadata(scenes.info.classes, scenes.info.colours)
    model.save_pretrained(root / "model")
    (root / "pictures").mkdir()
    for name, image, _ in scenes:
        Image.fromarray(image).save(root / f"pictures/{name}.png")
    return root


def example(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_plain_pytorch(tmp_path: Path) -> None:
    assert 0 <= example("pytorch_loop").main(str(tmp_path), **SMALL) <= 1
    assert Predictor.from_pretrained(tmp_path, "cpu").classes == SyntheticScenes(1).info.classes


def test_lightning(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="Lightning is not installed")
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    example("lightning_module").main(str(tmp_path), **SMALL, **quiet)
    assert Predictor.from_pretrained(tmp_path, "cpu").classes == SyntheticScenes(1).info.classes


def test_an_orthomosaic(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    geopandas = pytest.importorskip("geopandas", reason="geopandas is not installed")
    from shapely.geometry import box

    bands = np.random.default_rng(0).integers(1, 4000, (4, 50, 70), np.uint16)
    bands[:, :32, 64:], bands[:, 40:, :5] = 0, 0
    place = {"crs": "EPSG:25832", "transform": rasterio.Affine(0.5, 0, 691000, 0, -0.5, 5335000), "nodata": 0}
    with rasterio.open(tmp_path / "a.tif", "w", count=4, height=50, width=70, dtype="uint16", **place) as file:
        file.write(bands)
    # The pixels of rows 10 to 39 and columns 20 to 59; a tree on the roof, first in the file, stays on top.
    roof, tree = box(691010, 5334980, 691030, 5334995), box(691014, 5334982, 691019, 5334990)
    shapes = geopandas.GeoDataFrame({"kind": ["tree", "roof"]}, geometry=[tree, roof], crs="EPSG:25832")
    shapes.to_crs("EPSG:4326").to_file(tmp_path / "a.gpkg")
    arguments = [str(tmp_path / "a.tif"), str(tmp_path / "a.gpkg"), "kind", str(tmp_path / "tiles")]
    assert example("orthomosaic").main(*arguments, size=32) == ["background", "roof", "tree"]
    expected = np.zeros((50, 70), np.uint8)
    expected[10:40, 20:60], expected[20:36, 28:38] = 1, 2
    names = ["000/000_000", "000/000_001", "001/001_000", "001/001_001", "001/001_002"]  # none without data
    for kind, whole in (("images", bands), ("masks", expected[None])):
        folder = tmp_path / "tiles" / kind
        assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tif")) == [
            f"{name}.tif" for name in names
        ]
        for name in names:
            row, column = (32 * int(part) for part in name[4:].split("_"))
            with rasterio.open(folder / f"{name}.tif") as file:
                np.testing.assert_array_equal(file.read(), whole[:, row : row + 32, column : column + 32])
                assert file.xy(0, 0) == (691000.25 + column / 2, 5334999.75 - row / 2)
                assert (file.crs.to_epsg(), file.nodata) == (25832, 0 if kind == "images" else None)
    with pytest.raises(SystemExit, match="^1 polygons of .* have no kind"):
        shapes.assign(kind=["tree", None]).to_file(tmp_path / "nameless.gpkg")
        example("orthomosaic").main(arguments[0], str(tmp_path / "nameless.gpkg"), *arguments[2:])
    with pytest.raises(SystemExit, match="No polygon of"):
        shapes.set_geometry(shapes.translate(1000)).to_file(tmp_path / "a.gpkg")
        example("orthomosaic").main(*arguments)
    words = [str(tmp_path / "tiles" / kind) for kind in ("images", "masks")]
    output = ["--output", str(tmp_path / "data"), "--class_file", str(tmp_path / "tiles/classes.txt")]
    assert main(["prepare", "folder", "--source", *words, *output]) == 0


def test_transformers(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    pytest.importorskip("transformers", reason="transformers is not installed")
    answers = example("transformers_trainer").main(str(tmp_path), **SMALL)
    assert sum(np.asarray(answer["mask"]) == 255 for answer in answers).tolist() == np.ones((64, 64)).tolist()
    assert all(0 < answer["score"] <= 1 for answer in answers)


def test_a_frozen_backbone_and_other_classes(tmp_path: Path) -> None:
    CSSFormer("test_resnet", num_classes=3, channels=16, heads=2, points=1).save_pretrained(tmp_path / "old")
    with pytest.warns(UserWarning, match=r"aux_head.4.bias, .* begin anew"):
        model = example("freeze_and_swap").main(str(tmp_path / "old"), str(tmp_path / "new"), **SMALL)
    assert CSSFormer.from_pretrained(tmp_path / "new").num_classes == len(SyntheticScenes(1).info.classes)
    for name, value in CSSFormer.from_pretrained(tmp_path / "old").backbone.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[name]), name


def test_supervision_draws(work: Path, tmp_path: Path) -> None:
    pytest.importorskip("supervision", reason="supervision is not installed")
    picture = next((work / "pictures").iterdir())
    example("supervision_and_fiftyone").draw(
        Predictor.from_pretrained(work / "model", "cpu"), str(picture), str(tmp_path / "drawn.png")
    )
    assert Image.open(tmp_path / "drawn.png").size == (64, 48)


@pytest.fixture
def backend(work: Path) -> Iterator[tuple[str, Any]]:
    """Label Studio's side of the line: the address."""
    module = example("label_studio_backend")
    backend = module.Backend(str(work / "model"), work / "pictures", "cpu")
    server = module.serve(backend, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", backend
    server.shutdown()
    thread.join()
    server.server_close()


def post(address: str, content: Any) -> Any:
    body = json.dumps(content).encode()
    with urlopen(Request(address, body, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


def test_label_studio_gets_masks(work: Path, backend: tuple[str, Any]) -> None:
    address, served = backend
    with urlopen(f"{address}/health") as answer:
        assert json.load(answer)["status"] == "UP"
    assert post(f"{address}/setup", {"project": "1.2", "schema": "<View/>"})["model_version"] == served.version
    tasks = [{"id": 1, "data": {"image": "/data/local-files/?d=scene00001.png"}}]
    (result,) = post(f"{address}/predict", {"tasks": tasks, "model_version": None})["results"]
    expected = served.predictor(work / "pictures/scene00001.png")
    assert [each["value"]["brushlabels"] for each in result["result"]] == [
        [name] for name in served.predictor.classes if name in expected.shares
    ]
    for each in result["result"]:
        mask = decode_brush(each["value"]["rle"], (48, 64))
        index = served.predictor.classes.index(each["value"]["brushlabels"][0])
        np.testing.assert_array_equal(mask, expected.labels == index)
    with pytest.raises(HTTPError, match="400"):
        post(f"{address}/predict", {"tasks": [{"data": {"image": "/data/local-files/?d=../model/config.json"}}]})


@pytest.mark.slow
def test_torchrun(work: Path) -> None:
    predict_files(str(work / "model"), [work / "pictures"], work / "one", device="cpu")
    command = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node=2"]
    words = [EXAMPLES / "predict_torchrun.py", work / "model", work / "pictures", work / "two"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "3 pictures, 0 could not be read\n"), done.stderr
    for path in (work / "one/labels").iterdir():
        assert path.read_bytes() == (work / "two/labels" / path.name).read_bytes()


@pytest.mark.slow
def test_ray(work: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        rows = example("predict_ray").main(str(work / "model"), str(work / "pictures"), str(work / "ray"))
    finally:
        ray.shutdown()
    assert sorted(Path(row["labels"]).name for row in rows) == [f"scene0000{index}.png" for index in range(3)]


def test_every_example_is_run() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert path.stem == "scenes" or path.stem in tested, path
