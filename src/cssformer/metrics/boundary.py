"""How well contours are met: Boundary IoU, and the mIoU of a trimap around the true contours.

Boundary IoU (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021): of
each class only the pixels near its contour count, those within d pixels of a pixel of another class or of the
picture's edge, where d is 2 % of the picture's diagonal; it is the IoU of these bands of truth and prediction. The
paper's implementation erodes each class's mask d times by 3x3 pixels and takes what vanishes, which is distance in the
maximum norm, so one distance to the next other label, the same for all classes, gives all the bands at once.

The trimap of width w is all pixels within w pixels of a pixel of another label, on both sides of the true contours,
here in the same norm; the edge of the picture is no contour. Its mIoU is the ordinary one of these pixels.

In both, ignored pixels belong to no class and are not counted, but there is a contour around them.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.data import IGNORE
from cssformer.data.multilabel import presence

DILATION_RATIO = 0.02
"""Width of Boundary IoU's bands as a share of the picture's diagonal, as in the paper."""

TRIMAP_WIDTHS = (1, 2, 4, 8, 16, 32)
"""Widths of the trimaps in pixels."""

TRIMAP_WIDTH = 4
"""The width told where there is room for one: a cell of the network's output."""


def boundary_width(shape: tuple[int, ...], dilation_ratio: float = DILATION_RATIO) -> int:
    """The width d in pixels of Boundary IoU's bands in a picture of shape (H, W), one at least."""
    return max(1, round(dilation_ratio * math.hypot(*shape)))


def contour_distance(
    label: NDArray[np.int32], truth: NDArray[np.int32], dilation_ratio: float = DILATION_RATIO
) -> NDArray[np.uint16]:
    """How far from each pixel the nearest pixel of another label is, in the maximum norm: (H, W).

    Distances beyond all bands are cut off.

    Args:
        label: class indices (H, W), of the truth or of a prediction.
        truth: where it is ``IGNORE`` the label counts as such, too.
        dilation_ratio: of Boundary IoU.
    """
    limit = max(boundary_width(label.shape, dilation_ratio), *TRIMAP_WIDTHS)
    # Of the whole numbers that OpenCV filters, those that hold every class and a wrapped IGNORE.
    kept = np.where(truth == IGNORE, IGNORE, label).astype(np.uint16)
    square = np.ones((3, 3), np.uint8)
    inside = (cv2.dilate(kept, square) == cv2.erode(kept, square)).astype(np.uint8)
    if inside.all():
        return np.full(label.shape, limit + 1, np.uint16)
    # From a contour's own pixels; the chessboard norm is exact.
    return np.minimum(cv2.distanceTransform(inside, cv2.DIST_C, 3) + 1, limit + 1).astype(np.uint16)


def count_by_distance(
    prediction: NDArray[np.int32],
    label: NDArray[np.int32],
    classes: int,
    dilation_ratio: float = DILATION_RATIO,
    distance: NDArray[np.uint16] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What all scores of a picture are made of.

    Args:
        prediction: class indices (H, W), ``IGNORE`` where none is given.
        label: the truth (H, W) with ``IGNORE``.
        classes: C.
        dilation_ratio: of Boundary IoU.
        distance: the truth's :func:`contour_distance`, if it is known already.

    Returns:
        Confusion matrices (bands, C, C + 1): one for the pixels up to each of ``TRIMAP_WIDTHS`` from the true contours
        that are not in the band before, the last one for the rest; truth in the rows, predictions in the columns, the
        last column for pixels without prediction. And the pixels of each class (3, C) in both bands of Boundary IoU,
        in the truth's and in the prediction's.

    Raises:
        ValueError: a class index is impossible.
    """
    distance = contour_distance(label, label, dilation_ratio) if distance is None else distance
    width = boundary_width(label.shape, dilation_ratio)
    scored = label != IGNORE
    told = prediction != IGNORE
    possible = (label >= 0) & (label < classes) & (~told | (prediction >= 0) & (prediction < classes))
    if not possible[scored].all():
        raise ValueError(
            f"Class indices must lie in [0, {classes}): labels reach from {label[scored].min()} to {label.max()}, "
            f"predictions from {prediction.min()} to {prediction.max()}."
        )
    said = np.where(told, prediction, classes)
    bands, columns = len(TRIMAP_WIDTHS) + 1, classes + 1

    def count(where: NDArray[np.bool_], cell: NDArray[np.integer], cells: int) -> NDArray[np.int64]:
        """How often each cell occurs among the pixels; one cell more is for the others."""
        return np.bincount(np.where(where, cell, cells).ravel(), minlength=cells + 1)[:cells]

    band = np.searchsorted(TRIMAP_WIDTHS, np.arange(int(distance.max()) + 1)).astype(np.int32)[distance]
    pairs = count(scored, (band * classes + label) * columns + said, bands * classes * columns)
    in_true, in_said = distance <= width, contour_distance(prediction, label, dilation_ratio) <= width
    for near in (in_true, in_said):
        near[:width] = near[-width:] = near[:, :width] = near[:, -width:] = True  # the picture's edge is a contour
        near &= scored
    common = count(in_true & in_said & (label == said), label, classes)
    boundary = np.stack([common, count(in_true, label, classes), count(in_said, said, columns)[:classes]])
    return pairs.reshape(bands, classes, columns), boundary


def contour_distances(
    label: NDArray[np.int32], classes: int, dilation_ratio: float = DILATION_RATIO
) -> NDArray[np.uint16]:
    """:func:`contour_distance` from the contours of each class of a bit field, (C, H, W)."""
    planes = (presence(label, index) for index in range(classes))
    return np.stack([contour_distance(plane, plane, dilation_ratio) for plane in planes])


def count_multilabel(
    prediction: NDArray[np.int32],
    label: NDArray[np.int32],
    classes: int,
    dilation_ratio: float = DILATION_RATIO,
    distances: NDArray[np.uint16] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """:func:`count_by_distance` of bit fields (H, W), of each class against its absence.

    Args:
        distances: the truth's :func:`contour_distances`, if they are known already.

    Returns:
        Confusion matrices (bands, C, 2, 3), absent before present, and the pixels of each class (3, C) in both bands of
        Boundary IoU.

    Raises:
        ValueError: a value is none of the classes' bits.
    """
    for field in (prediction, label):
        if ((field != IGNORE) & (field >> classes != 0)).any():
            raise ValueError(f"Bit fields of {classes} classes must lie in [0, {1 << classes}).")
    counts = []
    for index in range(classes):
        own = None if distances is None else distances[index]
        counts.append(count_by_distance(presence(prediction, index), presence(label, index), 2, dilation_ratio, own))
    return np.stack([bands for bands, _ in counts], axis=1), np.stack([near[:, 1] for _, near in counts], axis=1)
