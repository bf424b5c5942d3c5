"""Cityscapes (https://www.cityscapes-dataset.com): street scenes of 50 cities, 2048x1024, 19 classes.

``leftImg8bit_trainvaltest.zip`` holds ``leftImg8bit/SPLIT/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png``,
``gtFine_trainvaltest.zip`` holds ``gtFine/SPLIT/CITY/CITY_SEQUENCE_FRAME_gtFine_labelIds.png``, 8 bits with the ids
below. The labels of the test split are dummies, so it is prepared without labels.
"""

import re
from collections.abc import Iterator, Sequence

from cssformer.prepare.archives import Member
from cssformer.prepare.benchmark import Benchmark, Part

# What begins with a dot is macOS's own.
_IMAGE = re.compile(r"(?:^|/)(train|val|test)/[^/]+/([^/.][^/]*_\d{6}_\d{6})_leftImg8bit\.png$")
_LABEL = re.compile(r"(?:^|/)(train|val)/[^/]+/([^/.][^/]*_\d{6}_\d{6})_gtFine_labelIds\.png$")

# Of the classes that are scored, in the order of their train ids. The id that a submission needs is the only one that
# a class comes from.
CLASSES = (
    # id, name, colour
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
# Not scored: 0 unlabeled, 1 ego vehicle, 2 rectification border, 3 out of roi, 4 static, 5 dynamic,
# 6 ground, 9 parking, 10 rail track, 14 guard rail, 15 bridge, 16 tunnel,
# 18 polegroup, 29 caravan, 30 trailer.
IGNORED = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)


def parts(members: Sequence[Member]) -> Iterator[Part]:
    for member in members:
        if found := _IMAGE.search(member.name):
            yield Part(found[1], found[2], "image", member)
        elif found := _LABEL.search(member.name):
            yield Part(found[1], found[2], "label", member)


BENCHMARK = Benchmark(
    title="Cityscapes",
    licence="non-commercial research; no redistribution (see the homepage)",
    archives="leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
    layout="leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png and "
    "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
    counts={"train": 2975, "val": 500, "test": 1525},
    classes=tuple(name for _, name, _ in CLASSES),
    colours=tuple(colour for _, _, colour in CLASSES),
    index_of={**dict.fromkeys(IGNORED), **{raw: index for index, (raw, _, _) in enumerate(CLASSES)}},
    parts=parts,
)
