"""PASCAL VOC's layout, which CVAT exports as "Segmentation mask 1.1" and "PASCAL VOC 1.1".

``JPEGImages/NAME.jpg`` and ``SegmentationClass/NAME.png``, in splits by ``ImageSets/Segmentation/{train,val}.txt``. The
masks' colours are classes by ``labelmap.txt``, or, without one, the 21 of VOC. VOC's light border is ignored.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cssformer.data.image_io import decode_mask
from cssformer.prepare.annotated import Annotated, Export, Pictures, read_text, split_words, within
from cssformer.prepare.archives import Member
from cssformer.prepare.benchmark import full_name
from cssformer.prepare.class_file import Colour
from cssformer.prepare.masks import VOC_BORDER
from cssformer.prepare.pascal_context import CLASSES as CONTEXT
from cssformer.prepare.pascal_context import colour
from cssformer.prepare.shapes import ClassMap, Size
from cssformer.prepare.survey import values_of
from cssformer.prepare.writer import Faults
from cssformer.utils.errors import UserError

_CLASSES = ("background", *list(CONTEXT)[:10], "diningtable", *list(CONTEXT)[11:20])
_MASK = re.compile(r"/SegmentationClass/(?P<name>.+)\.png$", re.I)
_OTHER = re.compile(r"/Segmentation(?:Class|Object)\w*/", re.I)
_LIST = re.compile(r"/ImageSets/Segmentation/(?P<split>[^/]+)\.txt$", re.I)


def read(members: Sequence[Member], faults: Faults) -> Export:
    """Find the pictures and masks of VOC's layout.

    Raises:
        UserError: there are no masks, or a list or ``labelmap.txt`` is broken.
    """
    masks: dict[str, Member] = {}
    for member in members:
        if match := _MASK.search(full_name(member)):
            other = masks.setdefault(match["name"], member)
            if other is not member:
                raise UserError(f"{other} and {member} have one name; rename one of them.")
    if not masks:
        raise UserError("The source has no SegmentationClass/NAME.png, where VOC's layout has its masks.")
    pictures = Pictures(member for member in members if not _OTHER.search(full_name(member)))
    labelmaps = [member for member in members if member.name.rpartition("/")[2] == "labelmap.txt"]
    own = {colour(index): name for index, name in enumerate(_CLASSES)}
    class_of = {VOC_BORDER: "void"} | (_labelmap(labelmaps) if labelmaps else own)
    listed_in: dict[str, tuple[str | None, Member | None]] = {}
    lists = []
    for member in members:
        listed = _LIST.search(full_name(member))
        if listed and listed["split"].lower() != "trainval":
            lists.append(member)
            split = next(iter(split_words(listed["split"])), None)
            for line in read_text(member).splitlines():
                if words := line.split():
                    # Datumaro quotes names with spaces.
                    name = line.strip().strip('"') if line.strip().strip('"') in masks else words[0]
                    first_split, its_list = listed_in.setdefault(name, (split, member))
                    if first_split != split:
                        raise UserError(f"{its_list} and {member} both name {name}; leave it in one.")
    found = []
    for name, (split, its_list) in (listed_in if lists else dict.fromkeys(masks, (None, None))).items():
        with faults.caught():
            if name not in masks:
                raise UserError(f"{its_list} names {name}, which has no mask in SegmentationClass.")
            mask = masks[name]
            picture = pictures.find(name, mask)
            classes = partial(
                _classes, mask, {int.from_bytes(bytes(rgb), "big"): each for rgb, each in class_of.items()}
            )
            # Names hold dots that begin no suffix.
            found.append(Annotated(picture, name + Path(picture.name).suffix, str(mask), None, classes, split))
    names = [name for name in dict.fromkeys(class_of.values()) if name not in ("void", "ignored")]
    colours = {name: rgb for rgb, name in class_of.items()}
    return Export(
        found, [*names, "void", "ignored"], [*labelmaps, *lists], colours=colours, ignored=["void", "ignored"],
        unlabeled="ignore",
    )  # fmt: skip


def _classes(mask: Member, class_of: dict[int, str], size: Size) -> ClassMap:
    values = decode_mask(mask.read_bytes(), place := Path(str(mask))).colours(place)
    if values.shape != size:
        raise UserError(f"{mask} is {values.shape[1]}x{values.shape[0]}, but its picture is {size[1]}x{size[0]}.")
    there = sorted(values_of(values))
    if unknown := [value for value in there if value not in class_of]:
        rgb = " ".join(map(str, unknown[0].to_bytes(3, "big")))
        raise UserError(f"{mask} has the colour {rgb}, which is no class of labelmap.txt or VOC.")
    return ClassMap(values, {value: class_of[value] for value in there})


def _labelmap(members: Sequence[Member]) -> dict[Colour, str]:
    """The classes of lines such as ``car:128,0,0::``; without colours those of VOC's map in the order of the lines."""
    found: dict[Colour, str] = {}
    for member in members:
        lines = [line for line in read_text(member).splitlines() if line.strip() and not line.startswith("#")]
        for index, line in enumerate(lines):
            with within(f"{member}, line {line!r},"):
                name, rgb = line.rsplit(":", 3)[:2]
                red, green, blue = bytes(map(int, rgb.split(","))) if rgb else colour(index)
                if (other := found.setdefault((red, green, blue), name)) != name:
                    raise ValueError(f"its colour is that of {other}")
    return found
