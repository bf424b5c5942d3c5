"""The connected regions of a label map as polygons, and its classes as run lengths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask
from rasterio.features import rasterize, shapes
from shapely import MultiLineString, Polygon, box
from shapely.geometry import shape


@dataclass(frozen=True)
class Region:
    """A connected region of one class.

    Attributes:
        index: of the class.
        name: of the class.
        exterior: corners x, y (n, 2) in pixels; (0, 0) is the upper left corner of the upper left pixel.
        holes: corners (n, 2) of each hole.
        area: in pixels, before outlines were simplified.
        score: the mean confidence, from 0 to 1; None without one.
        number: by which ``region_numbers`` knows its pixels.
    """

    index: int
    name: str
    exterior: NDArray[np.float64]
    holes: tuple[NDArray[np.float64], ...]
    area: float
    score: float | None
    number: int

    def pieces(self) -> Iterator[NDArray[np.float64]]:
        """Polygons (n, 2) without holes that together are the region: it is cut from top to bottom through holes."""
        yield from (np.array(piece.exterior.coords)[:-1] for piece in _cut(Polygon(self.exterior, self.holes)))


def regions(
    labels: NDArray[np.int32],
    classes: Sequence[str],
    confidence: NDArray[np.float32] | None = None,
    tolerance: float = 1.0,
    min_area: float = 0.0,
) -> tuple[list[Region], NDArray[np.int32]]:
    """The regions of a label map, the largest first, and the number of each pixel's region (H, W), 0 for none.

    Outlines follow the edges of pixels, so that without a tolerance the polygons are the label map: a pixel belongs to
    the polygon that its centre lies in. Pixels that touch at a corner alone are not connected.

    Args:
        labels: class indices (H, W); what is below 0 is no region.
        classes: a name per class.
        confidence: of each pixel (H, W), from 0 to 1.
        tolerance: outlines may have fewer corners (Douglas and Peucker, 1973) as long as every point of the one outline
            is at most this far, in pixels, from the other.
        min_area: regions of fewer pixels are left out.
    """
    found = [(shape(outline), int(index)) for outline, index in shapes(labels.astype(np.int32), labels >= 0, 4)]
    found = sorted((each for each in found if each[0].area >= min_area), key=lambda each: -each[0].area)
    drawn = [(polygon, number) for number, (polygon, _) in enumerate(found, 1)]
    numbers = rasterize(drawn, labels.shape, dtype=np.int32) if drawn else np.zeros(labels.shape, np.int32)
    scores: Sequence[float | None] = [None] * len(found)
    if confidence is not None:
        sums = np.bincount(numbers.ravel(), confidence.ravel(), len(found) + 1)[1:]
        scores = [float(total / polygon.area) for total, (polygon, _) in zip(sums, found, strict=True)]
    made = []
    for number, ((polygon, index), score) in enumerate(zip(found, scores, strict=True), 1):
        rings = [np.array(ring.coords)[:-1] for ring in (polygon.exterior, *polygon.interiors)]
        exterior, *holes = _simplified(rings, tolerance) if tolerance else rings
        made.append(Region(index, classes[index], exterior, tuple(holes), polygon.area, score, number))
    return made, numbers


def run_lengths(pixels: NDArray[np.bool_]) -> dict[str, Any]:
    """Pixels (H, W) as COCO's compressed run lengths, ``size`` [height, width] and ``counts``, a text."""
    packed = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": [int(side) for side in packed["size"]], "counts": packed["counts"].decode()}


def _simplified(rings: list[NDArray[np.float64]], tolerance: float) -> list[NDArray[np.float64]]:
    """Rings (n, 2) that neither cross nor jump over one another; three corners of each stay."""
    lines = []
    for ring in rings:
        # Lines between outermost corners, as GEOS drops the corner where a ring starts without looking at the others
        # that it has dropped beside it: such outlines are moved by more than the tolerance.
        ring = np.roll(ring, -np.argmax(np.square(ring - ring[0]).sum(1)), 0)
        x, y = (ring - ring[0]).T
        far = np.argmax(x * x + y * y)
        lines += np.split(ring, sorted((far, np.argmax(np.abs(x * y[far] - y * x[far])))))
    closed = [np.vstack((line, lines[i + 1 if i % 3 < 2 else i - 2][:1])) for i, line in enumerate(lines)]
    simple = [np.array(line.coords)[:-1] for line in MultiLineString(closed).simplify(tolerance).geoms]
    return [np.vstack(simple[i : i + 3]) for i in range(0, len(simple), 3)]


def _cut(polygon: Any) -> Iterator[Any]:
    if not polygon.interiors:
        yield polygon
        return
    left, top, right, bottom = polygon.bounds
    # At an edge between pixels, so that no centre lies on the cut.
    middle = round(polygon.interiors[0].centroid.x)
    for half in (box(left, top, middle, bottom), box(middle, top, right, bottom)):
        part = polygon.intersection(half)
        for piece in getattr(part, "geoms", [part]):
            if piece.geom_type == "Polygon" and piece.area:
                yield from _cut(piece)
