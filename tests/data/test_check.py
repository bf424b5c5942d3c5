"""Each sentence of the check, called forth by a folder that deserves it."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage

from cssformer.data import DatasetInfo, SegmentationFolder, SyntheticScenes, verify_labels
from cssformer.data.alignment import better_turned
from cssformer.data.check import check
from cssformer.data.duplicates import near_duplicates, perceptual_hash
from cssformer.metrics.predictions import Predictions
from cssformer.prepare.folder import prepare_folder
from cssformer.utils.errors import UserError
from tests.data.encoders import png, tiff

COLOURS = [(9, 8, 7), (200, 0, 0), (0, 100, 50)]


def relabel(root: Path, change) -> None:
    for path in root.glob("*/labels/*.png"):
        cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))


def test_a_sound_folder_has_nothing_to_say(prepared):
    report = check(prepared)
    assert report.errors == [] and report.warnings == []
    assert report.pictures == {"train": 4, "val": 2} and report.sizes == {(60, 50): 6}
    assert report.ignored == pytest.approx(2 / 50)
    verify_labels(prepared)


def test_class_table_against_counting_by_hand(prepared):
    report = check(prepared)
    labels = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(prepared.glob("*/labels/*.png"))]
    pixels = np.concatenate([label[label != 255] for label in labels])
    learnt = verify_labels(prepared)["train"].sum(axis=0)
    for index in range(3):
        # Of what is trained on, as `train` counts them.
        assert report.shares[index] == pytest.approx(learnt[index] / learnt.sum())
        assert report.present[index] == {"train": 4, "val": 2}
    assert report.table()[0] == ("id", "class", "pixels", "regions", "mean area", "in train", "in val")
    regions = sum(ndimage.label(label == 0, np.ones((3, 3)))[1] for label in labels)
    area = (pixels == 0).sum() / regions
    assert report.table()[1] == ("0", "road", f"{report.shares[0]:.2%}", f"{regions}", f"{area:.0f}", "4", "2")
    assert report.as_dict()["classes"][2] == {
        "id": 2,
        "name": "sky",
        "share": report.shares[2],
        "pictures": {"train": 4, "val": 2},
        "regions": report.regions[2],
        "mean_area": report.areas[2],
    }


def one_id(root):
    path = root / "train/labels/2.png"
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    label[10, :7] = 9
    cv2.imwrite(str(path), label)


def other_size(root):
    cv2.imwrite(str(root / "train/labels/1.png"), np.zeros((49, 60), np.uint8))


def turned_size(root):
    path = root / "train/labels/1.png"
    cv2.imwrite(str(path), np.rot90(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))


def truncated(root):
    path = root / "val/images/0.jpg"
    path.write_bytes(path.read_bytes()[:-50])


def colour_label(root):
    cv2.imwrite(str(root / "train/labels/1.png"), np.full((50, 60, 3), (0, 1, 2), np.uint8))


def wide_label(root):
    cv2.imwrite(str(root / "train/labels/1.png"), np.full((50, 60), 300, np.uint16))


def sixteen_bits(root):
    path = root / "train/labels/1.png"
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.uint16)
    cv2.imwrite(str(path), np.minimum(label, 2))


def no_label(root):
    (root / "train/labels/3.png").unlink()


def no_picture(root):
    (root / "val/images/1.jpg").unlink()


def no_split(root):
    shutil.rmtree(root / "val")


def no_pictures(root):
    for path in (root / "val").glob("*/*"):
        path.unlink()


def shifted(root):
    relabel(root, lambda label: np.where(label == 255, 255, label + 1).astype(np.uint8))


def binary(root):
    relabel(root, lambda label: np.where(label == 1, 255, 0).astype(np.uint8))


def colours_as_ids(root):
    relabel(root, lambda label: np.array([76, 150, 29, *[0] * 253], np.uint8)[label])


def every_one_ignored(root):
    relabel(root, lambda label: np.full_like(label, 255))


ERRORS = {
    one_id: "The id 9 is outside the classes 0 to 2 .* 7 pixels in 1 label, .*train/labels/2.png the first",
    other_size: "1 label differs from the picture in size: .*train/labels/1.png is 60x49, its picture 60x50",
    turned_size: "train/labels/1.png is 50x60, its picture 60x50; one of the two lies turned by 90 degrees",
    truncated: "val/images/0.jpg is truncated",
    colour_label: "train/labels/1.png is a colour picture",
    sixteen_bits: "1 label has 16 bits, .* have 8: .*train/labels/1.png is the first",
    wide_label: "The id 300 is outside the classes",
    no_label: "1 train picture is without label, .*train/images/3.jpg the first",
    no_picture: "1 val label is without picture, .*val/labels/1.png the first",
    no_split: "The val split is missing",
    every_one_ignored: "[0-9]+ labels are ignored entirely, ",
    no_pictures: "val/images holds no pictures",
    shifted: "look shifted by one: they have 3 but never 0",
    binary: "foreground is 255",
    colours_as_ids: "look like colours read as ids: 3 of their 4 ids",
}


@pytest.mark.parametrize("mistake", ERRORS, ids=lambda mistake: mistake.__name__)
def test_errors(prepared, mistake):
    mistake(prepared)
    report = check(prepared)
    assert any(re.search(ERRORS[mistake], error) for error in report.errors), report.errors
    assert report.as_dict()["errors"] == report.errors


def empty_class(root):
    relabel(root, lambda label: np.where(label == 1, 0, label).astype(np.uint8))


def absent_from_val(root):
    for path in root.glob("val/labels/*.png"):
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.where(label == 2, 0, label))


def two_absent_from_val(root):
    for path in root.glob("val/labels/*.png"):
        cv2.imwrite(str(path), np.full((50, 60), 2, np.uint8))


def all_ignored(root):
    cv2.imwrite(str(root / "train/labels/0.png"), np.full((50, 60), 255, np.uint8))


def mostly_ignored(root):
    def change(label):
        label[:40] = 255
        return label

    relabel(root, change)


def leak(root):
    # Another file format, the same pixels.
    cv2.imwrite(str(root / "val/images/1.png"), cv2.imread(str(root / "train/images/2.jpg")))
    (root / "val/images/1.jpg").unlink()


def blank(root):
    cv2.imwrite(str(root / "train/labels/2.png"), np.zeros((50, 60), np.uint8))


def outline(root):
    def change(label):
        label = np.where(label == 1, 0, label).astype(np.uint8)
        label[2] = 1
        return label

    relabel(root, change)


def near_copy(root):
    scene = SyntheticScenes(1, (50, 60))[0].image
    cv2.imwrite(str(root / "train/images/2.jpg"), scene)
    cv2.imwrite(str(root / "val/images/1.jpg"), scene, [cv2.IMWRITE_JPEG_QUALITY, 40])


def odd_size(root):
    for kind, suffix, way in (("images", "jpg", cv2.INTER_LINEAR), ("labels", "png", cv2.INTER_NEAREST)):
        path = root / f"train/{kind}/1.{suffix}"
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), cv2.resize(pixels, (200, 190), interpolation=way))


def dark(root):
    for path in root.glob("*/images/*.jpg"):
        wide = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.uint16) << 4
        path.with_suffix(".png").write_bytes(png(wide, 16))
        path.unlink()


def pages(root):
    (root / "train/images/0.jpg").unlink()
    (root / "train/images/0.tif").write_bytes(tiff(np.arange(50 * 60).reshape(50, 60) % 256, pages=2))


def turned_label(root):
    label = cv2.imread(str(root / "train/labels/0.png"), cv2.IMREAD_UNCHANGED)
    (root / "train/labels/0.png").write_bytes(png(label, orientation=3))


def counts(root):
    info = DatasetInfo.load(root)
    (root / "dataset.yaml").unlink()
    DatasetInfo(info.classes, info.colours, counts={"train": 5, "val": 2}).save(root)


WARNINGS = {
    empty_class: "The class 1 (tree) is in no label.",
    absent_from_val: "The class 2 (sky) is absent from val.",
    two_absent_from_val: "The classes 0 (road), 1 (tree) are absent from val.",
    all_ignored: "1 label is ignored entirely, ",
    mostly_ignored: "80% of all pixels are ignored.",
    leak: "1 picture is in more than one split, pixel by pixel: ",
    blank: "1 label is blank, nothing but road, ",
    outline: "The class 1 (tree) is made of pixels that touch ignored ones: ",
    near_copy: "1 pair of pictures of different splits are nearly the same (at most 40 of 255 bits ",
    odd_size: "1 picture is more than three times as large or as small as most, measured along a side: ",
    dark: "The pictures of 16 bits use no value above 3839 of 65535, so they are read nearly black",
    pages: "1 picture has several pages or frames, of which the first is read: ",
    turned_label: "1 label is turned upright when read, as the EXIF orientation says, ",
    counts: "dataset.yaml speaks of 5 train pictures, but there are 4.",
}


@pytest.mark.parametrize("oddity", WARNINGS, ids=lambda oddity: oddity.__name__)
def test_warnings(prepared, oddity):
    oddity(prepared)
    report = check(prepared)
    assert report.errors == [] and len(report.warnings) == 1
    assert report.warnings[0].startswith(WARNINGS[oddity])


def test_one_class_cannot_be_learned(prepared):
    relabel(prepared, lambda label: np.where(label == 1, 1, 255).astype(np.uint8))
    assert any(
        "All labelled pixels are of one class, tree: there is nothing to learn" in text
        for text in check(prepared).warnings
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [None, COLOURS])
def test_labels_of_few_bits_are_read_as_stored(prepared, bits, palette):
    """OpenCV 5.0 and Pillow 13.0 stretch grey values to 0 to 255: class 1 of 1 bit was ignored."""
    drawn = {}
    for path in prepared.glob("*/labels/*.png"):
        drawn[path] = np.random.default_rng(len(drawn)).integers(0, min(2**bits, 3), (50, 60))
        path.write_bytes(png(drawn[path], bits, palette and palette[: 2**bits]))
    assert check(prepared).errors == []
    for split in ("train", "val"):
        dataset = SegmentationFolder(prepared, split)
        predictions = Predictions(prepared / split / "labels", dataset)
        for index, name in enumerate(dataset.names):
            expected = drawn[prepared / split / "labels" / f"{name}.png"]
            assert np.array_equal(dataset[index].label, expected)
            assert np.array_equal(predictions.read(name, expected.shape), expected)


def test_suffixes_in_whatever_case(prepared):
    for path in prepared.glob("train/*/*"):
        path.rename(path.with_suffix(path.suffix.upper()))
    assert len(SegmentationFolder(prepared)) == 4
    assert check(prepared).errors == []


def test_many_ids_are_summed_up(prepared):
    relabel(prepared, lambda label: np.random.default_rng(0).integers(0, 250, label.shape, dtype=np.uint8))
    errors = check(prepared).errors
    assert len(errors) == 12 and "237 more ids are outside the classes, up to 249" in errors[10]


TURNS = {
    "mirrored left to right": np.fliplr,
    "mirrored top to bottom": np.flipud,
    "turned by 180 degrees": lambda label: np.rot90(label, 2),
    "turned by 90 degrees to the left": np.rot90,
    "turned by 90 degrees to the right": lambda label: np.rot90(label, -1),
    "transposed": np.transpose,
    "mirrored and turned by 90 degrees": lambda label: np.fliplr(np.rot90(label)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_labels_turned_against_their_pictures(turn):
    """What must be done to the label is told; it undoes what was done."""
    undone = {"turned by 90 degrees to the left": -1, "turned by 90 degrees to the right": 1}
    sides = (96, 96) if "90" in turn or turn == "transposed" else (96, 128)
    found = []
    for _, image, label in SyntheticScenes(8, sides, seed=3):
        grey = image.mean(axis=2, dtype=np.float32)
        assert better_turned(grey, label) is None
        wrong = np.rot90(label, undone[turn]) if turn in undone else TURNS[turn](label)
        found.append(better_turned(grey, wrong))
    assert found.count(turn) >= 4 and set(found) <= {turn, None}


def test_copies_are_near_and_other_pictures_are_not():
    """Half and twice the size, JPEG of low quality, brighter; all pairs of other pictures are far."""
    scenes = [scene.image for scene in SyntheticScenes(12, (96, 128))]

    def hashed(image):
        return perceptual_hash(image.mean(axis=2, dtype=np.float32))

    def copies(image):
        yield cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA)
        yield cv2.resize(image, (256, 192))
        yield cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR)
        yield np.minimum(image * 1.2 + 10, 255).astype(np.uint8)

    hashes = [hashed(image) for image in scenes] + [hashed(copy) for image in scenes for copy in copies(image)]
    groups = ["train"] * 12 + ["val"] * 48
    pairs = set(near_duplicates(np.array(hashes), np.array(groups)))
    assert pairs == {(index, 12 + 4 * index + copy) for index in range(12) for copy in range(4)}
    assert perceptual_hash(np.full((40, 50), 7, np.float32)) is None


@pytest.mark.parametrize("name", ["animals", "idd_lite"])
@pytest.mark.slow
def test_real_data_mirrored_and_not(name, tmp_path):
    folder = Path(__file__).parents[3] / "shared/data" / name
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    source, options = [folder], {}
    if name == "animals":
        source = [folder / "images", folder / "labels"]
        options = {kind: folder / f"{kind.removesuffix('_list')}.txt" for kind in ("train_list", "val_list")}
        options |= {"class_file": folder / "classes.txt", "ignore": [str(value) for value in range(1, 21)]}
        options["ignore"] = [value for value in options["ignore"] if value not in ["8", "10", "12", "13", "15", "17"]]
    prepare_folder(source, tmp_path / "data", **options)
    report = check(tmp_path / "data")
    assert report.errors == []
    assert report.warnings == []
    for path in (tmp_path / "data/val/labels").iterdir():
        path.write_bytes(png(np.flipud(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)), 8))
    told = " ".join(check(tmp_path / "data").warnings)
    found = re.search(r"(\d+) of \d+ labels fit their pictures better when mirrored top to bottom", told)
    assert found and int(found[1]) > 0.9 * report.pictures["val"]


def test_training_refuses_to_start(prepared):
    one_id(prepared)
    with pytest.raises(UserError, match=r"train/labels/2\.png has the id 9"):
        verify_labels(prepared)


@pytest.mark.parametrize(
    ("mistake", "complaint"),
    [
        (truncated, "val/images/0.jpg is truncated"),
        (other_size, "train/images/1.jpg is 60x50 but its label .*1.png is 60x49"),
        (wide_label, "has 16 bits"),
        (no_label, "has no label"),
        (no_split, "There is no folder"),
    ],
)
def test_training_refuses_other_mistakes(prepared, mistake, complaint):
    mistake(prepared)
    with pytest.raises(UserError, match=complaint):
        verify_labels(prepared)


def test_no_prepared_folder(tmp_path):
    with pytest.raises(UserError, match="not a prepared folder"):
        check(tmp_path)
