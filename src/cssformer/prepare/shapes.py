"""What people draw on pictures, and which pixels belong to it: the one rule for all annotation formats.

Coordinates are those of the shown picture, in pixels: (0, 0) is the upper left corner of the upper left pixel, whose
centre is (0.5, 0.5). **A pixel belongs to a shape if its centre lies inside.** Polygons are drawn by pycocotools, which
takes corners to the nearest fifth of a pixel; ellipses and lines are decided at the centres. Every shape becomes a
run-length mask of COCO, of which a picture's label map is painted one over the other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from cssformer.data.dataset import look_up
from cssformer.utils.errors import UserError

Size = tuple[int, int]
"""Height and width in pixels."""
Overlap = Literal["smaller", "first", "last", "keep"]
"""Which of two shapes that overlap lies on top: the one of fewer pixels, the one drawn first, or the one drawn last; or
both are kept, each in bits of its own."""
RunLengths = dict[str, Any]
"""A mask as pycocotools has it: ``size`` [height, width] and ``counts``, compressed to bytes."""


class Region(Protocol):
    """Some pixels of a picture."""

    def runs(self, size: Size) -> RunLengths:
        """The pixels in a picture of ``size``; raises ValueError, which says what is wrong with the shape."""
        ...


@dataclass(frozen=True)
class Shape:
    """One thing drawn: its class's name, its pixels, and where it stands in its file."""

    name: str
    region: Region
    place: str


@dataclass(frozen=True)
class Polygons:
    """The union of polygons, each x, y, x, y, ..."""

    parts: Sequence[Sequence[float]]

    def runs(self, size: Size) -> RunLengths:
        parts = [_coordinates(part, size) for part in self.parts]
        if not parts:
            raise ValueError("it has no polygon")
        if (short := min(map(len, parts))) < 6:
            raise ValueError(f"its polygon has {short // 2} points instead of three or more")
        drawn = coco.frPyObjects(parts, *size)
        return coco.merge(drawn) if len(drawn) > 1 else drawn[0]


@dataclass(frozen=True)
class Ellipse:
    """All within the radii (x, y) of a centre (x, y), turned clockwise by some degrees."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    degrees: float = 0.0

    def runs(self, size: Size) -> RunLengths:
        x, y = _coordinates(self.centre, size)
        if not (np.isfinite([*self.radii, self.degrees]).all() and min(self.radii) > 0):
            raise ValueError(f"its radii are {self.radii[0]} and {self.radii[1]}")
        cos, sin = np.cos(np.deg2rad(self.degrees)), np.sin(np.deg2rad(self.degrees))

        def inside(across: NDArray[Any], down: NDArray[Any]) -> NDArray[np.bool_]:
            across, down = across - x, down - y
            along, beside = (across * cos + down * sin) / self.radii[0], (down * cos - across * sin) / self.radii[1]
            return along**2 + beside**2 <= 1

        reach = max(self.radii)
        return _at_centres(inside, (x - reach, y - reach, x + reach, y + reach), size)


@dataclass(frozen=True)
class Line:
    """All within half a width of a line through points, x, y, x, y, ..."""

    points: Sequence[float]
    width: float

    def runs(self, size: Size) -> RunLengths:
        points = np.reshape(_coordinates(self.points, size), (-1, 2))
        if len(points) < 2:
            raise ValueError("its line has a single point")
        drawn = []
        for start, end in pairwise(points):
            step, reach = end - start, self.width / 2

            def near(across: NDArray[Any], down: NDArray[Any], start: Any = start, step: Any = step) -> NDArray[Any]:
                across, down = across - start[0], down - start[1]
                share = np.clip((across * step[0] + down * step[1]) / (step @ step or 1), 0, 1)
                return (across - share * step[0]) ** 2 + (down - share * step[1]) ** 2 <= (self.width / 2) ** 2

            low, high = np.minimum(start, end) - reach, np.maximum(start, end) + reach
            drawn.append(_at_centres(near, (*low, *high), size))
        return coco.merge(drawn)


@dataclass(frozen=True)
class Bitmap:
    """The pixels that are True in a mask (h, w), whose upper left pixel is (left, top) of the picture."""

    pixels: NDArray[np.bool_]
    left: int = 0
    top: int = 0

    def runs(self, size: Size) -> RunLengths:
        (height, width), (down, across) = size, self.pixels.shape
        if not (0 <= self.top <= height - down and 0 <= self.left <= width - across):
            raise ValueError(
                f"its mask of {across}x{down} pixels at {self.left}, {self.top} is not within the picture of "
                f"{width}x{height}"
            )
        whole = np.zeros(size, np.uint8, order="F")
        whole[self.top : self.top + down, self.left : self.left + across] = self.pixels
        return coco.encode(whole)


@dataclass(frozen=True)
class Runs:
    """A run-length mask of COCO: pixels in columns, alternately outside and inside, as numbers or compressed."""

    size: Size
    counts: Any

    def runs(self, size: Size) -> RunLengths:
        if tuple(self.size) != size:
            raise ValueError(f"its mask is {self.size[1]}x{self.size[0]}, but the picture is {size[1]}x{size[0]}")
        if isinstance(self.counts, str | bytes):
            packed = self.counts.encode("latin-1") if isinstance(self.counts, str) else self.counts
            require_counts(_unpacked(packed), size)
            return {"size": list(size), "counts": packed}
        numbers = np.asarray(self.counts)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise ValueError("its run lengths are no whole numbers")
        require_counts(numbers, size)
        return coco.frPyObjects({"size": list(size), "counts": numbers.tolist()}, *size)


@dataclass(frozen=True)
class ClassMap:
    """A class for each pixel of a picture, as masks have it in place of shapes.

    Attributes:
        values: whole numbers from 0 to 2^24 - 1, (H, W).
        names: the class of each value that occurs.
    """

    values: NDArray[Any]
    names: Mapping[int, str]

    def draw(self, value_of: Mapping[str, int], empty: int) -> NDArray[Any]:
        """A label map of one value per class; ``empty`` where a class has none."""
        table = np.full(max(self.names) + 1, empty, np.int32)
        for value, name in self.names.items():
            table[value] = value_of.get(name, empty)
        return look_up(table, self.values).astype(_dtype(value_of, empty))


def draw(
    shapes: Iterable[Shape], value_of: Mapping[str, int], size: Size, empty: int, overlap: Overlap
) -> NDArray[Any]:
    """Paint shapes into a label map of one value per class.

    Args:
        shapes: in the order in which their file has them.
        value_of: each class's value; shapes of other classes are left out.
        size: height and width.
        empty: the value of pixels without a shape.
        overlap: which of two shapes lies on top.

    Raises:
        UserError: a shape cannot be drawn; the sentence says where it stands and why.
    """
    drawn = []
    for shape in shapes:
        if shape.name in value_of:
            try:
                drawn.append((value_of[shape.name], shape.region.runs(size)))
            except ValueError as error:
                raise UserError(f"{shape.place} cannot be drawn: {error}.") from None
    if overlap == "first":
        drawn.reverse()
    elif overlap == "smaller":
        drawn.sort(key=lambda pair: -int(coco.area(pair[1])))
    # Columns first, as run-length masks have their pixels.
    values = np.full(size[0] * size[1], empty, _dtype(value_of, empty))
    for value, runs in drawn:
        # Outside and inside alternate, from outside on. Painting these alone takes a tenth of pycocotools' decoding.
        edges = _unpacked(runs["counts"]).cumsum().tolist()
        for start, end in zip(edges[::2], edges[1::2], strict=False):
            if overlap == "keep":
                values[start:end] |= value
            else:
                values[start:end] = value
    return cv2.transpose(values.reshape(size[::-1]))


def _dtype(value_of: Mapping[str, int], empty: int) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if max(empty, *value_of.values()) < 256 else np.uint16


def _coordinates(numbers: Sequence[float], size: Size) -> list[float]:
    """The numbers, x, y, x, y, ..., as floats."""
    array = np.asarray(numbers)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise ValueError("its coordinates are no numbers")
    if len(array) % 2:
        raise ValueError(f"it has {len(array)} coordinates, an odd number")
    if not np.isfinite(array).all():
        raise ValueError("its coordinates are not finite")
    points = array.astype(float).reshape(-1, 2)
    height, width = size
    # Some tools let corners leave the picture; what lies further off is another unit or another picture.
    far = (np.abs(points - (width / 2, height / 2)) > (1.5 * width, 1.5 * height)).any(1)
    if far.any():
        x, y = points[far][0]
        raise ValueError(f"its point {x:g}, {y:g} lies far outside the picture of {width}x{height}")
    return points.ravel().tolist()


def _at_centres(
    inside: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]], box: tuple[float, ...], size: Size
) -> RunLengths:
    """The pixels within the box (left, top, right, bottom) for whose centres (x, y) ``inside`` is true."""
    left, top = (int(max(0, np.floor(edge))) for edge in box[:2])
    right, bottom = (int(min(limit, np.ceil(edge))) for edge, limit in zip(box[2:], size[::-1], strict=True))
    whole = np.zeros(size, np.uint8, order="F")
    if left < right and top < bottom:
        across, down = np.arange(left, right) + 0.5, np.arange(top, bottom)[:, None] + 0.5
        whole[top:bottom, left:right] = inside(across, down)
    return coco.encode(whole)


def _unpacked(packed: bytes) -> NDArray[np.int64]:
    """Run lengths of COCO's text form.

    Each number has its lowest 5 bits in the first character, bit 5 where more follow, and its sign in bit 4 of the
    last; from the fourth number on it is the difference to the one before the last.
    """
    letters = np.frombuffer(packed, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((letters & 32) == 0)
    if not len(letters) or letters.min() < 0 or letters.max() > 63 or not len(ends) or ends[-1] != len(letters) - 1:
        raise ValueError("its run lengths are damaged or cut off")
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("its run lengths are damaged")
    place = np.arange(len(letters)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((letters & 31) << 5 * place, starts) - ((letters[ends] & 16) >> 4 << 5 * lengths)
    for first in (1, 2):
        numbers[first::2] = numbers[first::2].cumsum()
    return numbers


def require_counts(counts: NDArray[Any], size: Size, what: str = "the picture") -> None:
    """Raise ValueError if run lengths are not those of ``size``, that of ``what``."""
    if len(counts) and counts.min() < 0:
        raise ValueError("its run lengths are negative")
    pixels = size[0] * size[1]
    # NumPy's sum of numbers that are too large could be anything.
    total = sum(counts.tolist()) if len(counts) and counts.max() > pixels else int(counts.sum())
    if total != pixels:
        raise ValueError(f"its run lengths cover {total} pixels, but {what} has {pixels}")
