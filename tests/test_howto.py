"""The pages of docs/howto/: every command runs, in the order of its page, on a few tiny pictures."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cssformer.cli import main
from tests.test_readme import ROOT, TEXTS, command_lines

rasterio = pytest.importorskip("rasterio")
PAGES = sorted(page for page in TEXTS if page.startswith("docs/howto/"))
NETWORK = shlex.split(
    "--model.backbone test_resnet --model.channels 16 --model.heads 2 --model.points 1 --model.pretrained false"
)
SMALL = shlex.split(
    "--augment.crop 32 32 --training.steps 2 --training.batch_size 2 --training.validate_every 2 "
    "--training.warmup_steps 0 --training.logger csv --training.workers 0 --training.precision 32"
)
NOT_RUN = {
    "docs/howto/onnx_runtime.md": "tests/export/test_docs.py runs its program",
    "docs/howto/several_gpus.md": "several processes, see tests/inference/test_several_processes.py and test_resume.py",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take as given: pictures and masks, an export of CVAT, scenes, a prepared folder, a model."""
    root = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    for folder in ("pictures", "masks", "scenes", "predictions_a", "predictions_b"):
        (root / folder).mkdir()
    place = rasterio.transform.from_origin(500000, 5700000, 10, 10)
    for number in range(8):
        mask = np.kron(rng.integers(0, 3, (4, 5)), np.ones((12, 12), int)).astype(np.uint8)
        name = f"video{number // 2}_{number}"
        Image.fromarray(rng.integers(0, 255, (48, 60, 3), np.uint8)).save(root / f"pictures/{name}.png")
        for folder in ("masks", "predictions_a", "predictions_b"):
            Image.fromarray(mask if folder == "masks" else np.roll(mask, number, 1)).save(root / folder / f"{name}.png")
        profile = {"width": 60, "height": 48, "count": 5, "dtype": "uint16", "transform": place, "crs": "EPSG:32633"}
        with rasterio.open(root / f"scenes/{name}.tif", "w", **profile) as file:
            file.write(rng.integers(0, 3000, (5, 48, 60), np.uint16))
    with rasterio.open(root / "scene.tif", "w", **{**profile, "count": 3, "dtype": "uint8"}) as file:
        file.write(rng.integers(0, 255, (3, 48, 60), np.uint8))
    for row in range(2):
        shutil.copytree(root / "scenes", root / f"tiles/images/{row}")
        shutil.copytree(root / "masks", root / f"tiles/masks/{row}")
    (root / "tiles/classes.txt").write_text("0 background\n1 roof\n2 tree\n", encoding="utf-8")
    shutil.copy(next((root / "scenes").iterdir()), root / "ortho.tif")
    Image.fromarray(rng.integers(0, 255, (200, 240, 3), np.uint8)).save(root / "photo.jpg")
    shutil.copytree(root / "pictures", root / "photos")
    export = ROOT / "tests" / "prepare" / "exports" / "cvat"
    shutil.make_archive(str(root / "export"), "zip", export)
    source = [str(root / folder) for folder in ("pictures", "masks")]
    words = ["--classes", "road", "grass", "person", "--val_share", "0.5"]
    assert main(["prepare", "folder", "--source", *source, "--output", str(root / "data/mine"), *words]) == 0
    words = ["train", "--data", str(root / "data/mine"), "--output", str(root / "runs/mine")]
    assert main([*words, *NETWORK, *SMALL]) == 0
    for name in ("a", "b"):
        shutil.copytree(root / "runs/mine", root / f"runs/{name}")
    return root


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * ("cssformer train" in TEXTS[page])) for page in PAGES]
)
def test_the_page_runs(project: Path, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page in NOT_RUN:
        pytest.skip(NOT_RUN[page])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    lines = [shlex.split(line, comments=True)[1:] for where, line in command_lines() if where == page]
    made = {
        Path(words[words.index("--output") + 1]) for words in lines if "--output" in words and "--resume" not in words
    }
    for folder in made:
        # What the page makes itself.
        shutil.rmtree(folder, ignore_errors=True)
    assert lines
    for words in lines:
        if words[0] == "train":
            own = [] if {"--resume", "--model.init"} & {*words} else NETWORK
            words = [*words, *own, *([] if "--resume" in words else SMALL)]
        assert main(words) in ({0, 1} if words[0] == "check" else {0}), words
    for folder in made:
        assert folder.exists(), folder
