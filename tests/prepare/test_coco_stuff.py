"""`prepare coco-stuff-10k`: archives of the documented form become class indices, or nothing is written.

No real archive is at hand; real label maps of COCO-Stuff 164K (PNG, the ids less one) are written as `.mat` files.
"""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cssformer.cli import main
from cssformer.data import IGNORE, DatasetInfo, SegmentationFolder
from cssformer.prepare import coco_stuff
from cssformer.prepare.archives import Member
from cssformer.prepare.benchmark import prepare_benchmark

Pack = Callable[[Path, dict[str, bytes]], Path]
SAMPLES = Path("../shared/samples")
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="needs ../shared/samples")
NAMES = [f"COCO_train2014_{number:012}" for number in (77, 113, 825)]
LISTS = {"imageLists/train.txt": "\n".join(NAMES[:2]), "imageLists/test.txt": f"{NAMES[2]}\n"}


def mat(labels: np.ndarray, names: int = 182, field: str = "S") -> bytes:
    """A `.mat` file with the fields of the data set; its ``S`` is of doubles."""
    file = io.BytesIO()
    variables = {
        field: labels.astype(float),
        "names": np.array([[f"class {number}"] for number in range(names)], object),
        "captions": np.array([["a street"], ["a road"]], object),
        "regionMapStuff": np.ones(labels.shape),
        "regionLabelsStuff": np.array([[149.0]]),
    }
    scipy.io.savemat(file, variables, do_compression=True)
    return file.getvalue()


def jpg(height: int, width: int) -> bytes:
    return cv2.imencode(".jpg", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


def files(labels: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The files of the archive: pictures, annotations, lists, and what else lies there."""
    found: dict[str, bytes] = {name: text.encode() for name, text in LISTS.items()}
    found |= {"imageLists/all.txt": "\n".join(NAMES).encode(), "README.md": b"# COCO-Stuff"}
    for name, label in labels.items():
        found[f"images/{name}.jpg"] = jpg(*label.shape)
        found[f"annotations/{name}.mat"] = mat(label)
    return found


@pytest.fixture
def labels() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    annotated = np.setdiff1d(np.arange(183), coco_stuff.NEVER_ANNOTATED)
    return {name: rng.choice(annotated, (20, 30)) for name in NAMES}


def prepare(source: Path | list[Path], output: Path, *options: str) -> int:
    sources = source if isinstance(source, list) else [source]
    return main(
        ["prepare", "coco-stuff-10k", "--source", *map(str, sources), "--output", str(output), "--partial", *options]
    )


@needs_samples
@pytest.mark.parametrize("classes", [171, 182])
def test_real_label_maps_pixel_by_pixel(tmp_path: Path, pack: Pack, classes: int) -> None:
    """The reference goes by names alone: those of the official list, and those that `dataset.yaml` tells."""
    lines = (SAMPLES / "lists/coco_stuff_labels.txt").read_text().splitlines()
    name_of = {int(line.split(": ")[0]): line.split(": ")[1] for line in lines}
    contents, truth = {}, {}
    for path in sorted((SAMPLES / "coco_stuff/labels").glob("*.png")):
        name = f"COCO_train2014_{path.stem}"
        truth[name] = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        contents[f"images/{name}.jpg"] = (SAMPLES / f"coco_stuff/images/{path.stem}.jpg").read_bytes()
        contents[f"annotations/{name}.mat"] = mat(np.where(truth[name] == 255, 0, truth[name] + 1.0))
    names = list(truth)
    contents["imageLists/train.txt"] = "\n".join(names[:-1]).encode()
    contents["imageLists/test.txt"] = names[-1].encode()
    source = pack(tmp_path / "cocostuff-10k-v1.1.zip", contents)

    assert prepare(source, tmp_path / "out", "--classes", str(classes)) == 0
    seen = set()
    for split, expected in (("train", names[:-1]), ("val", names[-1:])):
        prepared = SegmentationFolder(tmp_path / "out", split)
        assert prepared.names == expected and len(prepared.info.classes) == classes
        for name, image, label in prepared:
            assert image.shape[:2] == truth[name].shape
            ours = np.array([*prepared.info.classes, "unlabeled"], object)[np.where(label == IGNORE, classes, label)]
            theirs = np.vectorize(lambda value: name_of[0 if value == 255 else value + 1])(truth[name])
            assert (ours == theirs).all()
            seen.update(np.unique(theirs))
    assert len(seen) > 20
    info = DatasetInfo.load(tmp_path / "out")
    assert info.partial and info.counts == {"train": len(names) - 1, "val": 1}


@needs_samples
def test_names_are_those_of_the_official_list() -> None:
    lines = (SAMPLES / "lists/coco_stuff_labels.txt").read_text().splitlines()
    assert [f"{label}: {name}" for label, name in enumerate(coco_stuff.NAMES) if label] == lines[1:]


@needs_samples
def test_official_lists_and_their_counts() -> None:
    """All 10 000 official files are recognised, each in its split."""
    archive = Path("cocostuff-10k-v1.1.zip")
    members, official = [], {}
    for ours, theirs, listed in (("train", "train", "train"), ("val", "test", "val")):
        lines = (SAMPLES / f"lists/coco_stuff10k_{listed}.txt").read_text().split("\n")
        names = [Path(line.split()[0]).stem for line in lines if line]
        official |= dict.fromkeys(names, ours)
        text = "\n".join(names).encode()
        members.append(Member(archive, f"imageLists/{theirs}.txt", len(text), lambda text=text: text))
    for name in official:
        members.append(Member(archive, f"images/{name}.jpg", 0, bytes))
        members.append(Member(archive, f"annotations/{name}.mat", 0, bytes))
    parts = list(coco_stuff.parts(members))
    assert {part.name: part.split for part in parts} == official
    expected = coco_stuff.benchmark().counts
    for kind in ("image", "label"):
        assert Counter(part.split for part in parts if part.kind == kind) == expected == {"train": 9000, "val": 1000}


@pytest.mark.parametrize("kind", ["folder", "it.zip", "it.tar", "it.tar.gz", "it.tgz"])
def test_every_form_of_the_source(tmp_path: Path, pack: Pack, labels: dict[str, np.ndarray], kind: str) -> None:
    contents = {f"cocostuff/{name}": data for name, data in files(labels).items()}
    assert prepare(pack(tmp_path / kind, contents), tmp_path / "out") == 0
    train, val = SegmentationFolder(tmp_path / "out", "train"), SegmentationFolder(tmp_path / "out", "val")
    assert train.names == NAMES[:2] and val.names == NAMES[2:]


def test_its_folders_one_by_one(tmp_path: Path, pack: Pack, labels: dict[str, np.ndarray]) -> None:
    source = pack(tmp_path / "it", files(labels))
    parts = [source / name for name in ("images", "annotations", "imageLists")]
    assert prepare(parts, tmp_path / "out") == 0
    assert SegmentationFolder(tmp_path / "out", "val").names == NAMES[2:]


@settings(max_examples=15)
@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 182)), st.data())
def test_round_trip_to_the_raw_ids(
    tmp_path_factory: pytest.TempPathFactory, pack: Pack, label: np.ndarray, data: st.DataObject
) -> None:
    """What was prepared leads back to every raw id by the mapping in `dataset.yaml`."""
    classes = data.draw(st.sampled_from([171, 182]))
    if classes == 171:
        label = np.where(np.isin(label, coco_stuff.NEVER_ANNOTATED), 0, label)
    root = tmp_path_factory.mktemp("coco")
    source = pack(root / "it.zip", files(dict.fromkeys(NAMES, label)))
    prepare_benchmark(coco_stuff.benchmark(classes), [source], root / "out", partial=True)
    prepared = SegmentationFolder(root / "out", "val")
    back = {IGNORE if index is None else index: int(raw) for raw, index in prepared.info.mapping.items()}
    assert len(back) == classes + 1
    np.testing.assert_array_equal(np.vectorize(back.get)(prepared[0].label), label)


@pytest.mark.parametrize("classes", [171, 182])
def test_colours_differ(classes: int) -> None:
    described = coco_stuff.benchmark(classes)
    assert len(set(described.colours)) == classes == len(described.classes) == len(set(described.classes))
    assert all(0 <= value <= 255 for colour in described.colours for value in colour)
    # MATLAB's jet(91) begins and ends with these; stuff has them at half their brightness.
    things = {described.colours[index] for raw, index in described.index_of.items() if raw and raw <= 91}
    stuff = {described.colours[index] for raw, index in described.index_of.items() if raw > 91}
    assert {(0, 0, 67), (0, 0, 72), (72, 0, 0)} <= stuff
    if classes == 182:
        assert {(0, 0, 133), (0, 0, 144), (144, 0, 0), (255, 0, 0), (0, 255, 255)} <= things


def corrupt(contents: dict[str, bytes], how: str) -> None:
    """Make one thing wrong."""
    annotation, picture = f"annotations/{NAMES[1]}.mat", f"images/{NAMES[1]}.jpg"
    label = np.full((20, 30), 7)
    if how == "web page":
        contents[annotation] = b"<html>Not found</html>" * 9
    elif how == "HDF5":
        contents[annotation] = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(400)
    elif how == "cut mat":
        contents[annotation] = contents[annotation][:-20]
    elif how == "other field":
        contents[annotation] = mat(label, field="LabelMap")
    elif how == "version 1.0":
        contents[annotation] = mat(label, names=172)
    elif how == "id 183":
        contents[annotation] = mat(np.full((20, 30), 183))
    elif how == "never annotated":
        contents[annotation] = mat(np.full((20, 30), 26))
    elif how == "fraction":
        contents[annotation] = mat(np.full((20, 30), 0.5))
    elif how == "size":
        contents[annotation] = mat(label.T)
    elif how == "cut jpg":
        contents[picture] = contents[picture][: len(contents[picture]) // 2]
    elif how == "no annotation":
        del contents[annotation]
    elif how == "no picture":
        del contents[picture]
    elif how == "no list":
        del contents["imageLists/test.txt"]
    elif how == "binary list":
        contents["imageLists/test.txt"] = b"\xff\xfe\x00\x80"
    elif how == "two lists":
        contents["backup/imageLists/test.txt"] = b""
    elif how == "other archive":
        for name in list(contents):
            contents[f"ADEChallengeData2016/{name.replace('COCO_train2014_', 'ADE_')}"] = contents.pop(name)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("web page", "is not a MATLAB file"),
        ("HDF5", "version 7.3"),
        ("cut mat", "is damaged"),
        ("other field", "has no variable S (it holds LabelMap, names"),
        ("version 1.0", "names 172 classes, not 182: it is not of version 1.1"),
        ("id 183", "the value 183, which is no class"),
        ("never annotated", "the value 26, which is no class"),
        ("fraction", "values that are no labels"),
        ("size", "is 30x20 but its mask"),
        ("cut jpg", "truncated"),
        ("no annotation", "has no label"),
        ("no picture", "has no picture"),
        ("no list", "The list imageLists/test.txt is in none of the sources"),
        ("binary list", "is no text"),
        ("two lists", "is there twice"),
        ("other archive", "expected cocostuff-10k-v1.1.zip with images/"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    tmp_path: Path, pack: Pack, labels: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str], how: str, told: str
) -> None:
    contents = files(labels)
    corrupt(contents, how)
    source = pack(tmp_path / "it.zip", contents)
    assert prepare(source, tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and told in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["it.zip"]


def test_a_part_of_the_set_only_on_request(
    tmp_path: Path, pack: Pack, labels: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    source = pack(tmp_path / "it.zip", files(labels))
    arguments = ["prepare", "coco-stuff-10k", "--source", str(source), "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "has 9000 train pictures, the sources have 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--classes", "170"]) == 2
