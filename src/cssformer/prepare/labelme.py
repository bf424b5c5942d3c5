"""labelme's JSON: a file for each picture, which stands beside it or is embedded.

Polygons, rectangles (also oriented), circles, masks, and lines of a width. Later shapes lie on earlier ones, as labelme
draws them; the label ``__ignore__`` is ignored; points and flags are left out.
"""

import base64
import binascii
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import dist
from pathlib import Path
from typing import Any

from cssformer.data.files import Readable
from cssformer.data.image_io import decode_mask
from cssformer.prepare.annotated import Annotated, Export, Pictures, read_json, within
from cssformer.prepare.archives import Member
from cssformer.prepare.pairing import read_folders
from cssformer.prepare.shapes import Bitmap, Ellipse, Line, Polygons, Region, Shape, Size
from cssformer.prepare.writer import Faults
from cssformer.utils.console import counted
from cssformer.utils.errors import UserError

IGNORED = "__ignore__"
_POINTS = ("point", "points")


@dataclass(frozen=True)
class _Embedded:
    """The picture inside a labelme file, which is read when it is wanted."""

    file: Member

    def __str__(self) -> str:
        return f"{self.file} (imageData)"

    def read_bytes(self) -> bytes:
        with within(self.file):
            return _decoded(read_json(self.file)["imageData"])


def read(members: Sequence[Member], faults: Faults, line_width: float = 10.0) -> Export:
    """Find the pictures of labelme's files and their shapes.

    Args:
        members: All files of the sources.
        faults: What becomes of broken pictures.
        line_width: Of lines, in pixels; 10 is what labelme draws.

    Raises:
        UserError: no file is of labelme's form, or one is broken.
    """
    if not line_width > 0:
        raise UserError(f"The line_width must be above 0; it is {line_width}.")
    pictures = Pictures(members)
    found, labels, points, sources = [], set[str](), Counter[str](), []
    for member in members:
        if not member.name.lower().endswith(".json"):
            continue
        with faults.caught():
            content = read_json(member)
            if not isinstance(content, dict) or not {"shapes", "imagePath"} & content.keys():
                continue
            with within(member):
                image: Readable = _Embedded(member)
                if content.pop("imageData", None) is None:
                    image = pictures.find(content["imagePath"], member)
                drawn = [each for each in content["shapes"] if each.get("shape_type") not in _POINTS]
                points[str(member)] += len(content["shapes"]) - len(drawn)
                own = {str(each["label"]) for each in drawn}
                height, width = content.get("imageHeight"), content.get("imageWidth")
                size = (int(height), int(width)) if height and width else None
                shapes = partial(_shapes, drawn, member, line_width)
            labels |= own
            sources.append(member)
            split = read_folders(member.name.split("/")[:-1])[1]
            found.append(Annotated(image, member.name, str(member), size, shapes, split))
    if not sources and not faults.sentences:
        raise UserError("No JSON file of the source has labelme's shapes and imagePath.")
    count = points.total()
    example = max(points, key=points.__getitem__, default="")
    notes = [f"{counted(count, 'point')} left out, in {example} for one."] if count else []
    # By name, because labelme knows no order and more files must not change it.
    return Export(found, sorted(labels), sources, "last", ignored=[IGNORED], notes=notes)


def _shapes(drawn: list[dict[str, Any]], member: Member, line_width: float, size: Size) -> Iterable[Shape]:
    for number, each in enumerate(drawn, 1):
        place = f"{member}, shape {number} ({each['label']})"
        with within(place):
            yield Shape(str(each["label"]), _region(each, place, line_width), place)


def _region(shape: dict[str, Any], place: str, line_width: float) -> Region:
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    flat = [number for x, y in points for number in (x, y)]
    if kind in ("polygon", "oriented_rectangle"):
        return Polygons([flat])
    if kind in ("line", "linestrip"):
        return Line(flat, line_width)
    if kind in ("rectangle", "circle", "mask") and len(points) != 2:
        raise ValueError(f"a {kind} has {len(points)} points instead of 2")
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        return Polygons([[left, top, right, top, right, bottom, left, bottom]])
    if kind == "circle":
        radius = dist(*points)
        return Ellipse(points[0], (radius, radius))
    if kind == "mask":
        pixels = decode_mask(_decoded(shape["mask"]), Path(place)).ids(Path(place)) > 0
        left, top, right, bottom = map(int, flat)
        if pixels.shape != (bottom - top + 1, right - left + 1):
            raise ValueError(f"the mask is {pixels.shape[1]}x{pixels.shape[0]}, which is not the size of its box")
        return Bitmap(pixels, left, top)
    raise ValueError(f"the shape_type {kind!r} is not known")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the base64 of a picture is damaged: {error}") from None
