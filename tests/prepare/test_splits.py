"""`prepare folder`: which picture goes to which split, by a draw or by lists."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cssformer.data import SegmentationFolder
from cssformer.prepare.folder import prepare_folder
from cssformer.prepare.splits import draw_validation
from cssformer.utils.errors import UserError
from tests.prepare.test_folder import random_labels, source


def sequences(root: Path, lengths: dict[str, int]) -> Path:
    for name, length in lengths.items():
        source(root / name, [np.zeros((4, 4), int)] * length)
        for index in range(length):
            for kind in ("images", "masks"):
                target = root / kind / name / f"{index}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                (root / name / kind / f"{index}.png").rename(target)
    return root


@given(st.lists(st.integers(1, 6), min_size=2, max_size=8), st.floats(0.05, 0.5), st.integers(0, 100))
@settings(max_examples=15)
def test_drawn_split_keeps_folders_together(tmp_path_factory, lengths, share, seed):
    root = tmp_path_factory.mktemp("split")
    sequences(root / "in", {f"s{index}": length for index, length in enumerate(lengths)})
    prepared = [prepare_folder([root / "in"], root / out, val_share=share, seed=seed) for out in ("a", "b")]
    splits = {split: SegmentationFolder(root / "a", split).names for split in ("train", "val")}
    folders = {split: {name.split("__")[0] for name in names} for split, names in splits.items()}
    assert not folders["train"] & folders["val"]
    assert len(splits["train"]) + len(splits["val"]) == sum(lengths)
    assert abs(len(splits["val"]) - share * sum(lengths)) <= max(lengths)
    assert SegmentationFolder(root / "b", "val").names == splits["val"]
    assert prepared[0].info == prepared[1].info


@pytest.mark.parametrize("seed", range(6))
def test_a_large_folder_is_not_drawn_for_a_small_share(seed):
    items = [("large", number) for number in range(90)] + [("small", number) for number in range(90, 100)]
    assert draw_validation(items, 0.1, seed)[0] == set(range(90, 100))
    # Where every folder is too large, the smallest.
    assert draw_validation(items, 0.01, seed)[0] == set(range(90, 100))


def test_pictures_of_one_folder_are_drawn_singly(tmp_path):
    root = source(tmp_path / "in", random_labels(0, 2, count=20))
    prepared = prepare_folder([root], tmp_path / "out", val_share=0.25)
    assert prepared.info.counts == {"train": 15, "val": 5} and "only one folder" in prepared.split


@given(st.integers(0, 10_000))
@settings(max_examples=40)
def test_rare_classes_come_to_validation_and_none_leaves_training(seed):
    """Of 20 pictures two have the class 5, one of them with the class 6, which no other has."""
    classes = {number: {0, 1 + number % 4} for number in range(20)}
    classes[3] |= {5}
    classes[11] |= {5, 6}
    items = [("one folder", number) for number in classes]
    drawn, _ = draw_validation(items, 0.1, seed, classes)
    assert len(drawn) == 2 and 3 in drawn and 11 not in drawn
    drawn, _ = draw_validation(items, 0.2, seed, classes)
    # Four pictures are enough for the four that stand in five pictures each.
    assert len(drawn) == 4 and set().union(*(classes[each] for each in drawn)) == {0, 1, 2, 3, 4, 5}
    # Folders stay whole: of the two the one without 6.
    drawn, _ = draw_validation([(number % 10, number) for number in classes], 0.1, seed, classes)
    assert drawn == {3, 13}


@pytest.mark.parametrize("seed", range(6))
def test_classes_that_all_have_change_no_draw(seed):
    items = [("one folder", number) for number in range(30)]
    every = {number: {0, 1} for number in range(30)}
    assert draw_validation(items, 0.2, seed, every) == draw_validation(items, 0.2, seed)


def test_a_class_of_one_picture_trains_and_is_told(tmp_path):
    labels = [np.array([[0, 1 + (index == 4) + 2 * (index in (7, 8))]]) for index in range(20)]
    root = source(tmp_path / "in", labels)
    prepared = prepare_folder([root], tmp_path / "out", classes=["ground", "road", "lamp", "tree"])
    names = SegmentationFolder(tmp_path / "out", "val").names
    assert len(names) == 2 and "4" not in names and {"7", "8"} & {*names}
    (note,) = prepared.notes
    assert note.startswith("Classes without a validation picture, and so without a score: lamp; give more pictures")
    # Lists are taken as they are.
    (tmp_path / "train.txt").write_text("7\n0\n")
    (tmp_path / "val.txt").write_text("4\n1\n")
    lists = {"train_list": tmp_path / "train.txt", "val_list": tmp_path / "val.txt"}
    prepare_folder([root], tmp_path / "listed", classes=["ground", "road", "lamp", "tree"], **lists)
    assert SegmentationFolder(tmp_path / "listed", "val").names == ["1", "4"]


def test_lists_decide_the_split(tmp_path):
    root = source(tmp_path / "in", random_labels(0, 2, count=5))
    (tmp_path / "train.txt").write_text("0\nimages/1.png masks/1.png\n\n")
    (tmp_path / "val.txt").write_text("3.png\n")
    lists = {"train_list": tmp_path / "train.txt", "val_list": tmp_path / "val.txt"}
    prepare_folder([root], tmp_path / "out", **lists)
    assert SegmentationFolder(tmp_path / "out", "train").names == ["0", "1"]
    assert SegmentationFolder(tmp_path / "out", "val").names == ["3"]
    (tmp_path / "val.txt").write_text("1\n")
    with pytest.raises(UserError, match="more than one list"):
        prepare_folder([root], tmp_path / "other", **lists)
    (tmp_path / "val.txt").write_text("77\n")
    with pytest.raises(UserError, match="line 1: 77 is no picture"):
        prepare_folder([root], tmp_path / "other", **lists)


@pytest.mark.parametrize(
    "line", ["images\\{}.png", "in\\images\\{}.png masks\\{}.png", "{}.png,{}_mask.png", '"{}.png";x', "{}\t{}.png"]
)
def test_lists_of_other_programs(tmp_path, line):
    root = source(tmp_path / "in", random_labels(0, 2, count=3))
    (tmp_path / "train.txt").write_text("\n".join(line.format(name, name) for name in (0, 2)))
    (tmp_path / "val.txt").write_text(line.format(1, 1))
    prepare_folder([root], tmp_path / "out", train_list=tmp_path / "train.txt", val_list=tmp_path / "val.txt")
    assert SegmentationFolder(tmp_path / "out", "train").names == ["0", "2"]


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="this system has no paths of open files")
def test_a_list_may_be_what_a_command_writes(tmp_path):
    root, (end, begin) = source(tmp_path / "in", random_labels(0, 2, count=3)), os.pipe()
    os.write(begin, b"2\n")
    os.close(begin)
    (tmp_path / "val.txt").write_text("1\n")
    prepare_folder([root], tmp_path / "out", train_list=Path(f"/dev/fd/{end}"), val_list=tmp_path / "val.txt")
    os.close(end)
    assert SegmentationFolder(tmp_path / "out", "train").names == ["2"]


def test_a_name_twice_in_one_list(tmp_path):
    root = source(tmp_path / "in", random_labels(0, 2, count=3))
    (tmp_path / "train.txt").write_text("0\n1\n0\n")
    with pytest.raises(UserError, match=r"0\.png is twice in the train list; leave it there once"):
        prepare_folder([root], tmp_path / "out", train_list=tmp_path / "train.txt")


def test_lists_of_names_with_spaces(tmp_path):
    root = source(tmp_path / "in", random_labels(0, 2, count=3))
    for path in root.glob("*/*.png"):
        path.rename(path.with_stem(f"my street {path.stem}"))
    (tmp_path / "train.txt").write_text("my street 0.png\nimages/my street 1.png\n")
    (tmp_path / "val.txt").write_text("my street 2\n")
    prepare_folder([root], tmp_path / "out", train_list=tmp_path / "train.txt", val_list=tmp_path / "val.txt")
    assert SegmentationFolder(tmp_path / "out", "train").names == ["my street 0", "my street 1"]
