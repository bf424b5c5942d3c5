"""PASCAL Context (https://cs.stanford.edu/~roozbeh/pascal-context): all pixels of the pictures of VOC2010.

``VOCtrainval_03-May-2010.tar`` holds the pictures ``VOCdevkit/VOC2010/JPEGImages/*.jpg`` and the official split,
``ImageSets/Main/{train,val}.txt``. The labels come in two forms, of which one is enough:

- ``trainval.tar.gz`` holds ``trainval/*.mat``, whose variable ``LabelMap`` has 459 labels, 1 to 459 (``labels.txt``);
- ``59_context_labels.tar.gz`` holds PNGs of the 59 most frequent ones, 1 to 59 (``59_labels.txt``); 0 is all others.

What is none of the 59 is ignored, or, with 60 classes, is the first class, ``background``. Papers report either; the
mean IoU over 60 is about 5 points lower than that over 59.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cssformer.data.image_io import read_ids
from cssformer.prepare.archives import Member
from cssformer.prepare.benchmark import Benchmark, Part, full_name, read_splits
from cssformer.prepare.matlab import read_label_map, read_mat

PICTURES = "VOCtrainval_03-May-2010.tar"
LISTS = {"train": "ImageSets/Main/train.txt", "val": "ImageSets/Main/val.txt"}
_NAME = r"/(?P<name>\d{4}_\d{6})"
_PICTURE, _MAT = re.compile(rf"{_NAME}\.jpg$"), re.compile(rf"{_NAME}\.mat$")
# The archive of the pictures has PNGs of its own, of VOC's 20 classes.
_PNG = re.compile(rf"/59_context_labels[^/]*(?:/[^/]+)*{_NAME}\.png$")
_OTHER_YEAR = re.compile(r"/VOC20(?!10)\d\d/")

# In the order of 59_labels.txt (which calls table diningtable, cloth clothes, and bedclothes bedcloth), with each one's
# id among the 459. The first 20 are the classes of VOC.
_LABELS = """
    aeroplane 2, bicycle 23, bird 25, boat 31, bottle 34, bus 45, car 59, cat 65, chair 72, cow 98, table 397, dog 113,
    horse 207, motorbike 258, person 284, pottedplant 308, sheep 347, sofa 368, train 416, tvmonitor 427, bag 9, bed 18,
    bench 22, book 33, building 44, cabinet 46, ceiling 68, cloth 80, computer 85, cup 104, door 115, fence 144,
    floor 158, flower 159, food 162, grass 187, ground 189, keyboard 220, light 232, mountain 259, mouse 260,
    curtain 105, platform 296, sign 355, plate 295, road 324, rock 326, shelves 349, sidewalk 354, sky 360, snow 366,
    bedclothes 19, track 415, tree 420, truck 424, wall 440, water 445, window 454, wood 458
"""
CLASSES = {name: int(label) for name, label in map(str.split, _LABELS.split(","))}


def colour(label: int) -> tuple[int, int, int]:
    """RGB by the colour map of VOC, which spreads the bits of the label over the channels.

    PASCAL Context has no colours of its own; thus the first 20 classes, and ``background`` (0), have those of VOC.
    """
    red, green, blue = (sum((label >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3))
    return red, green, blue


def read_mat_labels(data: bytes, path: Path) -> NDArray[np.uint16]:
    """Decode the labels (H, W) of a ``.mat`` file, of the 459.

    Raises:
        UserError: another kind of file, or damaged.
    """
    return read_label_map(read_mat(data, path), "LabelMap", path)


def parts(members: Sequence[Member]) -> Iterator[Part]:
    members = [member for member in members if not _OTHER_YEAR.search(full_name(member))]
    pictures = [(found["name"], member) for member in members if (found := _PICTURE.search(full_name(member)))]
    if not pictures:
        return
    splits = read_splits(members, LISTS, f"give {PICTURES}, or the folder VOC2010 with ImageSets")
    for name, member in pictures:
        if name in splits:
            yield Part(splits[name], name, "image", member)
    for member in members:
        found = _MAT.search(full_name(member)) or _PNG.search(full_name(member))
        if found and found["name"] in splits:
            yield Part(splits[found["name"]], found["name"], "label", member)


def benchmark(classes: Literal[59, 60] = 59) -> Callable[[Sequence[Member]], Benchmark]:
    """The data set without ``background`` or with it; the form of the labels is that of the sources."""

    def of(members: Sequence[Member]) -> Benchmark:
        from_mat = any(_MAT.search(full_name(member)) for member in members)
        first = classes - 59
        raw = CLASSES.values() if from_mat else range(1, 60)
        others = dict.fromkeys(range(460 if from_mat else 1), 0 if first else None)
        return Benchmark(
            title=f"PASCAL Context ({classes} classes)",
            licence="annotations without a stated licence; pictures by Flickr's terms of use",
            archives=f"{PICTURES} and trainval.tar.gz (or 59_context_labels.tar.gz)",
            layout="JPEGImages/2008_000002.jpg, ImageSets/Main and 2008_000002.mat (or 2008_000002.png)",
            counts={"train": 4998, "val": 5105},
            classes=(*["background"] * first, *CLASSES),
            colours=tuple(colour(label) for label in range(1 - first, 60)),
            index_of={**others, **{label: index for index, label in enumerate(raw, first)}},
            parts=parts,
            read=read_mat_labels if from_mat else read_ids,
        )

    return of
