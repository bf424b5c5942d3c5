"""One geometric warp of a crop: rotation, shear and perspective together, so that the picture is sampled once."""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.data.channels import in_fours
from cssformer.data.dataset import IGNORE

Window = tuple[slice, slice]
_MARGIN = 8


class Warp(NamedTuple):
    """Where the pixels of a crop (h, w) lie in their picture: rows and columns (h, w), the first pixel from 0 to 1."""

    rows: NDArray[np.float64]
    columns: NDArray[np.float64]

    def label(self, label: NDArray[np.int32]) -> NDArray[np.int32]:
        """The label (H, W) of the nearest pixel, ``IGNORE`` outside the picture: (h, w)."""
        row, column = np.floor(self.rows).astype(np.intp), np.floor(self.columns).astype(np.intp)
        height, width = label.shape
        warped = label[row.clip(0, height - 1), column.clip(0, width - 1)]
        warped[self.outside(label.shape)] = IGNORE
        return warped

    def box(self, shape: tuple[int, ...]) -> Window:
        """The part of a picture (H, W, ...) that the crop's pixels lie in, with a margin for what is resized."""
        sides = zip((self.rows, self.columns), shape, strict=False)
        ends = [(math.floor(places.min()) - _MARGIN, math.ceil(places.max()) + _MARGIN, side) for places, side in sides]
        rows, columns = (slice(min(max(low, 0), side - 1), max(min(high, side), 1)) for low, high, side in ends)
        return rows, columns

    def image(self, part: NDArray[Any], box: Window) -> NDArray[Any]:
        """The picture between its pixels, bilinear: (h, w, C).

        Args:
            part: what is in the :meth:`box`, resized to any size; beyond its edges they go on.
            box: where it lies in the picture.
        """
        rows, columns = (
            (places - side.start) * (length / (side.stop - side.start)) - 0.5
            for places, side, length in zip(self, box, part.shape, strict=False)
        )
        grid = (columns.astype(np.float32), rows.astype(np.float32))
        return in_fours(lambda each: cv2.remap(each, *grid, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), part)

    def outside(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Which pixels of the crop (h, w) lie outside a picture of the shape (H, W, ...)."""
        height, width = shape[:2]
        return (self.rows < 0) | (self.rows >= height) | (self.columns < 0) | (self.columns >= width)


def draw_warp(
    window: Window,
    size: tuple[int, int],
    crop: tuple[int, int],
    rotate: float,
    shear: float,
    perspective: float,
    rng: np.random.Generator,
) -> Warp:
    """A random warp about the middle of the window.

    Args:
        window: of the picture; without a warp it would be resized to ``size`` and be the crop's upper left part.
        size: height and width, at most those of the crop.
        crop: height and width.
        rotate, shear: degrees either way, at most.
        perspective: the crop's corners move by at most this share of its sides, in both directions.
    """
    turn, slant = (math.radians(rng.uniform(-most, most)) for most in (rotate, shear))
    cosine, sine = math.cos(turn), math.sin(turn)
    matrix = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ [
        [1, math.tan(slant), 0],
        [0, 1, 0],
        [0, 0, 1],
    ]
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * crop[::-1]
    moved = corners + rng.uniform(-perspective, perspective, (4, 2)) * crop[::-1]
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), moved.astype(np.float32)) @ matrix
    rows, columns = np.mgrid[: crop[0], : crop[1]] + 0.5 - np.reshape(size, (2, 1, 1)) / 2
    x, y, depth = np.einsum("ab,bij->aij", matrix, np.stack([columns, rows, np.ones_like(rows)]))
    top, left = window
    return Warp(
        (top.start + top.stop) / 2 + y / depth * ((top.stop - top.start) / size[0]),
        (left.start + left.stop) / 2 + x / depth * ((left.stop - left.start) / size[1]),
    )
