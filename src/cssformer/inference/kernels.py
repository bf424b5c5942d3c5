"""What the CPU does per pixel, compiled: labels and probabilities from class scores at stride 4.

``scores`` is (C, n, w) float32, and ``rows`` and ``columns`` are the two neighbours of each sampled row or column and
the weight of the second.
"""

import numpy as np
from numpy.typing import NDArray

from cssformer.utils.jit import jit

Scores = NDArray[np.float32]
Axis = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


@jit
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


@jit
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


@jit
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
