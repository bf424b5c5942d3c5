"""Masks of several classes a pixel: whatever their form, the same bits arrive, and predictions are read back."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cssformer.data import IGNORE, DatasetInfo, SegmentationFolder
from cssformer.data.check import check
from cssformer.inference.prediction import Prediction
from cssformer.prepare.coco import read as read_coco
from cssformer.prepare.export import prepare_export
from cssformer.prepare.folder import prepare_folder
from cssformer.utils.errors import UserError

CLASSES = ("exudates", "haemorrhages", "optic disc")


def write(path: Path, mask: np.ndarray, form: str = "255") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.where(mask, 255, 0).astype(np.uint8)
    if form == "palette":
        picture = Image.fromarray(mask.astype(np.uint8), mode="P")
        picture.putpalette([0, 0, 0, 200, 30, 30])
    elif form == "red":
        picture = Image.fromarray(np.dstack([grey, grey * 0, grey * 0]))
    elif form == "see-through":
        picture = Image.fromarray(np.dstack([grey, grey, grey, grey]))
    else:
        picture = Image.fromarray(np.minimum(grey, int(form)), mode="L")
    picture.save(path)


def source(root: Path, masks: np.ndarray, form: str = "255", names: tuple[str, ...] = CLASSES) -> list[Path]:
    """Pictures and masks (n, C, H, W) bool; a class that is not in a picture has no mask there, but in the first."""
    for number, of_picture in enumerate(masks):
        write(root / "pictures" / f"{number}.png", np.random.default_rng(number).random(of_picture.shape[1:]) < 0.5)
        for name, mask in zip(names, of_picture, strict=True):
            if mask.any() or number == 0:
                write(root / "masks" / name / f"{number}.png", mask, form)
    return [root / "pictures", root / "masks"]


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    return {sample.name: sample.label for split in ("train", "val") for sample in SegmentationFolder(folder, split)}


def drawn(seed: int, count: int = 3, classes: int = 3) -> np.ndarray:
    masks = np.random.default_rng(seed).random((count, classes, 7, 9)) < 0.3
    masks[:, 0] |= ~masks.any(axis=(1, 2, 3))[:, None, None]
    return masks


@settings(max_examples=12)
@given(st.integers(0, 999), st.integers(1, 15), st.sampled_from(["255", "1", "76", "palette", "red", "see-through"]))
def test_every_form_of_masks_arrives_as_the_same_bits(tmp_path_factory, seed: int, classes: int, form: str) -> None:
    root = tmp_path_factory.mktemp("data")
    masks, names = drawn(seed, classes=classes), tuple(f"{number:02d}" for number in range(classes))
    behind = "background" if form == "see-through" else None
    found = prepare_folder(source(root, masks, form, names), root / "out", multilabel=True, transparent=behind)
    assert found.info == DatasetInfo.load(root / "out")
    assert found.info.multilabel and found.info.classes == names
    for name, label in labels_of(root / "out").items():
        np.testing.assert_array_equal(label, (masks[int(name)] * (1 << np.arange(classes))[:, None, None]).sum(0))


def test_predictions_are_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fields = rng.integers(0, 8, (3, 12, 15)).astype(np.int32)
    fields[0, :3], fields[1] = IGNORE, 0
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    for number, field in enumerate(fields):
        write(tmp_path / "pictures" / f"{number}.png", rng.random(field.shape) < 0.5)
        picture = np.zeros((*field.shape, 3), np.uint8)
        Prediction(picture, field, None, CLASSES, colours, multilabel=True).save_masks(tmp_path / "out", str(number))
    sources = [tmp_path / "pictures", tmp_path / "out"]
    with pytest.raises(UserError, match="Masks of the class exudates: .*0.png is transparent in places"):
        prepare_folder(sources, tmp_path / "data", multilabel=True)
    found = prepare_folder(sources, tmp_path / "data", multilabel=True, transparent="ignore")
    assert "What is transparent in masks of exudates is ignored." in found.notes
    labels = labels_of(tmp_path / "data")
    assert all((labels[str(number)] == field).all() for number, field in enumerate(fields))
    assert check(tmp_path / "data").errors == []


def test_suffixes_lists_order_and_checksums(tmp_path: Path) -> None:
    masks = drawn(1)
    for number, of_picture in enumerate(masks):
        write(tmp_path / "pictures" / f"IDRiD_0{number}.png", of_picture[0])
        for name, suffix, mask in zip(CLASSES, ("EX", "HE", "OD"), of_picture, strict=True):
            write(tmp_path / "masks" / name / f"IDRiD_0{number}_{suffix}.png", mask)
    sources = [tmp_path / "pictures", tmp_path / "masks"]
    found = prepare_folder(sources, tmp_path / "out", multilabel=True, classes=["optic disc", "exudates"])
    assert found.info.classes == ("optic disc", "exudates")
    assert len((tmp_path / "out" / "sources.sha256").read_text().splitlines()) == 3 * 3
    labels = labels_of(tmp_path / "out")
    # Of the pictures listed none has this class.
    (tmp_path / "masks" / "exudates" / "IDRiD_00_EX.png").unlink()
    (tmp_path / "masks" / "exudates" / "IDRiD_01_EX.png").unlink()
    for split, name in (("train", "IDRiD_00"), ("val", "IDRiD_01")):
        (tmp_path / split).write_text(name)
    lists = {"train_list": tmp_path / "train", "val_list": tmp_path / "val"}
    fewer = prepare_folder(sources, tmp_path / "fewer", multilabel=True, **lists)
    assert "2 pictures without a mask of some class, which is taken as not there." in fewer.notes
    assert all((label & 1 == 0).all() for label in labels_of(tmp_path / "fewer").values())
    for name, label in labels.items():
        mask = masks[int(name[-1])]
        np.testing.assert_array_equal(label, mask[2] * 1 + mask[0] * 2)


@pytest.mark.parametrize("seed", range(3))
def test_validation_has_of_a_rare_class_and_training_keeps_it(tmp_path: Path, seed: int) -> None:
    masks = np.zeros((12, 3, 7, 9), bool)
    masks[:, 0, :3] = masks[[4, 9], 1, 2:5] = masks[7, 2, 1:3] = True
    found = prepare_folder(source(tmp_path, masks), tmp_path / "out", multilabel=True, val_share=0.2, seed=seed)
    drawn = set(SegmentationFolder(tmp_path / "out", "val").names)
    assert len(drawn) == 2 and len(drawn & {"4", "9"}) == 1 and "7" not in drawn
    assert any("without a score: optic disc; give" in note for note in found.notes)


@pytest.mark.parametrize(
    ("spoil", "words", "sentence"),
    [
        (
            lambda root: None,
            {"classes": ["exudate"]},
            "no folder .*exudate with masks of the class; there are exudates,",
        ),
        (lambda root: None, {"classes": [CLASSES[1], CLASSES[1]]}, "differ in case at most"),
        (lambda root: (root / "masks").rename(root / "train"), {}, "no folder"),
        (lambda root: (root / "masks" / "optic disc").rename(root / "masks" / "train"), {}, "has the folder train"),
        (lambda root: write(root / "masks" / CLASSES[0] / "x.png", np.eye(4)), {}, "x.png has no picture"),
        (
            lambda root: write(root / "masks" / CLASSES[0] / "0.png", np.eye(4)),
            {},
            "they must (be alike|have the same)",
        ),
        (
            lambda root: Image.fromarray(np.arange(63, dtype=np.uint8).reshape(7, 9) % 3).save(
                root / "masks" / CLASSES[1] / "0.png"
            ),
            {},
            "Masks of the class haemorrhages: 2 classes are named, but the masks have",
        ),
        (lambda root: None, {"class_file": Path("classes.txt")}, "no class file"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(tmp_path: Path, spoil, words: dict, sentence: str) -> None:
    sources = source(tmp_path, drawn(0))
    (tmp_path / "classes.txt").write_text("a\n")
    spoil(tmp_path)
    words = {key: tmp_path / value if isinstance(value, Path) else value for key, value in words.items()}
    with pytest.raises(UserError, match=sentence):
        prepare_folder(sources, tmp_path / "out", multilabel=True, **words)
    assert not (tmp_path / "out").exists()


def test_sixteen_classes_are_too_many(tmp_path: Path) -> None:
    names = tuple(f"c{number}" for number in range(16))
    with pytest.raises(UserError, match="16 classes, but multi-label data have 15 at most"):
        prepare_folder(source(tmp_path, drawn(0, classes=16), names=names), tmp_path / "out", multilabel=True)


def test_overlapping_shapes_are_kept(tmp_path: Path) -> None:
    squares = {"car": [0, 0, 6, 0, 6, 6, 0, 6], "dirt": [3, 3, 9, 3, 9, 9, 3, 9], "frame": [0, 9, 10, 9, 10, 10, 0, 10]}
    images = [{"id": number, "file_name": f"{number}.png", "width": 10, "height": 10} for number in range(2)]
    categories = [{"id": number, "name": name} for number, name in enumerate(squares, 1)]
    annotations = [
        {
            "id": 10 * image + category,
            "image_id": image,
            "category_id": category,
            "segmentation": [square],
            "iscrowd": 0,
        }
        for image in range(2)
        for category, square in enumerate(squares.values(), 1)
    ]
    for image in images:
        write(tmp_path / str(image["file_name"]), np.eye(10))
    told = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "coco.json").write_text(json.dumps(told))
    found = prepare_export(read_coco, [tmp_path], tmp_path / "out", overlap="keep", ignore=["frame"])
    assert found.info.multilabel and found.info.classes == ("car", "dirt")
    expected = np.zeros((10, 10), int)
    expected[:6, :6], expected[9] = 1, IGNORE
    expected[3:9, 3:9] += 2
    assert all((label == expected).all() for label in labels_of(tmp_path / "out").values())
    with pytest.raises(UserError, match="leave out unlabeled"):
        prepare_export(read_coco, [tmp_path], tmp_path / "other", overlap="keep", unlabeled="ignore")


def test_check_counts_classes_and_names_strange_values(tmp_path: Path) -> None:
    prepare_folder(source(tmp_path, masks := drawn(2)), tmp_path / "out", multilabel=True)
    report = check(tmp_path / "out")
    assert report.errors == []
    learnt = [int(path.stem) for path in (tmp_path / "out" / "train" / "labels").iterdir()]
    np.testing.assert_allclose(report.shares, masks[learnt].mean(axis=(0, 2, 3)))
    (label, *_) = (tmp_path / "out" / "train" / "labels").iterdir()
    field = np.zeros((7, 9), np.uint16)
    field[0, 0] = 8
    Image.fromarray(field).save(label)
    assert any("The id 8 is outside the bit fields 0 to 7" in each for each in check(tmp_path / "out").errors)
    with pytest.raises(UserError, match="has the id 8, but those of the dataset are 0 to 7 and 65535"):
        labels_of(tmp_path / "out")


def one_hot(root: Path, masks: np.ndarray, suffix: str, last: bool, values: str) -> list[Path]:
    """Pictures and a file for each of the masks (n, C, H, W) bool."""
    for number, of_picture in enumerate(masks):
        write(root / "pictures" / f"{number}.png", np.random.default_rng(number).random(of_picture.shape[1:]) < 0.5)
        (root / "masks").mkdir(exist_ok=True)
        path = root / "masks" / f"{number}_mask{suffix}"
        bands = of_picture.astype(values) * (1 if values == "bool" else 255)
        if suffix == ".npy":
            np.save(path, np.moveaxis(bands, 0, -1) if last else bands)
        else:
            rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
            size = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
            with rasterio.open(path, "w", driver="GTiff", dtype=bands.dtype, nodata=0, **size) as file:
                file.write(bands)
    return [root / "pictures", root / "masks"]


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
@pytest.mark.parametrize("classes", [1, 3, 7])
@pytest.mark.parametrize(
    ("suffix", "last", "values"),
    [(".npy", True, "bool"), (".npy", False, "float32"), (".npy", True, "int64"), (".tif", False, "uint8")],
)
def test_one_hot_files_are_read(tmp_path: Path, classes: int, suffix: str, last: bool, values: str) -> None:
    # Pictures are as high as there are classes, so that the picture's size tells the axis.
    masks = drawn(1, classes=classes)
    masks[2] = False
    names = [f"class {number}" for number in range(classes)]
    prepare_folder(one_hot(tmp_path, masks, suffix, last, values), tmp_path / "out", classes=names, multilabel=True)
    for name, label in labels_of(tmp_path / "out").items():
        np.testing.assert_array_equal(label, (masks[int(name)] * (1 << np.arange(classes))[:, None, None]).sum(0))


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((7, 9), np.uint8), r"0_mask.npy is an array of uint8 \(7, 9\), without a band for each of 3 classes"),
        (np.zeros((4, 7, 9), np.uint8), r"of uint8 \(4, 7, 9\), without a band"),
        (np.full((3, 7, 9), np.nan), "0_mask.npy holds nan; bands are 0"),
        (np.linspace(0, 1, 189).reshape(3, 7, 9), "0_mask.npy holds 0.0, 0.005"),
        (np.full((3, 8, 9), 1), r"0.png is 9x7 but its mask .*0_mask.npy is 9x8"),
        (b"no array", "0_mask.npy cannot be read as NumPy's array"),
        (np.full((3, 7, 9), None), "0_mask.npy cannot be read as NumPy's array"),
    ],
)
def test_files_that_are_not_one_hot_are_refused(tmp_path: Path, array: np.ndarray | bytes, told: str) -> None:
    sources = one_hot(tmp_path, drawn(0), ".npy", True, "uint8")
    with pytest.raises(UserError, match="name their classes in order with --classes"):
        prepare_folder(sources, tmp_path / "out", multilabel=True)
    path = tmp_path / "masks" / "0_mask.npy"
    path.write_bytes(array) if isinstance(array, bytes) else np.save(path, array)
    with pytest.raises(UserError, match=told):
        prepare_folder(sources, tmp_path / "out", classes=list(CLASSES), multilabel=True)
    assert not (tmp_path / "out").exists()
