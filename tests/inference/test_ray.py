"""Ray Data with two actors on this machine gives what the predictor gives alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cssformer.inference import Predictor, predict_files
from cssformer.model import CSSFormer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    CSSFormer("test_resnet", num_classes=3, channels=16, cia=False, fusion=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (30 + index, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray.data
    ray.shutdown()


def rows_of(pictures: Path) -> list[dict[str, Any]]:
    return [{"path": str(path), "place": f"deep/{path.stem}"} for path in sorted(pictures.iterdir())]


@pytest.mark.slow
def test_two_workers_give_the_labels_and_files_of_one_process(
    cluster: Any, model: str, pictures: Path, tmp_path: Path
) -> None:
    from cssformer.inference.ray import predict_dataset

    expected = {str(path): Predictor.from_pretrained(model, "cpu")(path) for path in pictures.iterdir()}
    predict_files(model, [pictures], tmp_path / "one", device="cpu")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    dataset = cluster.from_items([*rows_of(pictures), {"path": str(broken), "place": "broken"}])

    options = {"workers": 2, "batch_size": 2, "confidence": True}
    rows = {row["path"]: row for row in predict_dataset(dataset, model, **options).take_all()}
    assert rows.keys() == {*expected, str(broken)}
    assert "broken.png cannot be read" in rows[str(broken)]["error"] and rows[str(broken)]["labels"].shape == (0, 0)
    for path, prediction in expected.items():
        assert rows[path]["error"] == "" and rows[path]["labels"].dtype == np.int32
        np.testing.assert_array_equal(rows[path]["labels"], prediction.labels)
        np.testing.assert_array_equal(rows[path]["confidence"], prediction.confidence)

    written = predict_dataset(dataset, model, output=str(tmp_path / "two"), workers=2, batch_size=2).take_all()
    for row in written:
        path = tmp_path / "two/labels" / f"{row['place']}.png"
        assert row["labels"] == ("" if row["error"] else str(path))
        assert row["error"] or path.read_bytes() == (tmp_path / "one/labels" / path.name).read_bytes()


def test_pictures_come_as_paths_bytes_and_arrays(model: str, pictures: Path) -> None:
    """Without a cluster: what an actor does with a batch."""
    from cssformer.inference.ray import _Labeller

    path = pictures / "0.png"
    expected = Predictor.from_pretrained(model, "cpu")(path)
    label = _Labeller(model, "image", None, True, {"device": "cpu"})
    made = label({"image": [str(path), path.read_bytes(), np.array(Image.open(path)), b"words"], "name": list("abcd")})
    for labels, confidence, error in zip(made["labels"][:3], made["confidence"], made["error"], strict=False):
        np.testing.assert_array_equal(labels, expected.labels)
        np.testing.assert_array_equal(confidence, expected.confidence)
        assert error == ""
    assert made["error"][3].startswith("A picture's bytes cannot be read") and made["labels"][3].size == 0
    assert made["name"] == list("abcd")
