"""`prepare pascal-context`: archives of the documented form become class indices, or nothing is written.

No real archive is at hand: pictures, lists, `.mat` files and palette PNGs are built as they are documented.
"""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from cssformer.cli import main
from cssformer.data import IGNORE, DatasetInfo, SegmentationFolder
from cssformer.prepare import pascal_context
from cssformer.prepare.benchmark import prepare_benchmark

NAMES = ["2008_000002", "2008_000003", "2010_006086"]
VOC, MAT, PNG = "VOCtrainval_03-May-2010.tar", "trainval.tar.gz", "59_context_labels.tar.gz"

# The ids among the 459 of the 59 names in alphabetical order, as those who train on this data list them.
IDS = """
    2 9 18 19 22 23 25 31 33 34 44 45 46 59 65 68 72 80 85 98 104 105 113 115 144 158 159 162 187 189 207 220 232 258
    259 260 284 295 296 308 324 326 347 349 354 355 360 366 368 397 415 416 420 424 427 440 445 454 458
"""
ALPHABETICAL = dict(zip(sorted(pascal_context.CLASSES), map(int, IDS.split()), strict=True))
# The first and last lines of 59_labels.txt and some between, by its own names.
OFFICIAL_59 = {1: "aeroplane", 11: "table", 20: "tvmonitor", 21: "bag", 28: "cloth", 42: "curtain", 52: "bedclothes"}


def mat(labels: np.ndarray, field: str = "LabelMap") -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, {field: labels.astype(np.uint16)}, do_compression=True)
    return file.getvalue()


def png(labels: np.ndarray) -> bytes:
    picture = Image.fromarray(labels.astype(np.uint8), mode="P")
    picture.putpalette([value for label in range(60) for value in pascal_context.colour(label)])
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def voc(shapes: dict[str, tuple[int, int]], year: int = 2010) -> dict[str, bytes]:
    """The files of VOC's archive: pictures with labels and without, the official lists, and much that is not meant."""
    root = f"VOCdevkit/VOC{year}"
    found = {
        f"{root}/ImageSets/Main/train.txt": "\n".join(NAMES[:2]).encode() + b"\n",
        f"{root}/ImageSets/Main/val.txt": "\n".join(NAMES[2:]).encode() + b"\n",
        f"{root}/ImageSets/Main/aeroplane_train.txt": b"2008_000002 -1\n",
        f"{root}/ImageSets/Segmentation/train.txt": b"2010_006086\n",
        f"{root}/Annotations/2008_000002.xml": b"<annotation/>",
    }
    for name, shape in {**shapes, "2007_000032": (5, 5)}.items():
        picture = np.full((*shape, 3), 99, np.uint8)
        found[f"{root}/JPEGImages/{name}.jpg"] = cv2.imencode(".jpg", picture)[1].tobytes()
        found[f"{root}/SegmentationClass/{name}.png"] = png(np.full(shape, 20))
    return found


def pack(path: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def unpack(path: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def archives(root: Path, labels: np.ndarray, form: str) -> list[Path]:
    """Both archives, every label map the same."""
    pictures = pack(root / VOC, voc(dict.fromkeys(NAMES, labels.shape)))
    if form == "mat":
        contents = {f"trainval/{name}.mat": mat(labels) for name in NAMES} | {"labels.txt": b"1: accordion"}
        return [pictures, pack(root / MAT, contents)]
    return [pictures, pack(root / PNG, {f"59_context_labels/{name}.png": png(labels) for name in NAMES})]


def prepare(sources: list[Path], output: Path, *options: str) -> int:
    words = ["prepare", "pascal-context", "--source", *map(str, sources), "--output", str(output), "--partial"]
    return main([*words, *options])


@pytest.mark.parametrize("classes", [59, 60])
def test_every_label_of_the_459_goes_by_its_name(tmp_path: Path, classes: int) -> None:
    labels = np.arange(1, 460).reshape(17, 27)
    assert prepare(archives(tmp_path, labels, "mat"), tmp_path / "out", "--classes", str(classes)) == 0
    train, val = (SegmentationFolder(tmp_path / "out", split) for split in ("train", "val"))
    assert train.names == NAMES[:2] and val.names == NAMES[2:]
    name_of = {label: name for name, label in ALPHABETICAL.items()}
    other = "background" if classes == 60 else None
    for _, image, label in [*train, *val]:
        assert image.shape == (17, 27, 3) and label is not None
        names = [None if index == IGNORE else train.info.classes[index] for index in label.ravel()]
        assert names == [name_of.get(raw, other) for raw in labels.ravel()]
    assert len(train.info.classes) == classes
    assert train.info.partial and train.info.counts == {"train": 2, "val": 1}
    listing = (tmp_path / "out/sources.sha256").read_text()
    assert f"{VOC}/" in listing and f"{MAT}/" in listing


@pytest.mark.parametrize("classes", [59, 60])
def test_both_forms_of_the_labels_agree(tmp_path: Path, classes: int) -> None:
    official = np.arange(60).reshape(6, 10)
    ids = np.array([431, *pascal_context.CLASSES.values()])
    prepared = {}
    for form, labels in (("png", official), ("mat", ids[official])):
        (tmp_path / form).mkdir()
        assert prepare(archives(tmp_path / form, labels, form), tmp_path / form / "out", f"--classes={classes}") == 0
        prepared[form] = SegmentationFolder(tmp_path / form / "out", "val")
    np.testing.assert_array_equal(prepared["png"][0].label, prepared["mat"][0].label)
    assert prepared["png"].info.classes == prepared["mat"].info.classes
    # Class indices are the official ids, less one where the background is no class.
    expected = official - (classes == 59)
    expected[0, 0] = IGNORE if classes == 59 else 0
    np.testing.assert_array_equal(prepared["png"][0].label, expected)


def test_classes_are_in_the_official_order() -> None:
    with_background, without = pascal_context.benchmark(60)([]), pascal_context.benchmark(59)([])
    assert with_background.classes == ("background", *without.classes)
    assert with_background.colours == ((0, 0, 0), *without.colours)
    assert {label: with_background.classes[label] for label in OFFICIAL_59} == OFFICIAL_59
    assert pascal_context.CLASSES == ALPHABETICAL
    assert without.counts == {"train": 4998, "val": 5105} and sum(without.counts.values()) == 10103
    assert len(set(with_background.colours)) == 60


@pytest.mark.parametrize(
    ("label", "expected"),
    # By the development kit; 59 is 111 011 in binary, of which red has the last bit of both threes.
    [
        (0, (0, 0, 0)),
        (1, (128, 0, 0)),
        (7, (128, 128, 128)),
        (8, (64, 0, 0)),
        (15, (192, 128, 128)),
        (20, (0, 64, 128)),
        (59, (192, 192, 64)),
    ],
)
def test_colours_of_voc(label: int, expected: tuple[int, int, int]) -> None:
    assert pascal_context.colour(label) == expected


@settings(max_examples=15)
@given(st.data(), st.sampled_from([59, 60]), st.sampled_from(["mat", "png"]))
def test_round_trip_to_the_raw_ids(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, classes: int, form: str
) -> None:
    """What was prepared leads back to every raw id of a class by the mapping in `dataset.yaml`."""
    most = 459 if form == "mat" else 59
    shapes = array_shapes(min_dims=2, max_dims=2, max_side=12)
    labels = data.draw(arrays(np.uint16, shapes, elements=st.integers(0, most)))
    root = tmp_path_factory.mktemp("pascal")
    prepare_benchmark(pascal_context.benchmark(classes), archives(root, labels, form), root / "out", partial=True)
    prepared = SegmentationFolder(root / "out", "train")
    assert sorted(map(int, prepared.info.mapping)) == list(range(most + 1))
    ours = prepared[0].label
    assert ours is not None
    for value in np.unique(ours):
        raw = {
            int(raw) for raw, index in prepared.info.mapping.items() if index == (None if value == IGNORE else value)
        }
        assert set(labels[ours == value].tolist()) <= raw
        assert len(raw) == (most - 58 if value == (IGNORE if classes == 59 else 0) else 1)


def test_folders_as_they_are_unpacked(tmp_path: Path) -> None:
    labels = np.full((7, 9), 2)
    mats = unpack(tmp_path / "trainval", {f"{name}.mat": mat(labels) for name in NAMES})
    devkit = unpack(tmp_path / "all", voc(dict.fromkeys(NAMES, labels.shape)))
    # Pictures of other years lie in the same folder, some of the same names.
    unpack(tmp_path / "all", voc(dict.fromkeys(NAMES, labels.shape), year=2012))
    for number, sources in enumerate(
        [
            [devkit, mats],
            [devkit / "VOCdevkit", mats],
            [devkit / "VOCdevkit/VOC2010", mats],
            [devkit / "VOCdevkit/VOC2010/JPEGImages", devkit / "VOCdevkit/VOC2010/ImageSets", mats],
        ]
    ):
        assert prepare(sources, tmp_path / f"out{number}") == 0
        assert DatasetInfo.load(tmp_path / f"out{number}").counts == {"train": 2, "val": 1}


def test_pngs_by_the_name_of_their_archive(tmp_path: Path) -> None:
    labels = np.full((7, 9), 59)
    pictures = pack(tmp_path / VOC, voc(dict.fromkeys(NAMES, labels.shape)))
    pngs = pack(tmp_path / PNG, {f"{name}.png": png(labels) for name in NAMES})
    assert prepare([pictures, pngs], tmp_path / "out") == 0
    assert SegmentationFolder(tmp_path / "out", "train")[0].label.min() == 58


def corrupt(how: str, pictures: dict[str, bytes], labels: dict[str, bytes]) -> None:
    """Make one thing wrong."""
    mat_file, root = f"trainval/{NAMES[0]}.mat", "VOCdevkit/VOC2010"
    if how == "web page":
        labels[mat_file] = b"<html>Not found</html>" * 9
    elif how == "other field":
        labels[mat_file] = mat(np.ones((7, 9)), field="S")
    elif how == "id 460":
        labels[mat_file] = mat(np.full((7, 9), 460))
    elif how == "size":
        labels[mat_file] = mat(np.ones((9, 7)))
    elif how == "no label":
        del labels[mat_file]
    elif how == "no labels":
        labels.clear()
        labels["labels.txt"] = b"1: accordion"
    elif how == "both forms":
        labels |= {f"59_context_labels/{name}.png": png(np.ones((7, 9))) for name in NAMES}
    elif how == "no list":
        del pictures[f"{root}/ImageSets/Main/val.txt"]
    elif how == "other year":
        pictures |= {name.replace("VOC2010", "VOC2012"): pictures.pop(name) for name in list(pictures)}
    elif how == "foreign lists":
        pictures[f"{root}/ImageSets/Main/train.txt"] = pictures[f"{root}/ImageSets/Main/val.txt"] = b"000005\n000007\n"


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("web page", f"{MAT}/trainval/{NAMES[0]}.mat is not a MATLAB file"),
        ("other field", "has no variable LabelMap (it holds S)"),
        ("id 460", "the value 460, which is no class"),
        ("size", "is 9x7 but its mask"),
        ("no label", "has no label"),
        ("no labels", "no labels of PASCAL Context (59 classes) are there; expected VOCtrainval_03-May-2010.tar and"),
        ("both forms", "are the same label; give it once"),
        ("no list", "The list ImageSets/Main/val.txt is in none of the sources; give VOCtrainval_03-May-2010.tar"),
        ("other year", "no pictures of PASCAL Context (59 classes) are there"),
        ("foreign lists", "no pictures of PASCAL Context (59 classes) are there"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, told: str
) -> None:
    pictures = voc(dict.fromkeys(NAMES, (7, 9)))
    labels = {f"trainval/{name}.mat": mat(np.full((7, 9), 2)) for name in NAMES}
    corrupt(how, pictures, labels)
    sources = [pack(tmp_path / VOC, pictures), pack(tmp_path / MAT, labels)]
    assert prepare(sources, tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and told in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [VOC, MAT]


def test_a_part_of_the_set_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = archives(tmp_path, np.ones((7, 9)), "mat")
    words = ["prepare", "pascal-context", "--source", *map(str, sources), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    assert "has 4998 train pictures, the sources have 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--classes", "459"]) == 2
