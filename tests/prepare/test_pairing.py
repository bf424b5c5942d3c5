"""Which mask belongs to which picture: layouts as people have them."""

import pytest

from cssformer.prepare.pairing import find_pairs
from cssformer.utils.errors import UserError


def pair(root, files, two=False, **suffixes):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    found = find_pairs(*((root / "A", root / "B") if two else (root,)), **suffixes)
    pairs = {
        (each.split, each.name): each.label and each.label.relative_to(root).as_posix()
        for each in sorted(found.pairs, key=lambda each: each.name)
    }
    return pairs, found


LAYOUTS = {
    "IDD": (
        [
            *("leftImg8bit/train/1/a_image.jpg", "gtFine/train/1/a_label.png"),
            *("leftImg8bit/val/2/b_image.jpg", "gtFine/val/2/b_label.png"),
        ],
        {("train", "1__a"): "gtFine/train/1/a_label.png", ("val", "2__b"): "gtFine/val/2/b_label.png"},
    ),
    "two folders": (
        ["images/a.jpg", "masks/a.png", "images/b.jpg", "masks/b.png"],
        {(None, "a"): "masks/a.png", (None, "b"): "masks/b.png"},
    ),
    "mixed extensions": (
        ["images/a.jpg", "masks/a.png", "images/b.png", "masks/b.png", "images/c.JPG", "masks/c.png"],
        {(None, "a"): "masks/a.png", (None, "b"): "masks/b.png", (None, "c"): "masks/c.png"},
    ),
    "suffix": (
        ["images/a_1.jpg", "masks/a_1_mask.png", "images/a_2.jpg", "masks/a_2_mask.png"],
        {(None, "a_1"): "masks/a_1_mask.png", (None, "a_2"): "masks/a_2_mask.png"},
    ),
    "one folder": (
        ["a.jpg", "a_mask.png", "b.jpg", "b_mask.png"],
        {(None, "a"): "a_mask.png", (None, "b"): "b_mask.png"},
    ),
    "CamVid, one folder": (["a.png", "a_L.png", "b.png", "b_L.png"], {(None, "a"): "a_L.png", (None, "b"): "b_L.png"}),
    "whole name and suffix": (
        ["a.png", "a.png.mask.png", "b.png", "b.png.mask.png"],
        {(None, "a"): "a.png.mask.png", (None, "b"): "b.png.mask.png"},
    ),
    "CamVid, split folders": (
        ["train/a.png", "train_labels/a_L.png", "val/b.png", "val_labels/b_L.png"],
        {("train", "a"): "train_labels/a_L.png", ("val", "b"): "val_labels/b_L.png"},
    ),
    "prefixes": (
        ["images/image_0001.png", "masks/gt_0001.png", "images/image_0002.png", "masks/gt_0002.png"],
        {(None, "image_0001"): "masks/gt_0001.png", (None, "image_0002"): "masks/gt_0002.png"},
    ),
    "prefixes in one folder": (
        ["img1.jpg", "mask1.png", "img2.jpg", "mask2.png", "img3.jpg"],
        {(None, "img1"): "mask1.png", (None, "img2"): "mask2.png", (None, "img3"): None},
    ),
    "prefixes of pictures alone": (
        ["images/frame-7.jpg", "labels/label-7.png", "images/frame-77.jpg", "labels/label-77.png"],
        {(None, "frame-7"): "labels/label-7.png", (None, "frame-77"): "labels/label-77.png"},
    ),
    "SegNet": (["train/a.png", "trainannot/a.png"], {("train", "a"): "trainannot/a.png"}),
    "VOC": (
        ["JPEGImages/2007_01.jpg", "SegmentationClass/2007_01.png", "SegmentationObject/2007_01.png"],
        {(None, "2007_01"): "SegmentationClass/2007_01.png"},
    ),
    "ADE20K": (
        [
            *("images/training/a.jpg", "annotations/training/a.png"),
            *("images/validation/b.jpg", "annotations/validation/b.png"),
        ],
        {("train", "a"): "annotations/training/a.png", ("val", "b"): "annotations/validation/b.png"},
    ),
    "test without masks": (
        ["images/train/a.jpg", "masks/train/a.png", "images/test/z.jpg"],
        {("train", "a"): "masks/train/a.png", ("test", "z"): None},
    ),
    "hidden files": (["images/a.jpg", "masks/a.png", "images/._a.jpg", ".cache/a.png"], {(None, "a"): "masks/a.png"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    files, expected = LAYOUTS[layout]
    pairs, found = pair(tmp_path, files)
    assert pairs == expected and not found.lonely_masks


def test_two_sources(tmp_path):
    pairs, _ = pair(tmp_path, ["A/s/a.jpg", "B/s/a.png", "A/t/a.jpg", "B/t/a.png"], two=True)
    assert pairs == {(None, "s__a"): "B/s/a.png", (None, "t__a"): "B/t/a.png"}


CITYSCAPES = [
    "leftImg8bit/train/x/x_1_leftImg8bit.png",
    "gtFine/train/x/x_1_gtFine_color.png",
    "gtFine/train/x/x_1_gtFine_labelIds.png",
]


def test_several_kinds_of_masks_are_not_guessed(tmp_path):
    with pytest.raises(UserError, match=r"_gtFine_color\.png, _gtFine_labelIds\.png"):
        pair(tmp_path, CITYSCAPES)
    pairs, found = pair(tmp_path, CITYSCAPES, label_suffix="_gtFine_labelIds.png")
    assert pairs == {("train", "x__x_1"): CITYSCAPES[2]}
    assert found.suffixes == [("_leftImg8bit.png", "_gtFine_labelIds.png")]


def test_neighbours_are_never_paired(tmp_path):
    # Picture 1 has no mask and mask 2 has no picture: they must not become a pair.
    files = ["images/f_0.jpg", "masks/f_0.png", "images/f_3.jpg", "masks/f_3.png", "images/f_1.jpg", "masks/f_2.png"]
    pairs, found = pair(tmp_path, files)
    assert pairs[None, "f_1"] is None
    assert [path.name for path in found.lonely_masks] == ["f_2.png"]


def test_a_picture_of_another_kind_is_not_overlooked(tmp_path):
    pairs, _ = pair(tmp_path, ["images/a.jpg", "masks/a.png", "images/b.jpg", "masks/b.png", "images/odd.bmp"])
    assert pairs[None, "odd"] is None


def test_given_suffixes_select(tmp_path):
    files = ["x/a_rgb.png", "x/a_ids.png", "x/a_depth.png"]
    pairs, found = pair(tmp_path, files, image_suffix="_rgb.png", label_suffix="_ids.png")
    assert pairs == {(None, "x__a"): "x/a_ids.png"} and not found.lonely_masks


def test_nothing_to_pair(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        find_pairs(tmp_path / "nowhere")
    (tmp_path / "scene.tif").touch()
    with pytest.raises(UserError, match="is a file; give its folder"):
        find_pairs(tmp_path / "scene.tif")
    (tmp_path / "scene.tif").unlink()
    with pytest.raises(UserError, match="holds no pictures"):
        find_pairs(tmp_path)
    with pytest.raises(UserError, match="named like it"):
        pair(tmp_path, ["foo/1.jpg", "bar/1.png"])


def test_pictures_of_every_suffix_through_links(tmp_path):
    """One rule of what a picture is, for preparation, prediction and data sets; linked folders are entered."""
    names = ("a.JPG", "b.jfif", "c.jp2", "d.avif", "e.GIF", "._f.jpg", "g.txt")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "images").symlink_to(tmp_path / "elsewhere")
    found, _ = pair(tmp_path / "in", [f"images/{name}" for name in names] + [f"masks/{stem}.png" for stem in "abcde"])
    assert found == {(None, stem): f"masks/{stem}.png" for stem in "abcde"}
    with pytest.raises(UserError, match="named like it"):
        pair(tmp_path, ["foo/1.png", "bar/2.png"], image_suffix=".png", label_suffix=".png")


def test_prefixes_with_the_suffixes_given(tmp_path):
    files = ["A/image_0001.png", "B/gt_0001.png", "A/image_0002.png", "B/gt_0002.png"]
    pairs, _ = pair(tmp_path, files, two=True, image_suffix=".png", label_suffix=".png")
    assert pairs == {(None, "image_0001"): "B/gt_0001.png", (None, "image_0002"): "B/gt_0002.png"}


@pytest.mark.parametrize("second", ["masks/a.tif", "labels/a.png"])
def test_two_masks_of_one_picture_are_told(tmp_path, second):
    with pytest.raises(UserError, match=r"may both be the mask of one picture"):
        pair(
            tmp_path, ["images/a.jpg", "masks/a.png", "images/b.jpg", "masks/b.png", second, second.replace("a.", "b.")]
        )


def test_links_to_files_and_folders(tmp_path):
    """Also in a circle, and the source itself."""
    for name in ("store/images/a.jpg", "store/masks/a.png", "in/val/images/b.jpg", "in/val/masks/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/train").symlink_to(tmp_path / "store")
    (tmp_path / "store/again").symlink_to(tmp_path / "in")
    (tmp_path / "in/val/images/c.jpg").symlink_to(tmp_path / "store/images/a.jpg")
    (tmp_path / "in/val/masks/c.png").symlink_to(tmp_path / "store/masks/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for root in ("in", "link"):
        found = find_pairs(tmp_path / root)
        assert {(each.split, each.name) for each in found.pairs if "again" not in each.folders} == {
            *(("train", "a"), ("val", "b"), ("val", "c"))
        }
        assert all(each.label for each in found.pairs)
