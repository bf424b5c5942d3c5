"""ADE20K, the scene parsing benchmark of 2016 (http://sceneparsing.csail.mit.edu): 150 classes of things and stuff.

``ADEChallengeData2016.zip`` holds ``images/{training,validation}/ADE_{train,val}_*.jpg`` and, of the same names,
``annotations/{training,validation}/*.png``, 8 bits: 0 is "other objects" and ignored, 1 to 150 are the classes.
``release_test.zip`` (optional) holds the test pictures ``ADE_test_*.jpg``, whose labels were never published.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cssformer.prepare.archives import Member
from cssformer.prepare.benchmark import Benchmark, Part
from cssformer.prepare.class_file import read_class_file

_LABELLED = re.compile(r"(?:^|/)(training|validation)/(ADE_(?:train|val)_\d{8})\.(jpg|png)$")
_TEST = re.compile(r"(?:^|/)(ADE_test_\d{8})\.jpg$")
_SPLITS = {"training": "train", "validation": "val"}

CLASSES = read_class_file(Path(__file__).with_name("ade20k.txt"))


def parts(members: Sequence[Member]) -> Iterator[Part]:
    for member in members:
        if found := _LABELLED.search(member.name):
            yield Part(_SPLITS[found[1]], found[2], "image" if found[3] == "jpg" else "label", member)
        elif found := _TEST.search(member.name):
            yield Part("test", found[1], "image", member)


BENCHMARK = Benchmark(
    title="ADE20K (SceneParse150)",
    licence="pictures for non-commercial research and education; annotations BSD-3-Clause",
    archives="ADEChallengeData2016.zip",
    layout="images/training/ADE_train_00000001.jpg and annotations/training/ADE_train_00000001.png",
    counts={"train": 20210, "val": 2000, "test": 3352},
    classes=tuple(each.name for each in CLASSES),
    colours=tuple(each.colour for each in CLASSES if each.colour),
    index_of={0: None, **{index + 1: index for index in range(len(CLASSES))}},
    parts=parts,
)
