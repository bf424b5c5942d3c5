"""Bilinear up-sampling on the CPU: PyTorch's takes one core for a picture."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cssformer.ops.simd import LANES, elements, numbers, store
from cssformer.ops.threads import run
from cssformer.utils.jit import jit
from cssformer.utils.memory import empty

_HALF, _ONE = np.float32(0.5), np.float32(1)


@jit
def _between(place: int, length: int, size: int) -> tuple[int, int, np.float32]:
    """The two of ``length`` cells between whose centres that of cell ``place`` of ``size`` lies, and how far."""
    at = max(np.float32(0), (np.float32(place) + _HALF) * np.float32(length / size) - _HALF)
    low = int(at)
    return low, min(low + 1, length - 1), at - np.float32(low)


@cache
def _kernel(lanes: int) -> Any:
    """For ``lanes`` channels at a time; the last are done twice where they do not come out even."""

    @jit
    def enlarge_rows(
        source: NDArray[Any],
        target: NDArray[Any],
        h: int,
        w: int,
        height: int,
        width: int,
        C: int,
        first: int,
        last: int,
    ) -> None:
        """Rows ``first`` to ``last`` of all pictures' (B·height, width, C), from (B·h, w, C)."""
        for row in range(first, last):
            picture = row // height
            upper, lower, fy = _between(row - picture * height, h, height)
            above, below = (picture * h + upper) * w, (picture * h + lower) * w
            for x in range(width):
                left, right, fx = _between(x, w, width)
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
    run(kernel, batch * height, numbers_read, source, target, h, w, height, width, channels)
    return full
