"""CVAT's XML, the export "CVAT for images 1.1": polygons, boxes, ellipses and masks, stacked by ``z_order``.

Attributes are left alone; polylines, points, skeletons and cuboids have no area and are left out, with a word.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from math import cos, radians, sin
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from cssformer.prepare.annotated import MOST_ANNOTATIONS, Annotated, Export, Pictures, split_words, within
from cssformer.prepare.archives import Member
from cssformer.prepare.class_file import Colour
from cssformer.prepare.pairing import read_folders
from cssformer.prepare.shapes import Bitmap, Ellipse, Polygons, Region, Shape, Size, require_counts
from cssformer.prepare.writer import Faults, left_out
from cssformer.utils.console import counted
from cssformer.utils.errors import UserError

_AREAS = ("polygon", "box", "ellipse", "mask")
_NO_AREAS = ("polyline", "points", "skeleton", "cuboid")


class _PlainTree(ElementTree.TreeBuilder):
    """CVAT's files have no document type, by which XML defines texts that expand without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(f"it has a document type, {name}, which CVAT's files do not have")


def read(members: Sequence[Member], faults: Faults) -> Export:
    """Find the pictures of CVAT's files and their shapes.

    Raises:
        UserError: no file is of CVAT's form, or one is broken.
    """
    pictures = Pictures(members)
    classes: dict[str, Colour | None] = {}
    no_areas: Counter[str] = Counter()
    found, sources, others = [], [], list[Member]()
    for member in members:
        if not member.name.lower().endswith(".xml"):
            continue
        root = _parsed(member)
        if root.tag != "annotations":
            others.append(member)
            continue
        sources.append(member)
        if root.find("track") is not None:
            raise UserError(f"{member} is of a video; export it from CVAT as 'CVAT for images 1.1'.")
        for label in root.iterfind("meta//label"):
            # Parts of a skeleton are no classes.
            if label.findtext("parent") is None:
                with within(f"{member}, label {label.findtext('name')}"):
                    classes.setdefault(label.findtext("name") or "", _colour(label.findtext("color")))
        for image in root.iterfind("image"):
            place = f"{member}, image {image.get('id')}"
            with faults.caught(), within(place):
                size = int(image.attrib["height"]), int(image.attrib["width"])
                # Pictures of one name in two subsets lie in folders of the subsets.
                name, subset = image.attrib["name"], image.get("subset", "")
                picture = pictures.find(f"{subset}/{name}" if subset else name, member)
                drawn = [(number, each) for number, each in enumerate(image, 1) if each.tag in _AREAS]
                no_areas.update(each.tag for each in image if each.tag in _NO_AREAS)
                for _, each in drawn:
                    if each.attrib["label"] not in classes:
                        raise UserError(f"{place} has the label {each.get('label')!r}, which the file does not list.")
                # The sort keeps the order of the file where z_order is the same.
                drawn.sort(key=lambda pair: int(pair[1].get("z_order", "0")))
                of_folders = read_folders(picture.name.split("/")[:-1])[1]
                split = next(iter(split_words(subset) + split_words(member.name)), of_folders)
                shapes = partial(_shapes, drawn, place)
                found.append(Annotated(picture, picture.name, place, size, shapes, split))
    if not sources:
        raise UserError("No XML file of the source is of CVAT; export the task as 'CVAT for images 1.1'.")
    notes = [
        f"{counted(count, 'shape')} of the kind {kind}, which has no area, left out."
        for kind, count in no_areas.items()
    ]
    notes += left_out(others, "XML file", "CVAT's annotations")
    colours = {name: colour for name, colour in classes.items() if colour is not None}
    return Export(found, list(classes), sources, "last", colours=colours, notes=notes)


def _parsed(member: Member) -> Element:
    try:
        parser = ElementTree.XMLParser(target=_PlainTree())
        return ElementTree.fromstring(member.read_bytes(MOST_ANNOTATIONS), parser)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{member} is not whole XML: {error}.") from None


def _shapes(drawn: list[tuple[int, Element]], place: str, size: Size) -> Iterable[Shape]:
    for number, each in drawn:
        where = f"{place}, shape {number} ({each.tag} {each.get('label')})"
        with within(where):
            yield Shape(each.attrib["label"], _region(each, size), where)


def _region(shape: Element, size: Size) -> Region:
    values = shape.attrib
    if shape.tag == "polygon":
        return Polygons([[float(number) for pair in values["points"].split(";") for number in pair.split(",")]])
    if shape.tag == "ellipse":
        x, y, across, down = (float(values[key]) for key in ("cx", "cy", "rx", "ry"))
        return Ellipse((x, y), (across, down), float(values.get("rotation", 0)))
    if shape.tag == "box":
        left, top, right, bottom = (float(values[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        return Polygons([turned_box(left, top, right, bottom, float(values.get("rotation", 0)))])
    left, top, width, height = (int(float(values[key])) for key in ("left", "top", "width", "height"))
    if not (0 < height <= size[0] and 0 < width <= size[1]):
        raise ValueError(f"its mask of {width}x{height} pixels is not within the picture of {size[1]}x{size[0]}")
    counts = np.array(values["rle"].split(","), np.int64)
    # In rows, alternately outside and inside.
    require_counts(counts, (height, width), "its box")
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    return Bitmap(pixels, left, top)


def turned_box(left: float, top: float, right: float, bottom: float, degrees: float) -> list[float]:
    """The corners x, y, x, y, ... of a box that is turned clockwise about its centre."""
    x, y, along, across = (left + right) / 2, (top + bottom) / 2, cos(radians(degrees)), sin(radians(degrees))
    corners = []
    for right_of, below in ((left - x, top - y), (right - x, top - y), (right - x, bottom - y), (left - x, bottom - y)):
        corners += [x + right_of * along - below * across, y + right_of * across + below * along]
    return corners if degrees else [left, top, right, top, right, bottom, left, bottom]


def _colour(text: str | None) -> Colour | None:
    if not text or len(text) != 7:
        return None
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue
