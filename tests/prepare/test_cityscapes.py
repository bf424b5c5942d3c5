"""`prepare cityscapes`: labels, names and colours equal those of the official `cityscapesscripts`."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cssformer.cli import main
from cssformer.data import IGNORE, DatasetInfo, SegmentationFolder
from cssformer.prepare.archives import Member
from cssformer.prepare.benchmark import prepare_benchmark
from cssformer.prepare.cityscapes import BENCHMARK, parts

labels = pytest.importorskip("cityscapesscripts.helpers.labels")

Pack = Callable[[Path, dict[str, bytes]], Path]
SHARED = Path("../shared/samples")
needs_samples = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/samples")


def test_classes_are_the_official_ones() -> None:
    # Ids are those of label images; the license plate has -1, which none can hold.
    official = {label.id: label for label in labels.labels if label.id >= 0}
    assert BENCHMARK.index_of.keys() == official.keys()
    for raw, index in BENCHMARK.index_of.items():
        assert official[raw].trainId == (255 if index is None else index)
        assert official[raw].ignoreInEval == (index is None)
        if index is not None:
            assert BENCHMARK.classes[index] == official[raw].name
            assert BENCHMARK.colours[index] == official[raw].color


def test_each_class_leads_back_to_its_official_id() -> None:
    raw_of = {index: raw for raw, index in BENCHMARK.index_of.items() if index is not None}
    assert raw_of == {index: labels.trainId2label[index].id for index in range(19)}
    assert len([index for index in BENCHMARK.index_of.values() if index is not None]) == 19


@needs_samples
@pytest.mark.parametrize("kind", ["zips", "folder", "folders"])
def test_real_frames_pixel_by_pixel(tmp_path: Path, pack: Pack, kind: str) -> None:
    root = SHARED / "cityscapes"
    sources = [root] if kind == "folder" else [root / "leftImg8bit", root / "gtFine"]
    if kind == "zips":
        sources = [
            pack(
                tmp_path / f"{source.name}_trainvaltest.zip",
                {str(path.relative_to(root)): path.read_bytes() for path in source.rglob("*.png")},
            )
            for source in sources
        ]
    output = tmp_path / "out"
    words = ["prepare", "cityscapes", "--source", *map(str, sources), "--output", str(output), "--partial"]
    assert main(words) == 0
    prepared = SegmentationFolder(output, "train")
    assert prepared.names == [f"aachen_{number:06}_000019" for number in range(4)]
    train_id = np.vectorize(lambda raw: labels.id2label[raw].trainId, otypes=[int])
    for name, image, label in prepared:
        ids = np.asarray(Image.open(root / f"gtFine/train/aachen/{name}_gtFine_labelIds.png"))
        values, places = np.unique(ids, return_inverse=True)
        expected = train_id(values)[places].reshape(ids.shape)
        assert np.array_equal(np.where(label == IGNORE, 255, label), expected)
        assert image.shape == (1024, 2048, 3)
        original = (root / f"leftImg8bit/train/aachen/{name}_leftImg8bit.png").read_bytes()
        assert (output / "train/images" / f"{name}.png").read_bytes() == original
    assert DatasetInfo.load(output).counts == {"train": 4}


@needs_samples
def test_official_lists_match() -> None:
    for split, count in (("train", 2975), ("val", 500)):
        lines = (SHARED / f"lists/cityscapes_{split}.txt").read_text().split()
        paths = [path.lstrip("/").replace("labelTrainIds", "labelIds") for line in lines for path in line.split(",")]
        found = list(parts([Member(Path("it.zip"), path, 0, bytes) for path in paths]))
        assert {part.split for part in found} == {split} and len(found) == len(paths) == 2 * count
        assert Counter(part.kind for part in found) == {"image": count, "label": count}
        names = {re.sub(r"_leftImg8bit\.png$", "", path.split("/")[-1]) for path in paths if "leftImg8bit" in path}
        assert {part.name for part in found} == names and count == BENCHMARK.counts[split]


def test_dummy_labels_of_the_test_split_are_left_out(tmp_path: Path, pack: Pack) -> None:
    picture = cv2.imencode(".png", np.zeros((8, 9, 3), np.uint8))[1].tobytes()
    label = cv2.imencode(".png", np.full((8, 9), 33, np.uint8))[1].tobytes()
    dummy = cv2.imencode(".png", np.full((8, 9), 3, np.uint8))[1].tobytes()
    files = {}
    for split, city, content in (("train", "ulm", label), ("val", "munster", label), ("test", "berlin", dummy)):
        files[f"leftImg8bit/{split}/{city}/{city}_000000_000019_leftImg8bit.png"] = picture
        files[f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_labelIds.png"] = content
        # What else is in the archive.
        files[f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_labelTrainIds.png"] = b""
        files[f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_color.png"] = b""
        files[f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_polygons.json"] = b""
        files[f"gtFine/{split}/{city}/._{city}_000000_000019_gtFine_labelIds.png"] = b"Mac OS X"
    prepare_benchmark(BENCHMARK, [pack(tmp_path / "it.zip", files)], tmp_path / "out", partial=True)
    assert SegmentationFolder(tmp_path / "out", "val")[0].label.min() == 18
    assert SegmentationFolder(tmp_path / "out", "test")[0].label is None
    assert not (tmp_path / "out/test/labels").exists()
