"""COCO-Stuff 10K, version 1.1 (https://github.com/nightrome/cocostuff10k): things and stuff in pictures of COCO.

``cocostuff-10k-v1.1.zip`` holds ``images/COCO_train2014_*.jpg``, ``annotations/COCO_train2014_*.mat`` and the official
split in ``imageLists/{train,test}.txt``, of which the test list is our validation split. The variable ``S`` of a
``.mat`` file holds the labels: 0 is unlabelled and ignored, 1 to 91 are the things of COCO, 92 to 182 stuff.

Eleven things of COCO were never annotated. The 171 classes that are scored everywhere leave them out; 182 keep them, so
that class indices are the ids minus one (as in the PNG files of COCO-Stuff 164K).
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cssformer.prepare.archives import Member
from cssformer.prepare.benchmark import Benchmark, Part, full_name, read_splits
from cssformer.prepare.matlab import read_label_map, read_mat
from cssformer.utils.errors import UserError

ARCHIVE = "cocostuff-10k-v1.1.zip"
LISTS = {"train": "imageLists/train.txt", "val": "imageLists/test.txt"}
_FILE = re.compile(r"/(?:(?P<image>images)|annotations)/(?P<name>COCO_train2014_\d{12})\.(?(image)jpg|mat)$")

# Of the ids 1 to 91, as in cocostuff-labels.txt.
THINGS = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack,
    umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
    baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl,
    banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
    mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
    toaster, sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush
"""
# Of the ids 92 to 182.
STUFF = """
    banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other,
    ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence,
    floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other,
    grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net,
    paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof,
    rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other,
    table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone,
    wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
"""
NAMES = (None, *(name for names in (THINGS, STUFF) for name in " ".join(names.split()).split(", ")))
# street sign, hat, shoe, eye glasses, plate, mirror, window, desk, door, blender, hair brush
NEVER_ANNOTATED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)


def colours() -> tuple[tuple[int, int, int], ...]:
    """RGB of the ids 0 to 182 by the official recipe: MATLAB's ``jet`` for things, at half its brightness for stuff.

    Only the order within each half is not the official one, because MATLAB's shuffle is not to be had; it is that of
    NumPy's legacy generator with the official seed.
    """
    place = np.arange(1, 92)
    rising = np.stack([np.minimum(place - 12 - shift, 81 + shift - place) for shift in (23, 0, -23)], axis=-1)
    jet = np.clip(rising / 23, 0, 1)[np.random.RandomState(42).permutation(91)]
    rows = np.rint(255 * np.concatenate([np.zeros((1, 3)), jet, jet / 2])).astype(int)
    return tuple((red, green, blue) for red, green, blue in rows.tolist())


def read(data: bytes, path: Path) -> NDArray[np.uint16]:
    """Decode the labels (H, W) of a ``.mat`` file.

    Raises:
        UserError: another kind of file, damaged, or of version 1.0 of the data set, whose ids mean other classes.
    """
    variables = read_mat(data, path)
    labels = read_label_map(variables, "S", path)
    if "names" in variables and math.prod(variables["names"].shape) != 182:
        count = math.prod(variables["names"].shape)
        raise UserError(f"{path} names {count} classes, not 182: it is not of version 1.1; get {ARCHIVE}.")
    return labels


def parts(members: Sequence[Member]) -> Iterator[Part]:
    files = [(found, member) for member in members if (found := _FILE.search(full_name(member)))]
    if not files:
        return
    splits = read_splits(members, LISTS, f"give {ARCHIVE}, or the folder imageLists beside the others")
    for found, member in files:
        if found["name"] in splits:
            yield Part(splits[found["name"]], found["name"], "image" if found["image"] else "label", member)


def benchmark(classes: Literal[171, 182] = 171) -> Benchmark:
    """The data set with the classes that are annotated, or with all."""
    ids = [label for label in range(1, 183) if classes == 182 or label not in NEVER_ANNOTATED]
    palette = colours()
    return Benchmark(
        title=f"COCO-Stuff 10K ({classes} classes)",
        licence="annotations CC BY 4.0; pictures by Flickr's terms of use",
        archives=ARCHIVE,
        layout="images/COCO_train2014_000000000077.jpg, annotations/COCO_train2014_000000000077.mat and imageLists",
        counts={"train": 9000, "val": 1000},
        classes=tuple(str(NAMES[label]) for label in ids),
        colours=tuple(palette[label] for label in ids),
        index_of={0: None, **{label: index for index, label in enumerate(ids)}},
        parts=parts,
        read=read,
    )
