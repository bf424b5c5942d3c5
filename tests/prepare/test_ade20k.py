"""`prepare ade20k`: labels equal the official ids minus one, pixel by pixel."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cssformer.cli import main
from cssformer.data import IGNORE, DatasetInfo, SegmentationFolder
from cssformer.prepare.ade20k import BENCHMARK, parts
from cssformer.prepare.archives import Member
from cssformer.prepare.benchmark import prepare_benchmark

Pack = Callable[[Path, dict[str, bytes]], Path]
SAMPLES = Path("../shared/samples/ade20k")
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="needs ../shared/samples/ade20k")


def sample_files() -> dict[str, bytes]:
    files = [path for path in SAMPLES.rglob("*") if path.is_file()]
    return {f"ADEChallengeData2016/{path.relative_to(SAMPLES)}": path.read_bytes() for path in files}


@needs_samples
@pytest.mark.parametrize("kind", ["ADEChallengeData2016.zip", "it.tar", "it.tar.gz", "unpacked"])
def test_real_samples_pixel_by_pixel(tmp_path: Path, pack: Pack, kind: str) -> None:
    source = pack(tmp_path / kind, sample_files())
    output = tmp_path / "out"
    assert main(["prepare", "ade20k", "--source", str(source), "--output", str(output), "--partial"]) == 0
    seen = 0
    for split, official, stem in (("train", "training", "ADE_train"), ("val", "validation", "ADE_val")):
        prepared = SegmentationFolder(output, split)
        for name, _, label in prepared:
            assert name.startswith(stem)
            ids = np.asarray(Image.open(SAMPLES / f"annotations/{official}/{name}.png")).astype(int)
            assert np.array_equal(label, np.where(ids == 0, IGNORE, ids - 1))
            original = (SAMPLES / f"images/{official}/{name}.jpg").read_bytes()
            assert (output / split / "images" / f"{name}.jpg").read_bytes() == original
            seen += 1
    assert seen == 3
    info = DatasetInfo.load(output)
    assert info.partial and info.counts == {"train": 1, "val": 2} and len(info.classes) == 150


@needs_samples
def test_class_names_are_the_first_synonyms() -> None:
    rows = (SAMPLES / "objectInfo150.txt").read_text(encoding="utf-8").splitlines()[1:]
    official = {int(row.split("\t")[0]): row.split("\t")[4].split(",")[0].strip() for row in rows if row.strip()}
    assert len(official) == 150
    assert {raw: BENCHMARK.classes[index] for raw, index in BENCHMARK.index_of.items() if index is not None} == official


def test_official_colours() -> None:
    # Of the first, the last, and the two classes that share a colour, as drawn by the benchmark's own demo.
    colours = dict(zip(BENCHMARK.classes, BENCHMARK.colours, strict=True))
    assert colours["wall"] == (120, 120, 120) and colours["sky"] == (6, 230, 230) and colours["flag"] == (92, 0, 255)
    assert colours["road"] == colours["skyscraper"] == (140, 140, 140)


def test_official_names_and_counts() -> None:
    names = [f"ADEChallengeData2016/images/training/ADE_train_{number:08}.jpg" for number in range(1, 20211)]
    names += [f"ADEChallengeData2016/images/validation/ADE_val_{number:08}.jpg" for number in range(1, 2001)]
    names += [name.replace("images", "annotations").replace("jpg", "png") for name in names]
    names += [f"release_test/testing/ADE_test_{number:08}.jpg" for number in range(1, 3353)]
    ignored = [
        "sceneCategories.txt",
        "objectInfo150.txt",
        "release_test/list.txt",
        "__MACOSX/images/training/._ADE_x.jpg",
    ]
    # The full data set, of another archive, has its pictures in folders of scenes.
    ignored += ["ADE20K_2016_07_26/images/training/a/abbey/ADE_train_00000970.jpg"]
    found = list(parts([Member(Path("it.zip"), name, 0, bytes) for name in names + ignored]))
    assert len({(part.split, part.name, part.kind) for part in found}) == len(names)
    assert Counter(part.split for part in found if part.kind == "image") == BENCHMARK.counts
    assert BENCHMARK.counts == {"train": 20210, "val": 2000, "test": 3352}


def test_the_test_pictures_are_a_split_without_labels(tmp_path: Path, pack: Pack) -> None:
    picture = cv2.imencode(".jpg", np.zeros((8, 9, 3), np.uint8))[1].tobytes()
    label = cv2.imencode(".png", np.full((8, 9), 150, np.uint8))[1].tobytes()
    labelled = pack(
        tmp_path / "it.zip",
        {"images/training/ADE_train_00000001.jpg": picture, "annotations/training/ADE_train_00000001.png": label},
    )
    test = pack(tmp_path / "release_test.zip", {"release_test/testing/ADE_test_00000001.jpg": picture})
    prepared = prepare_benchmark(BENCHMARK, [labelled, test], tmp_path / "out", partial=True)
    assert prepared.info.counts == {"train": 1, "test": 1}
    assert SegmentationFolder(tmp_path / "out", "train")[0].label.max() == 149
    assert SegmentationFolder(tmp_path / "out", "test")[0].label is None
