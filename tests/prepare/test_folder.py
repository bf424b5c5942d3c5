"""`prepare folder`: every form of masks arrives as the same class indices, or nothing is written."""

import hashlib
import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cssformer.data import IGNORE, SegmentationFolder
from cssformer.prepare.folder import prepare_folder
from cssformer.utils.errors import UserError
from tests.data.encoders import png, tiff

IDD = Path("../shared/data/idd_lite")
COLOURS = [(128, 64, 128), (0, 130, 180), (70, 70, 70), (220, 20, 60), (0, 0, 142)]


def write(path: Path, array: np.ndarray, form: str = "ids") -> None:
    """Write class ids (H, W) as a mask of one of the forms people have; RGB (H, W, 3) as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.ndim == 3:
        Image.fromarray(array).save(path)
    elif form == "palette":
        picture = Image.fromarray(array.astype(np.uint8), mode="P")
        picture.putpalette([value for colour in COLOURS for value in colour])
        picture.save(path)
    elif form == "colours":
        Image.fromarray(np.array([*COLOURS, (0, 0, 0)], np.uint8)[np.minimum(array, 5)]).save(path)
    elif form == "binary":
        Image.fromarray(np.where(array, 255, 0).astype(np.uint8)).save(path)
    elif form == "one bit":
        Image.fromarray(array.astype(bool)).save(path)
    elif form == "grey RGB":
        Image.fromarray(np.repeat(array.astype(np.uint8)[..., None], 3, -1)).save(path)
    elif form == "four bits":
        path.write_bytes(png(array, 4))
    elif form == "16 bits":
        cv2.imwrite(str(path), array.astype(np.uint16))
    elif form == "palette transparent":
        picture = Image.fromarray(array.astype(np.uint8), mode="P")
        picture.putpalette([value for colour in COLOURS for value in colour])
        picture.save(path, transparency=0)
    else:
        Image.fromarray(array.astype(np.uint8)).save(path)


def source(root: Path, labels: list[np.ndarray], form: str = "ids", suffix: str = ".png") -> Path:
    rng = np.random.default_rng(1)
    for index, label in enumerate(labels):
        write(root / "images" / f"{index}{suffix}", rng.integers(0, 256, (*label.shape, 3), dtype=np.uint8))
        write(root / "masks" / f"{index}.png", label, form)
    return root


def labels_of(output: Path) -> dict[str, np.ndarray]:
    return {sample.name: sample.label for split in ("train", "val") for sample in SegmentationFolder(output, split)}


def random_labels(seed: int, classes: int, count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = [rng.integers(0, classes, (rng.integers(4, 20), rng.integers(4, 20))) for _ in range(count)]
    labels[0].flat[:classes] = range(classes)
    return labels


@settings(max_examples=40)
@given(
    st.sampled_from(["ids", "palette", "palette transparent", "colours", "grey RGB", "16 bits", "four bits"]),
    st.integers(0, 1000),
)
def test_every_form_of_masks_becomes_the_same_classes(tmp_path_factory, form, seed):
    root = tmp_path_factory.mktemp("prepare")
    labels = random_labels(seed, len(COLOURS))
    class_file = root / "classes.txt"
    class_file.write_text("".join(f"{r} {g} {b} class{i}\n" for i, (r, g, b) in enumerate(COLOURS)))
    source(root / "in", labels, form)
    prepared = prepare_folder([root / "in"], root / "out", class_file=class_file)
    assert prepared.info.classes == tuple(f"class{index}" for index in range(len(COLOURS)))
    assert prepared.info.colours == tuple(COLOURS)
    got = labels_of(root / "out")
    for index, label in enumerate(labels):
        assert np.array_equal(got[str(index)], label)


@pytest.mark.parametrize("form", ["binary", "one bit"])
def test_binary_masks(tmp_path, form):
    labels = random_labels(0, 2)
    prepared = prepare_folder([source(tmp_path / "in", labels, form)], tmp_path / "out", classes=["ground", "road"])
    assert prepared.info.classes == ("ground", "road")
    got = labels_of(tmp_path / "out")
    assert all(np.array_equal(got[str(index)], label) for index, label in enumerate(labels))


def test_binary_masks_name_themselves(tmp_path):
    prepared = prepare_folder([source(tmp_path / "in", random_labels(0, 2), "binary")], tmp_path / "out")
    assert prepared.info.classes == ("background", "foreground")
    assert prepared.info.mapping == {"0": 0, "255": 1} and any("binary" in note for note in prepared.notes)


def test_colours_are_discovered(tmp_path):
    labels = random_labels(0, 5)
    prepared = prepare_folder([source(tmp_path / "in", labels, "colours")], tmp_path / "out")
    assert set(prepared.info.colours) == set(COLOURS)
    palette = np.array(prepared.info.colours)
    got = labels_of(tmp_path / "out")
    assert all(np.array_equal(palette[got[str(i)]], np.array(COLOURS)[label]) for i, label in enumerate(labels))


def test_ids_with_gaps_and_ignored_values(tmp_path):
    label = np.array([[7, 11, 255, 3], [7, 7, 0, 3]])
    class_file = tmp_path / "classes.txt"
    class_file.write_text("# id name\n7 road\n\n11 pavement\n3 road\n")
    root = source(tmp_path / "in", [label, label])
    with pytest.raises(UserError, match=r"1 id that is no class, 0 in .*masks/\d.png for one; .* --ignore 0\."):
        prepare_folder([root], tmp_path / "out", class_file=class_file)
    assert not (tmp_path / "out").exists()
    prepared = prepare_folder([root], tmp_path / "out", class_file=class_file, ignore=["0"])
    # Lines of one name are one class.
    assert prepared.info.classes == ("road", "pavement")
    assert prepared.info.mapping == {"0": None, "3": 0, "7": 0, "11": 1, "255": None}
    assert labels_of(tmp_path / "out")["0"].tolist() == [[0, 1, IGNORE, 0], [0, 0, IGNORE, 0]]


def test_an_id_far_from_the_others_is_told(tmp_path):
    root = source(tmp_path / "in", [np.array([[0, 1, 2, 77]]), np.array([[2, 1, 0, 0]])])
    told = "No mask holds an id between 2 and 77; if 77 is no class, add --ignore 77."
    assert told in prepare_folder([root], tmp_path / "a").notes
    assert told not in prepare_folder([root], tmp_path / "b", ignore=["77"]).notes


def test_classes_by_name_keep_their_ids_though_one_is_absent(tmp_path):
    labels = [np.array([[0, 2]]), np.array([[2, 2]])]
    prepare_folder([source(tmp_path / "in", labels)], tmp_path / "out", classes=["a", "b", "c"])
    assert labels_of(tmp_path / "out")["0"].tolist() == [[0, 2]]


def test_classes_by_name_after_an_ignored_zero(tmp_path):
    # As in ADE20K: 0 is nothing, 1 is the first class; here the last class is absent.
    labels = [np.array([[0, 1, 3]]), np.array([[1, 1, 1]])]
    root = source(tmp_path / "in", labels)
    prepared = prepare_folder([root], tmp_path / "out", classes=["a", "b", "c", "d"], ignore=["0"])
    assert prepared.info.mapping == {"0": None, "1": 0, "2": 1, "3": 2, "4": 3}
    assert labels_of(tmp_path / "out")["0"].tolist() == [[IGNORE, 0, 2]]


def test_binary_masks_with_a_class_file(tmp_path):
    labels = random_labels(0, 2)
    root = source(tmp_path / "in", labels, "binary")
    for number, text in enumerate(("ground\nroad\n", "0 ground\n255 road\n", "0 0 0 ground\n255 255 255 road\n")):
        (tmp_path / "classes.txt").write_text(text)
        out = tmp_path / f"out{number}"
        prepared = prepare_folder([root], out, class_file=tmp_path / "classes.txt")
        assert prepared.info.classes == ("ground", "road")
        assert all(np.array_equal(labels_of(out)[str(index)], label) for index, label in enumerate(labels))
    (tmp_path / "classes.txt").write_text("0 ground\n1 road\n")
    with pytest.raises(UserError, match="0 and 255 alone"):
        prepare_folder([root], tmp_path / "out", class_file=tmp_path / "classes.txt")


def test_ignore_by_name_and_by_colour(tmp_path):
    labels = random_labels(0, 5)
    class_file = tmp_path / "class_dict.csv"
    class_file.write_text("name,r,g,b\n" + "".join(f"class{i},{r},{g},{b}\n" for i, (r, g, b) in enumerate(COLOURS)))
    root = source(tmp_path / "in", labels, "colours")
    prepared = prepare_folder([root], tmp_path / "out", class_file=class_file, ignore=["class1", "70,70,70"])
    assert prepared.info.classes == ("class0", "class3", "class4")
    table = np.array([0, IGNORE, IGNORE, 1, 2])
    assert np.array_equal(labels_of(tmp_path / "out")["0"], table[labels[0]])


def test_more_than_255_classes_make_16_bits(tmp_path):
    label = np.arange(600).reshape(20, 30)
    label[0, 0] = 65535
    prepared = prepare_folder([source(tmp_path / "in", [label, label], "16 bits")], tmp_path / "out")
    assert prepared.info.ignore == 65535 and len(prepared.info.classes) == 599
    expected = label - 1
    expected[0, 0] = IGNORE
    assert np.array_equal(labels_of(tmp_path / "out")["0"], expected)


def test_right_files_are_copied_byte_for_byte(tmp_path):
    root = source(tmp_path / "in", random_labels(0, 3), suffix=".jpg")
    prepare_folder([root], tmp_path / "out")
    for kind, original in (("images", "images"), ("labels", "masks")):
        for path in (tmp_path / "out").glob(f"*/{kind}/*"):
            assert path.read_bytes() == (root / original / path.name).read_bytes()


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".webp"])
def test_other_pictures_become_png(tmp_path, suffix):
    root = source(tmp_path / "in", random_labels(0, 3), suffix=suffix)
    prepare_folder([root], tmp_path / "out")
    sample = SegmentationFolder(tmp_path / "out", "val")[0]
    assert (tmp_path / "out" / "val" / "images" / f"{sample.name}.png").is_file()
    expected = np.asarray(Image.open(root / "images" / f"{sample.name}{suffix}").convert("RGB"))
    assert np.array_equal(sample.image, expected)


def test_checksums_of_the_sources(tmp_path):
    root = source(tmp_path / "in", random_labels(0, 3))
    prepared = prepare_folder([root], tmp_path / "out")
    listing = (tmp_path / "out" / "sources.sha256").read_bytes()
    assert prepared.info.sources == {"sources.sha256": hashlib.sha256(listing).hexdigest()}
    rows = [line.split("  ", 1) for line in listing.decode().splitlines()]
    assert len(rows) == 6
    assert all(hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest for digest, path in rows)


def test_a_mask_too_large_for_pillow_is_one_sentence(tmp_path):
    root = source(tmp_path / "in", random_labels(0, 2))
    header = struct.pack(">IIBBBBB", 20_000, 15_000, 8, 0, 0, 0, 0)
    data = bytearray((root / "masks/1.png").read_bytes())
    data[16:29], data[29:33] = header, struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (root / "masks/1.png").write_bytes(data)
    with pytest.raises(UserError, match=r"masks/1.png cannot be read: it has over 178 million pixels"):
        prepare_folder([root], tmp_path / "out")


def test_test_pictures_need_no_masks(tmp_path):
    root = tmp_path / "in"
    for split in ("train", "val", "test"):
        write(root / "images" / split / "a.png", np.zeros((4, 4, 3), np.uint8))
    for split in ("train", "val"):
        write(root / "masks" / split / "a.png", np.zeros((4, 4), int))
    prepared = prepare_folder([root], tmp_path / "out")
    assert prepared.info.counts == {"train": 1, "val": 1, "test": 1}
    assert SegmentationFolder(tmp_path / "out", "test")[0].label is None


def spoil(root: Path, mistake: str) -> None:
    image, mask = root / "images/1.png", root / "masks/1.png"
    if mistake == "no mask":
        mask.unlink()
    elif mistake == "no picture":
        image.unlink()
    elif mistake == "size":
        write(mask, np.zeros((3, 50), int))
    elif mistake == "turned":
        rows, columns = np.asarray(Image.open(mask)).shape
        write(image, np.zeros((columns + 1, rows, 3), np.uint8))
        write(mask, np.zeros((rows, columns + 1), int))
    elif mistake == "truncated picture":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(root / "x.jpg")
        image.with_suffix(".jpg").write_bytes((root / "x.jpg").read_bytes()[:-30])
        (root / "x.jpg").unlink()
        image.unlink()
    elif mistake == "truncated mask":
        mask.write_bytes(mask.read_bytes()[:-9])
    elif mistake == "JPEG mask":
        data = io.BytesIO()
        Image.new("L", (5, 5)).save(data, "jpeg")
        mask.write_bytes(data.getvalue())
    elif mistake == "damaged mask":
        mask.write_bytes(b"no picture")
    elif mistake == "one folder of two":
        write(root / "images/val/9.png", np.zeros((4, 4, 3), np.uint8))
        write(root / "masks/val/9.png", np.zeros((4, 4), int))


@pytest.mark.parametrize(
    ("mistake", "complaint"),
    [
        ("no mask", r"images/1.png has no mask \(1 such"),
        ("no picture", r"masks/1.png has no picture \(1 such"),
        ("size", r"images/1.png is .* but its mask .*masks/1.png is 50x3"),
        ("turned", "images/1.png is .* lie the same way"),
        ("truncated picture", "images/1.jpg is truncated"),
        ("truncated mask", "masks/1.png is truncated"),
        ("JPEG mask", "masks/1.png is a JPEG"),
        ("damaged mask", "masks/1.png cannot be read"),
        ("one folder of two", "is in no folder named train, val or test"),
    ],
)
def test_mistakes_leave_nothing(tmp_path, mistake, complaint):
    root = source(tmp_path / "in", random_labels(0, 2, count=4))
    spoil(root, mistake)
    with pytest.raises(UserError, match=complaint):
        prepare_folder([root], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    root = source(tmp_path / "in", random_labels(0, 2, count=4))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cssformer.prepare.writer.encode_png", interrupt)
    (root / "images" / "0.png").unlink()
    write(root / "images" / "0.bmp", np.zeros((*random_labels(0, 2)[0].shape, 3), np.uint8))
    with pytest.raises(KeyboardInterrupt):
        prepare_folder([root], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_unpaired_files_are_left_out_on_demand(tmp_path):
    root = source(tmp_path / "in", random_labels(0, 2, count=6))
    (root / "masks" / "1.png").unlink()
    (root / "images" / "2.png").unlink()
    prepared = prepare_folder([root], tmp_path / "out", skip_unpaired=True)
    assert sum(prepared.info.counts.values()) == 4
    assert ["without mask" in prepared.notes[0], "without picture" in prepared.notes[1]] == [True, True]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"classes": ["a", "b"]}, r"2 classes are named, but the masks have 3 values \(0, 1, 2\)"),
        ({"ignore": ["sky"]}, "'sky' cannot be ignored"),
        ({"ignore": ["0", "1", "2"]}, "no class is left"),
        ({"val_share": 1.5}, "between 0 and 1"),
        ({"class_file": Path("nowhere.txt")}, "Cannot read nowhere.txt"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, complaint):
    root = source(tmp_path / "in", random_labels(0, 3))
    with pytest.raises(UserError, match=complaint):
        prepare_folder([root], tmp_path / "out", **options)


@pytest.mark.parametrize("text", ["1 2 name", "7 300 1 2 name", "1 a\nb", "\n", "0 a\n0 b\n1 c", "1 2 3 a\n1 2 3 b"])
def test_wrong_class_files(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    root = source(tmp_path / "in", random_labels(0, 3))
    with pytest.raises(UserError, match=r"classes\.txt"):
        prepare_folder([root], tmp_path / "out", class_file=tmp_path / "classes.txt")


def test_an_output_that_exists_is_refused_before_any_work(tmp_path):
    write(tmp_path / "out" / "mine.png", np.zeros((4, 4), int))
    with pytest.raises(UserError, match="out exists already and is no whole prepared folder"):
        prepare_folder([tmp_path / "nowhere"], tmp_path / "out")


def test_names_that_would_collide(tmp_path):
    root = tmp_path / "in"
    for name in ("a__b", "a/b", "c"):
        write(root / "images" / f"{name}.png", np.zeros((4, 4, 3), np.uint8))
        write(root / "masks" / f"{name}.png", np.zeros((4, 4), int))
    (tmp_path / "train.txt").write_text("a__b\nb\n")
    (tmp_path / "val.txt").write_text("c\n")
    with pytest.raises(UserError, match="would both be called a__b"):
        prepare_folder([root], tmp_path / "out", train_list=tmp_path / "train.txt", val_list=tmp_path / "val.txt")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not IDD.is_dir(), reason="needs ../shared/data/idd_lite")
def test_idd_lite(tmp_path):
    names = ["drivable", "non-drivable", "living things", "vehicles", "roadside objects", "far objects", "sky"]
    prepared = prepare_folder([IDD], tmp_path / "idd", classes=names)
    assert prepared.info.counts == {"train": 1403, "val": 204}
    assert prepared.suffixes == (("_image.jpg", "_label.png"),)
    assert prepared.info.mapping == {**{str(index): index for index in range(7)}, "255": None}
    sample = SegmentationFolder(tmp_path / "idd", "val")[0]
    assert sample.image.shape == (227, 320, 3) and set(np.unique(sample.label)) <= {IGNORE, *range(7)}


def test_pictures_that_are_not_read_as_expected_are_told(tmp_path):
    root = source(tmp_path / "in", random_labels(0, 3, count=4))
    for number, path in enumerate(sorted((root / "images").iterdir())):
        height, width = np.asarray(Image.open(path)).shape[:2]
        wide = np.full((height, width), 1000 + number)
        path.unlink()
        path.with_suffix(".tif").write_bytes(tiff(wide, 16, pages=2 if number == 0 else 1))
    notes = prepare_folder([root], tmp_path / "out").notes
    assert any("1 picture has several pages or frames" in note and "0.tif" in note for note in notes)
    assert any("use no value above 1023 of 65535" in note for note in notes)


def test_one_class_alone_is_told(tmp_path):
    root = source(tmp_path / "in", [np.zeros((9, 9), int)] * 4)
    assert any("nothing to learn" in note for note in prepare_folder([root], tmp_path / "out").notes)


def test_libraries_are_silent_about_damaged_files(tmp_path):
    """Pillow 13.0 warns of "Corrupt EXIF data" here, libtiff writes to standard error itself."""
    root = source(tmp_path / "in", random_labels(0, 2, count=4))
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(
        data, "TIFF", compression="tiff_lzw"
    )
    (root / "images" / "0.png").unlink()
    (root / "images" / "0.tif").write_bytes(data.getvalue()[:2000])
    program = "import sys; from cssformer.cli import main; sys.exit(main())"
    options = ["prepare", "folder", "--source", root, "--output", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", program, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"cssformer: \S*images/0\.tif cannot be read as a picture; .*\.\n", done.stderr)
