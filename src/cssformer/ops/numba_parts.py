"""What the forward and the backward kernels on the CPU share: types and softmax."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cssformer.ops.simd import LANES, floor, load, power_of_two, store, where, zero
from cssformer.ops.simd_sums import largest, total
from cssformer.utils.jit import jit

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Rows = NDArray[np.float32] | NDArray[np.uint16]  # uint16: the bits of bfloat16

QUERIES = 64  # in one task
ONE = np.float32(1)


class Grid(NamedTuple):
    """Of a call: rows (H, W, pixel (0, 0)) of the L levels, a padded map's pixels, N queries, M heads, K points."""

    levels: Ints
    padded: int
    N: int
    M: int
    K: int


@jit
def _exp(x: Any) -> Any:
    """exp(x) of a row of numbers not above 0, to 2 units in the last place."""
    # Small enough not to count, and large enough that scaling the result leaves no denormal number.
    x = where(x < np.float32(-80), np.float32(-80), x)
    whole = floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    # ln 2 in two parts: the first has few bits, so that its product with a whole number is exact.
    x = x - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    series = np.float32(1 / 720) * x + np.float32(1 / 120)
    series = series * x + np.float32(1 / 24)
    series = series * x + np.float32(1 / 6)
    series = series * x + np.float32(1 / 2)
    series = series * x * x + x + ONE
    return series * power_of_two(whole)


@jit
def softmax(logits: Floats, count: int) -> None:
    """Softmax of the first ``count`` logits, in place; there is room for whole rows. NaN gives NaN."""
    for p in range(count, logits.size):
        logits[p] = -np.inf
    most = load(logits, 0, LANES)
    for p in range(LANES, logits.size, LANES):
        row = load(logits, p, LANES)
        most = where(most < row, row, most)
    top = largest(most)
    sums = zero(LANES)
    for p in range(0, logits.size, LANES):
        row = _exp(load(logits, p, LANES) - top)
        store(logits, p, row)
        sums += row
    scale = ONE / total(sums)
    for p in range(0, logits.size, LANES):
        store(logits, p, load(logits, p, LANES) * scale)
