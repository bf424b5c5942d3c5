"""What the CPU does per pixel, compiled: labels and probabilities from class scores at stride 4, contours, and counts.

Everywhere ``scores`` is (C, n, w) float32, and ``rows`` and ``columns`` are the two neighbours of each sampled row or
column and the weight of the second.
"""

import numpy as np
from numpy.typing import NDArray

from cssformer.compiled import compiled

Scores = NDArray[np.float32]
Axis = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


@compiled
def label_pixels(
    scores: Scores,
    rows: Axis,
    columns: Axis,
    labels: NDArray[np.int32],
) -> None:
    """Write the class of the highest interpolated score into ``labels`` (sampled rows, sampled columns).

    Interpolation averages four cells with positive weights, so where the four agree on the best class the pixel has
    it too. Only pixels between cells that disagree, few in a real prediction, look at the other classes.
    """
    low_row, high_row, row_weight = rows
    low_column, high_column, column_weight = columns
    classes, _, width = scores.shape
    first, last = low_row[0], high_row[-1]
    winner = np.empty((last - first + 1, width), dtype=np.int32)
    for row in range(first, last + 1):
        best, chosen = scores[0, row].copy(), winner[row - first]
        chosen[:] = 0
        for index in range(1, classes):
            candidate = scores[index, row]
            for x in range(width):
                better = candidate[x] > best[x]
                best[x] = candidate[x] if better else best[x]
                chosen[x] = index if better else chosen[x]

    for y in range(len(low_row)):
        upper, lower, down = low_row[y], high_row[y], row_weight[y]
        undecided = np.empty(labels.shape[1], dtype=np.int64)
        count = 0
        for x in range(labels.shape[1]):
            left, right = low_column[x], high_column[x]
            agreed = winner[upper - first, left]
            if (
                agreed == winner[upper - first, right]
                and agreed == winner[lower - first, left]
                and agreed == winner[lower - first, right]
            ):
                labels[y, x] = agreed
            else:
                undecided[count] = x
                count += 1
        if count == 0:
            continue
        left_of, right_of = low_column[undecided[:count]], high_column[undecided[:count]]
        across = column_weight[undecided[:count]]
        best = np.full(count, -np.inf, dtype=np.float32)
        chosen = np.zeros(count, dtype=np.int32)
        for index in range(classes):
            above, below = scores[index, upper], scores[index, lower]
            for i in range(count):
                at_left = above[left_of[i]] + down * (below[left_of[i]] - above[left_of[i]])
                at_right = above[right_of[i]] + down * (below[right_of[i]] - above[right_of[i]])
                value = at_left + across[i] * (at_right - at_left)
                better = value > best[i]
                best[i] = value if better else best[i]
                chosen[i] = index if better else chosen[i]
        for i in range(count):
            labels[y, undecided[i]] = chosen[i]


@compiled
def add_probabilities(scores: Scores, rows: Axis, columns: Axis, total: NDArray[np.float32]) -> None:
    """Add the softmax of the interpolated scores to ``total`` (C, sampled rows, sampled columns)."""
    low_row, high_row, row_weight = rows
    low_column, high_column, column_weight = columns
    classes, _, narrow = scores.shape
    width = len(low_column)
    between = np.empty(narrow, dtype=np.float32)
    exponential = np.empty((classes, width), dtype=np.float32)
    for y in range(len(low_row)):
        highest = np.full(width, -np.inf, dtype=np.float32)
        for index in range(classes):
            above, below, down = scores[index, low_row[y]], scores[index, high_row[y]], row_weight[y]
            for x in range(narrow):
                between[x] = above[x] + down * (below[x] - above[x])
            out = exponential[index]
            for x in range(width):
                left = between[low_column[x]]
                out[x] = left + column_weight[x] * (between[high_column[x]] - left)
                highest[x] = max(highest[x], out[x])
        whole = np.zeros(width, dtype=np.float32)
        for index in range(classes):
            out = exponential[index]
            for x in range(width):
                out[x] = np.exp(out[x] - highest[x])
                whole[x] += out[x]
        for x in range(width):
            whole[x] = np.float32(1) / whole[x]
        for index in range(classes):
            out, target = exponential[index], total[index, y]
            for x in range(width):
                target[x] += out[x] * whole[x]


@compiled
def most_probable(probability: NDArray[np.float32], labels: NDArray[np.int32], best: NDArray[np.float32]) -> None:
    """Write the class with the highest value of (C, H, W) into ``labels`` and the value into ``best``, both (H, W)."""
    classes, height, width = probability.shape
    for y in range(height):
        for x in range(width):
            labels[y, x], best[y, x] = 0, probability[0, y, x]
        for index in range(1, classes):
            candidate, chosen, highest = probability[index, y], labels[y], best[y]
            for x in range(width):
                better = candidate[x] > highest[x]
                highest[x] = candidate[x] if better else highest[x]
                chosen[x] = index if better else chosen[x]


@compiled
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


@compiled
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


@compiled
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


@compiled
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


@compiled
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
