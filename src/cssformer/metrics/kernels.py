"""What the CPU does per pixel, compiled: contours and counts."""

import numpy as np
from numpy.typing import NDArray

from cssformer.utils.jit import jit


@jit
def count_pairs(
    truth: NDArray[np.integer], predicted: NDArray[np.integer], ignore: int, counts: NDArray[np.int64]
) -> bool:
    """Add the pairs of two flat label maps to ``counts`` (C, C); False if a class index lies outside [0, C)."""
    classes = len(counts)
    possible = True
    for i in range(len(truth)):
        true, said = truth[i], predicted[i]
        if true == ignore:
            continue
        if 0 <= true < classes and 0 <= said < classes:
            counts[true, said] += 1
        else:
            possible = False
    return possible


@jit
def contour_distance(
    label: NDArray[np.int32], truth: NDArray[np.int32], ignore: int, limit: int, distance: NDArray[np.uint16]
) -> None:
    """Write how far from each pixel the nearest pixel of another label is, in the maximum norm; limit + 1 for farther.

    All arrays are (H, W). Where the truth is ``ignore``, so is the label.
    """
    height, width = label.shape
    far = np.uint16(limit + 1)
    masked = np.empty((3, width), dtype=np.int32)
    for y in range(height + 1):
        if y < height:
            for x in range(width):
                masked[y % 3, x] = ignore if truth[y, x] == ignore else label[y, x]
        if y > 0:
            above, here, below = masked[max(y - 2, 0) % 3], masked[(y - 1) % 3], masked[min(y, height - 1) % 3]
            _mark_contour(above, here, below, far, distance[y - 1])
    # The two passes of the chamfer transform, which is exact in this norm.
    _spread(distance)
    _spread(distance[::-1, ::-1])


@jit
def _mark_contour(
    above: NDArray[np.int32],
    here: NDArray[np.int32],
    below: NDArray[np.int32],
    far: int,
    distance: NDArray[np.uint16],
) -> None:
    """Write 1 where one of a pixel's eight neighbours has another label, ``far`` elsewhere: one row."""
    last = len(here) - 1
    for x in range(1, last):
        label = here[x]
        differs = (
            (above[x - 1] != label)
            | (above[x] != label)
            | (above[x + 1] != label)
            | (here[x - 1] != label)
            | (here[x + 1] != label)
            | (below[x - 1] != label)
            | (below[x] != label)
            | (below[x + 1] != label)
        )
        distance[x] = np.uint16(1) if differs else far
    for x in (0, last):
        distance[x] = far
        for near in range(max(x - 1, 0), min(x + 1, last) + 1):
            if above[near] != here[x] or here[near] != here[x] or below[near] != here[x]:
                distance[x] = 1


@jit
def _spread(distance: NDArray[np.uint16]) -> None:
    """Lower each distance to one more than that of its neighbours above and on the left, row by row."""
    one = np.uint16(1)
    height, width = distance.shape
    for y in range(height):
        row = distance[y]
        if y > 0:
            above = distance[y - 1]
            for x in range(1, width - 1):
                row[x] = min(row[x], min(above[x - 1], above[x], above[x + 1]) + one)
            for x in (0, width - 1):
                for near in range(max(x - 1, 0), min(x + 2, width)):
                    row[x] = min(row[x], above[near] + one)
        for x in range(1, width):
            row[x] = min(row[x], row[x - 1] + one)


@jit
def count_by_distance(
    truth: NDArray[np.int32],
    predicted: NDArray[np.int32],
    ignore: int,
    distance: NDArray[np.uint16],
    predicted_distance: NDArray[np.uint16],
    band: NDArray[np.int64],
    width: int,
    pairs: NDArray[np.int64],
    boundary: NDArray[np.int64],
) -> bool:
    """Count the pixels of a picture by true class, predicted class and distance from the true contour.

    Args:
        truth, predicted: labels (H, W); a prediction of ``ignore`` is counted as class C.
        ignore: pixels with this truth are left out.
        distance, predicted_distance: of :func:`contour_distance`.
        band: the place in ``pairs`` of each distance.
        width: of the bands of Boundary IoU.
        pairs: (bands, C, C + 1), added to.
        boundary: (3, C + 1), added to: pixels of each class in both bands, in the truth's, in the prediction's.

    Returns:
        False if a class index is impossible.
    """
    height, across = truth.shape
    classes = pairs.shape[1]
    possible = True
    for y in range(height):
        for x in range(across):
            true, said = truth[y, x], predicted[y, x]
            if true == ignore:
                continue
            if said == ignore:
                said = classes
            elif said < 0 or said >= classes:
                possible = False
                continue
            if true < 0 or true >= classes:
                possible = False
                continue
            pairs[band[distance[y, x]], true, said] += 1
            at_edge = min(y, x, height - 1 - y, across - 1 - x) < width
            in_true, in_said = at_edge or distance[y, x] <= width, at_edge or predicted_distance[y, x] <= width
            boundary[0, true] += in_true and in_said and true == said
            boundary[1, true] += in_true
            boundary[2, said] += in_said
    return possible
