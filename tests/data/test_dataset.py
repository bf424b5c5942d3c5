"""The prepared folder: what is read, and one sentence for each thing that can be wrong with it."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cssformer.data import IGNORE, DatasetInfo, SegmentationFolder
from cssformer.data.dataset_info import distinct_colours
from cssformer.data.files import is_truncated
from cssformer.utils.errors import UserError

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
COLOURS = st.tuples(*[st.integers(0, 255)] * 3)


@given(
    st.lists(st.tuples(NAMES, COLOURS), min_size=1, max_size=20),
    st.dictionaries(st.integers(0, 65535).map(str) | st.just("1 2 3"), st.none() | st.integers(0, 19)),
    st.dictionaries(NAMES, st.integers(0, 10**6)),
    st.dictionaries(NAMES, NAMES),
    st.sampled_from([255, 65535]),
)
def test_description_survives_its_file(tmp_path_factory, classes, mapping, counts, sources, ignore):
    folder = tmp_path_factory.mktemp("info")
    names, colours = zip(*classes, strict=True)
    mapping = {raw: index and index % len(names) for raw, index in mapping.items()}
    info = DatasetInfo(names, colours, ignore, mapping, counts, sources)
    info.save(folder)
    assert DatasetInfo.load(folder) == info


def test_description_by_hand_needs_only_names(tmp_path):
    (tmp_path / "dataset.yaml").write_text("classes:\n  0: {name: road}\n  1: {name: sky}\n")
    info = DatasetInfo.load(tmp_path)
    assert info.classes == ("road", "sky") and info.ignore == 255 and info.colours == distinct_colours(2)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("classes: [a, b]", "numbered"),
        ("classes:\n  0: {name: a}\n  2: {name: b}", "numbered"),
        ("classes:\n  0: {name: a}\nignore: 7", "ignore is 7"),
        ("classes:\n  0: {name: a, colour: [1, 2, 300]}", "colour"),
        ("just words", "not a description"),
        ("classes: [", "Cannot read"),
    ],
)
def test_wrong_descriptions(tmp_path, text, complaint):
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(UserError, match=complaint):
        DatasetInfo.load(tmp_path)


# What Machado, Oliveira and Fernandes (2009) give for full severity: linear RGB as deuteranopes and protanopes see it.
DEUTERANOPIA = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
PROTANOPIA = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))


def test_colours_are_distinct():
    assert len(set(distinct_colours(60))) == 60


@pytest.mark.parametrize("eyes", [np.eye(3), DEUTERANOPIA, PROTANOPIA])
def test_colours_of_few_classes_are_told_apart_by_all_eyes(eyes):
    """By a distance of 15 or more in CIELAB, where 2 is just seen."""
    s = np.array(distinct_colours(7)) / 255
    linear = np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4) @ np.array(eyes).T
    seen = linear.clip(0, 1)
    seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055).astype(np.float32)
    lab = cv2.cvtColor(seen[None], cv2.COLOR_RGB2LAB)[0]
    distance = np.linalg.norm(lab[:, None] - lab, axis=2)
    assert distance[~np.eye(7, dtype=bool)].min() > 15


def test_samples_are_rgb_and_class_indices(prepared):
    image = np.zeros((50, 60, 3), np.uint8)
    image[..., 0] = 200
    Image.fromarray(image).save(prepared / "train" / "images" / "red.png")
    Image.fromarray(np.full((50, 60), 2, np.uint8)).save(prepared / "train" / "labels" / "red.png")
    folder = SegmentationFolder(prepared)
    sample = folder[folder.names.index("red")]
    assert sample.name == "red" and np.array_equal(sample.image, image)
    assert sample.label.dtype == np.int32 and (sample.label == 2).all()

    other = folder[folder.names.index("0")]
    raw = np.asarray(Image.open(prepared / "train" / "labels" / "0.png")).astype(int)
    assert np.array_equal(other.label, np.where(raw == 255, IGNORE, raw))
    assert len(list(folder)) == len(folder) == 5


def test_sixteen_bits(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / "train" / part).mkdir(parents=True)
    names = tuple(f"c{index}" for index in range(300))
    DatasetInfo(names, distinct_colours(300), 65535).save(tmp_path)
    cv2.imwrite(str(tmp_path / "train/images/a.png"), np.zeros((4, 5, 3), np.uint8))
    ids = np.array([[0, 255, 256, 299, 65535]] * 4, np.uint16)
    cv2.imwrite(str(tmp_path / "train/labels/a.png"), ids)
    assert SegmentationFolder(tmp_path)[0].label[0].tolist() == [0, 255, 256, 299, IGNORE]
    ids[0, 0] = 300
    cv2.imwrite(str(tmp_path / "train/labels/a.png"), ids)
    with pytest.raises(UserError, match="id 300"):
        SegmentationFolder(tmp_path)[0]


def test_test_split_may_lack_labels(prepared):
    (prepared / "test" / "images").mkdir(parents=True)
    cv2.imwrite(str(prepared / "test/images/x.jpg"), np.zeros((8, 8, 3), np.uint8))
    assert SegmentationFolder(prepared, "test")[0].label is None


def broken(prepared: Path, name: str) -> None:
    label = prepared / "train/labels/0.png"
    image = prepared / "train/images/0.jpg"
    if name == "id":
        cv2.imwrite(str(label), np.full((50, 60), 9, np.uint8))
    elif name == "size":
        cv2.imwrite(str(label), np.zeros((50, 61), np.uint8))
    elif name == "colour":
        cv2.imwrite(str(label), np.full((50, 60, 3), (0, 1, 2), np.uint8))
    elif name == "bits":
        cv2.imwrite(str(label), np.zeros((50, 60), np.uint16))
    elif name == "truncated":
        image.write_bytes(image.read_bytes()[:-40])
    elif name == "truncated label":
        label.write_bytes(label.read_bytes()[:-40])
    elif name == "empty":
        image.write_bytes(b"")
    elif name == "no picture":
        image.write_bytes(b"hello")
    elif name == "no label":
        label.unlink()
    elif name == "twice":
        (prepared / "train/images/0.png").write_bytes(b"")
    elif name == "no pictures":
        for path in (prepared / "train/images").iterdir():
            path.unlink()
    elif name == "no description":
        (prepared / "dataset.yaml").unlink()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("id", r"train/labels/0.png has the id 9, but those of the dataset are 0 to 2 and 255, which is ignored"),
        ("size", r"train/images/0.jpg is 60x50 but its label .*train/labels/0.png is 61x50"),
        ("colour", "train/labels/0.png is a colour picture"),
        ("bits", "train/labels/0.png has 16 bits"),
        ("truncated", "train/images/0.jpg is truncated"),
        ("truncated label", "train/labels/0.png is truncated"),
        ("empty", "train/images/0.jpg cannot be read"),
        ("no picture", "train/images/0.jpg cannot be read"),
        ("no label", "train/images/0.jpg has no label"),
        ("twice", "0.jpg and .*0.png share one name"),
        ("no pictures", "holds no pictures"),
        ("no description", "dataset.yaml is missing"),
    ],
)
def test_one_sentence_for_each_mistake(prepared, name, complaint):
    broken(prepared, name)
    with pytest.raises(UserError, match=complaint):
        SegmentationFolder(prepared)[0]


def test_missing_folders(prepared):
    with pytest.raises(UserError, match="There is no folder"):
        SegmentationFolder(prepared / "nowhere")
    with pytest.raises(UserError, match="There is no folder"):
        SegmentationFolder(prepared, "test")


def encoded(kind: str, thumbnail: bool = False) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    data = io.BytesIO()
    if kind == "png":
        Image.fromarray(pixels).save(data, "png")
    else:
        # A thumbnail in the header has an end marker of its own.
        exif = b"Exif\0\0" + encoded("jpeg") if thumbnail else b""
        Image.fromarray(pixels).save(data, "jpeg", progressive=kind == "progressive", exif=exif)
    return data.getvalue()


@pytest.mark.parametrize("kind", ["jpeg", "progressive", "png"])
@pytest.mark.parametrize("thumbnail", [False, True])
def test_truncation_is_told_at_every_length(kind, thumbnail):
    data = encoded(kind, thumbnail)
    assert not is_truncated(data)
    assert not is_truncated(data + b"\0" * 100)
    assert all(is_truncated(data[:length]) for length in range(8, len(data) - 8, 7))


@pytest.mark.parametrize(
    "text",
    [
        "classes: {0: {name: a, colour: [.inf, 0, 0]}}",
        "classes: {0: {name: a}}\nignore: .inf",
        "classes: {0: {name: a}}\nignore: " + "9" * 5000,
        "classes: {0: {name: a}}\nmapping: {99999999999999999999: 0}",
        "classes: {0: {name: a}}\nmapping: {3: 1}",
        "classes: {0: {name: a}}\nmapping: {3: true}",
        "classes: {0: {name: a}}\nmapping: {3: [0]}",
        "classes: " + "[" * 3000 + "]" * 3000,
    ],
)
def test_descriptions_that_nobody_honest_wrote(tmp_path, text):
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.yaml") as error:
        DatasetInfo.load(tmp_path)
    assert str(error.value).isprintable() and len(str(error.value)) < 400
