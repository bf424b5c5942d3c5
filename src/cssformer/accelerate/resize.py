"""Bilinear up-sampling on the CPU: PyTorch's takes one core for a picture."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cssformer.ops.numba_parts import Floats, Ints
from cssformer.ops.simd import LANES, elements, number, numbers, store
from cssformer.ops.threads import run
from cssformer.utils.jit import jit
from cssformer.utils.memory import empty

_ONE = np.float32(1)

Places = tuple[Ints, Ints, Floats]


def _between(length: int, size: int) -> Places:
    """For each of ``size`` cells the two of ``length`` between whose centres its own lies, and how far."""
    half = np.float32(0.5)
    at = np.maximum(np.float32(0), (np.arange(size, dtype=np.float32) + half) * np.float32(length / size) - half)
    low = at.astype(np.int32)
    return low, np.minimum(low + 1, length - 1), at - low.astype(np.float32)


@cache
def _kernel(lanes: int) -> Any:
    """For ``lanes`` channels at a time; the last are done twice where they do not come out even."""

    @jit
    def enlarge_rows(
        source: NDArray[Any],
        target: NDArray[Any],
        h: int,
        w: int,
        rows: Places,
        columns: Places,
        C: int,
        first: int,
        last: int,
    ) -> None:
        """Rows ``first`` to ``last`` of all pictures' (B·height, width, C), from (B·h, w, C)."""
        uppers, lowers, down = rows
        lefts, rights, along = columns
        height, width = down.size, along.size
        for row in range(first, last):
            picture = row // height
            y = row - picture * height
            above, below = (picture * h + number(uppers, y)) * w, (picture * h + number(lowers, y)) * w
            fy = number(down, y)
            for x in range(width):
                left, right, fx = number(lefts, x), number(rights, x), number(along, x)
                shares = (_ONE - fy) * (_ONE - fx), (_ONE - fy) * fx, fy * (_ONE - fx), fy * fx
                corners = (above + left) * C, (above + right) * C, (below + left) * C, (below + right) * C
                to = (row * width + x) * C
                for start in range(0, C, lanes):
                    c = min(start, C - lanes)
                    value = shares[0] * numbers(source, corners[0] + c, lanes)
                    value += shares[1] * numbers(source, corners[1] + c, lanes)
                    value += shares[2] * numbers(source, corners[2] + c, lanes)
                    value += shares[3] * numbers(source, corners[3] + c, lanes)
                    store(target, to + c, value)

    return enlarge_rows


def enlarge(feature: Tensor, height: int, width: int) -> Tensor:
    """Float32 or bfloat16 (B, h, w, C) on the CPU, not empty -> (B, height, width, C)."""
    batch, h, w, channels = feature.shape
    full = empty((batch, height, width, channels), feature.dtype)
    source, target = (elements(tensor, feature.dtype) for tensor in (feature, full))
    kernel, numbers_read = _kernel(min(channels, LANES)), 4 * full.numel()
    places = _between(h, height), _between(w, width)
    run(kernel, batch * height, numbers_read, source, target, h, w, *places, channels)
    return full
