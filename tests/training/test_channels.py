"""Pictures of five channels of 16 bits, from GeoTIFFs as they come to predictions that lie where they lay."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from cssformer.cli import main
from cssformer.data.bands import decode_bands
from cssformer.data.channels import Channels, from_bands
from cssformer.data.dataset import IGNORE, SegmentationFolder
from cssformer.data.dataset_info import DatasetInfo
from cssformer.export import export_model
from cssformer.inference import Predictor
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, TrainingConfig
from cssformer.training.train import train
from cssformer.utils.errors import UserError

rasterio = pytest.importorskip("rasterio", reason="rasterio writes these files")

NODATA = 65535
SIZE = 40, 48


def write(path: Path, bands: np.ndarray, nodata: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)}
    form = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate", "interleave": "band"}
    kind = {"driver": "GTiff", "count": len(bands), "dtype": bands.dtype, "nodata": nodata, **place, **form}
    with rasterio.open(path, "w", height=bands.shape[1], width=bands.shape[2], **kind) as file:
        file.write(bands)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes of two classes, which the fourth channel alone tells apart; a corner of each has no data."""
    folder, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    for number in range(6):
        mask = np.zeros(SIZE, np.uint8)
        mask[:, rng.integers(12, 36) :] = 1
        bands = rng.normal(3000, 200, (5, *SIZE)).clip(1, 65000).astype(np.uint16)
        bands[3] += np.uint16(20_000) * mask
        bands[:, :8, :8] = NODATA
        # One channel alone has no data here, which leaves the pixel's label.
        bands[1, 20, 20] = NODATA
        write(folder / "images" / f"{number}.tif", bands, NODATA)
        write(folder / "masks" / f"{number}.tif", mask[None])
    return folder


@pytest.fixture(scope="module")
def data(source: Path) -> Path:
    folder = source / "data"
    words = ["--source", str(source / "images"), str(source / "masks"), "--classes", "left", "right"]
    words += ["--val_share", "0.4", "--shown", "3", "1", "0"]
    assert main(["prepare", "folder", *words, "--output", str(folder)]) == 0
    return folder


def bands_of(folder: Path, split: str) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted((folder / split / "images").iterdir()):
        with rasterio.open(path) as file:
            found[path.stem] = file.read()
    return found


def test_prepared_pictures_are_the_files_and_labels_ignore_what_has_no_data(source: Path, data: Path) -> None:
    folder = SegmentationFolder(data, "train")
    for sample in folder:
        path = data / "train" / "images" / f"{sample.name}.tif"
        assert path.read_bytes() == (source / "images" / f"{sample.name}.tif").read_bytes()
        bands = bands_of(data, "train")[sample.name]
        known = bands != NODATA
        assert np.array_equal(sample.label == IGNORE, ~known.any(axis=0))
        assert sample.image.dtype == np.float32 and sample.image.shape == (*SIZE, 5)
        stored = np.moveaxis(sample.image, -1, 0)
        assert np.array_equal(stored[known], bands[known])
        means = np.broadcast_to(np.float32(folder.info.channels.mean)[:, None, None], bands.shape)
        assert np.array_equal(stored[~known], means[~known])


def test_statistics_are_those_of_numpy(data: Path, tmp_path: Path) -> None:
    assert main(["check", str(data), "--json", str(tmp_path / "check.json")]) == 0
    every = np.stack(list(bands_of(data, "train").values()), axis=1).astype(float)
    report = json.loads((tmp_path / "check.json").read_text())["channels"]
    told = DatasetInfo.load(data).channels
    assert told.values == "uint16"
    for index, row in enumerate(report):
        known = every[index][every[index] != NODATA]
        expected = known.mean(), known.std(), known.min(), known.max()
        assert [row[name] for name in ("mean", "std", "min", "max")] == pytest.approx(expected)
        assert (told.mean[index], told.std[index]) == pytest.approx(expected[:2])
    content = yaml.safe_load((data / "dataset.yaml").read_text())
    content["channels"]["mean"][2] += 500
    other = tmp_path / "other"
    other.mkdir()
    (other / "dataset.yaml").write_text(yaml.safe_dump(content))
    for split in ("train", "val"):
        (other / split).symlink_to(data / split)
    main(["check", str(other), "--json", str(tmp_path / "check.json")])
    warnings = json.loads((tmp_path / "check.json").read_text())["warnings"]
    assert any("for channel 2, but its training pictures have" in warning for warning in warnings)


def test_a_network_of_the_channels_learns_scores_and_predicts(
    source: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", io.StringIO()
    recipe = Recipe(
        data=str(data),
        output=str(run),
        model=ModelConfig(backbone="test_resnet", channels=16, heads=2, points=2, aux=False),
        augment=AugmentConfig(crop=(32, 32), scale=(1, 1), cat_max_ratio=1, rotate=5, noise=0.5, jpeg=1, erase=0.2),
        training=TrainingConfig(steps=30, batch_size=4, warmup_steps=3, workers=0, validate_every=30, lr=3e-3),
    )
    evaluation = train(recipe, console=Console(file=out, width=1000))
    assert "The pictures have 5 channels of uint16: model.in_channels is 5" in out.getvalue()
    assert evaluation is not None and evaluation.scores.miou > 0.8
    # The corners are not scored.
    assert sum(evaluation.scores.pixels) == 2 * (SIZE[0] * SIZE[1] - 64)
    saved = Recipe.load(run / "recipe.yaml").model
    assert saved.in_channels == 5 and saved.mean == pytest.approx(DatasetInfo.load(data).channels.mean)
    assert Image.open(run / "augmented.png").mode == "RGB"
    predictor = Predictor.from_pretrained(run)
    assert predictor.channels == DatasetInfo.load(data).channels and predictor.channels.shown == (3, 1, 0)
    path = source / "images" / "0.tif"
    found = predictor(path)
    with rasterio.open(path) as file:
        given = predictor(from_bands(file.read(), predictor.channels, file.nodatavals))
    assert np.array_equal(found.labels, given.labels) and found.image.shape == (*SIZE, 3)
    assert (found.labels[:8, :8] == IGNORE).all() and (found.labels == IGNORE).sum() == 64
    # The classes differ in the fourth channel, which is shown as red.
    left, right = (found.image[found.labels == index].mean(axis=0) for index in (0, 1))
    assert right[0] > left[0] + 100 and np.abs(right - left)[1:].max() < 20
    found.save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as written:
        assert np.array_equal(np.array(written)[:8, :8], np.full((8, 8), 255)) and written.info["transparency"] == 255
    assert main(["predict", str(run), str(path), "--output", str(tmp_path / "out"), "--overlay"]) == 0
    with rasterio.open(path) as file, rasterio.open(tmp_path / "out" / "labels" / "0.tif") as labels:
        assert (labels.crs, labels.transform, labels.nodata) == (file.crs, file.transform, 255)
        assert np.array_equal(labels.read(1), np.where(found.labels == IGNORE, 255, found.labels))
    export_model(run, tmp_path / "model.onnx")
    exported = Predictor.from_exported(tmp_path / "model.onnx")(path)
    assert np.array_equal(exported.labels == IGNORE, found.labels == IGNORE)
    assert np.mean(exported.labels == found.labels) > 0.999
    assert main(["evaluate", str(run), "--data", str(data)]) == 0
    assert main(["check", str(data), "--model", str(run), "--html", str(tmp_path / "page.html")]) == 0
    assert main(["calibrate", str(run), "--data", str(data), "--output", str(tmp_path / "calibrated")]) == 0
    # Numbers of another type may have another meaning.
    content = yaml.safe_load((data / "dataset.yaml").read_text())
    content["channels"]["values"] = "float32"
    (other := tmp_path / "other").mkdir()
    (other / "dataset.yaml").write_text(yaml.safe_dump(content))
    (other / "val").symlink_to(data / "val")
    assert main(["evaluate", str(run), "--data", str(other)]) == 2
    told = "The model takes 5 channels of uint16 but the data has 5 channels of float32"
    assert told in capfd.readouterr().err
    assert main(["explain", str(run), str(path), "--at", "20", "20", "--output", str(tmp_path / "where.png")]) == 0


def test_other_channels_are_told(source: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = ["train", "--data", str(data), "--output", str(tmp_path / "run"), "--model.in_channels", "4"]
    assert main(recipe) == 2
    assert "model.in_channels is 4, but the pictures of" in capfd.readouterr().err
    mixed = tmp_path / "mixed"
    for name in "ab":
        write(mixed / "images" / f"{name}.tif", np.ones((5, *SIZE), "float32" if name == "b" else "uint16"))
        write(mixed / "masks" / f"{name}.tif", np.eye(*SIZE, dtype=np.uint8)[None])
    words = ["prepare", "folder", "--source", str(mixed / "images"), str(mixed / "masks"), "--output"]
    assert main([*words, str(tmp_path / "made")]) == 2
    # Which is the first is drawn, with the validation split.
    assert (
        ".tif has 5 channels of" in (told := capfd.readouterr().err)
        and "but the first picture has 5 channels of" in told
    )
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("shown", [["5"], ["0", "1"], ["0", "1", "2", "3"]])
def test_channels_that_cannot_be_shown_are_told(
    shown: list[str], source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", "folder", "--source", str(source / "images"), str(source / "masks"), "--shown", *shown]
    assert main([*words, "--output", str(tmp_path / "made")]) == 2
    assert "have 5 channels of uint16; give shown three of them, or one, of 0 to 4." in capfd.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("values", ["complex64", "int64"])
def test_types_that_no_network_takes_are_told(values: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        write(tmp_path / "images" / f"{name}.tif", np.ones((5, *SIZE), values))
        write(tmp_path / "masks" / f"{name}.tif", np.eye(*SIZE, dtype=np.uint8)[None])
    words = ["prepare", "folder", "--source", str(tmp_path / "images"), str(tmp_path / "masks"), "--output"]
    assert main([*words, str(tmp_path / "made")]) == 2
    assert ".tif has 5 bands of 64-bit" in capfd.readouterr().err
    assert not (tmp_path / "made").exists()
    path = tmp_path / "images" / "a.tif"
    with pytest.raises(UserError, match=f"a.tif has 5 channels of {values}; values are uint8, int8,"):
        decode_bands(path.read_bytes(), path)


def test_channels_that_tell_nothing_are_told(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).random((5, *SIZE), np.float32)
    bands[1], bands[3] = np.nan, 7
    for name in "ab":
        write(tmp_path / "images" / f"{name}.tif", bands)
        write(tmp_path / "masks" / f"{name}.tif", np.eye(*SIZE, dtype=np.uint8)[None])
    words = ["prepare", "folder", "--source", str(tmp_path / "images"), str(tmp_path / "masks"), "--val_share", "0.5"]
    assert main([*words, "--output", str(tmp_path / "made")]) == 0
    main(["check", str(tmp_path / "made"), "--json", str(tmp_path / "check.json")])
    report = json.loads((tmp_path / "check.json").read_text())
    assert report["channels"][1] == {"channel": 1, "mean": None, "std": None, "min": None, "max": None}
    assert report["channels"][3] == {"channel": 3, "mean": 7, "std": 0, "min": 7, "max": 7}
    assert {"Channel 1 has no data in any training picture.", "Channel 3 is 7 all over the training pictures."} <= set(
        report["warnings"]
    )


def test_pictures_without_any_data_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        write(tmp_path / "images" / f"{name}.tif", np.full((5, *SIZE), np.nan, np.float32))
        write(tmp_path / "masks" / f"{name}.tif", np.eye(*SIZE, dtype=np.uint8)[None])
    words = ["prepare", "folder", "--source", str(tmp_path / "images"), str(tmp_path / "masks"), "--val_share", "0.5"]
    assert main([*words, "--output", str(tmp_path / "made")]) == 2
    assert "No training picture has data: all values are NaN, infinite or" in capfd.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_page_is_no_file_of_the_data(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = (data / "dataset.yaml").read_text()
    assert main(["check", str(data), "--html", str(data / "dataset.yaml")]) == 2
    assert "does not end in .html" in capfd.readouterr().err and (data / "dataset.yaml").read_text() == told


def test_photographs_are_taken_as_stored_where_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in "abcd":
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        grey = rng.integers(0, 4000, SIZE).astype(np.uint16)
        Image.fromarray(grey).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(np.eye(*SIZE, dtype=np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    words = ["prepare", "folder", "--source", str(tmp_path / "images"), str(tmp_path / "masks"), "--output"]
    assert main([*words, str(tmp_path / "data"), "--as_stored", "true"]) == 0
    folder = SegmentationFolder(tmp_path / "data")
    assert isinstance(folder.info.channels, Channels) and folder.info.channels.values == "uint16"
    for sample in folder:
        stored = np.array(Image.open(tmp_path / "images" / f"{sample.name}.png"))
        assert np.array_equal(sample.image[..., 0], stored)
    assert main([*words, str(tmp_path / "seen")]) == 0
    assert SegmentationFolder(tmp_path / "seen")[0].image.dtype == np.uint8
    assert main([*words, str(tmp_path / "none"), "--shown", "0"]) == 2
    assert "The pictures are photographs, which are shown as they are" in capfd.readouterr().err
