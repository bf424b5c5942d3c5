"""The forward kernels on the CPU, compiled for each D and K."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from cssformer.ops.numba_parts import ONE, QUERIES, Floats, Grid, Ints, Rows, softmax
from cssformer.ops.simd import LANES, announce, floor, integers, load, number, numbers, pairs, store, where, zero
from cssformer.ops.simd_sums import narrow, totals
from cssformer.utils.jit import jit

_AHEAD = 3  # queries between asking memory for what belongs to one and using it


@jit
def _place(
    weights: Any,
    offsets: Rows,
    at: int,
    places: Floats,
    place: int,
    levels: Ints,
    level: int,
    pixels: Ints,
    corners: Floats,
    to: int,
) -> None:
    """Upper left pixels (L·K) and weighted shares of the four corners (4, L·K) of one query's positions on one level.

    Positions are the query's place plus offsets, as many as there are lanes of weights. Where nothing can be sampled
    all shares are zero and the pixel is one that may be read. As :func:`cssformer.ops.numba_backward._locate`, but
    without a branch.
    """
    x, y = pairs(offsets, at, weights)
    x += number(places, place + 2 * level)
    y += number(places, place + 2 * level + 1)
    height, width = np.float32(levels[level, 0]), np.float32(levels[level, 1])
    inside = (x >= -ONE) & (x < width) & (y >= -ONE) & (y < height)
    x, y, weights = where(inside, x, -ONE), where(inside, y, -ONE), where(inside, weights, np.float32(0))
    left, top = floor(x), floor(y)
    fx, fy = x - left, y - top
    lower = weights * fy
    upper = weights - lower
    upper_right, lower_right = upper * fx, lower * fx
    store(pixels, to, integers(top) * (levels[level, 1] + np.int32(1)) + integers(left) + levels[level, 2])
    store(corners, to, upper - upper_right)
    store(corners, to + pixels.size, upper_right)
    store(corners, to + 2 * pixels.size, lower - lower_right)
    store(corners, to + 3 * pixels.size, lower_right)


class Forward(NamedTuple):
    sum: Any
    attend: Any


@cache
def forward(D: int, K: int) -> Forward:
    @jit
    def sum_forward(
        value: Rows,
        grid: Grid,
        offsets: Rows,
        places: Floats,
        stride: int,
        weights: Rows,
        out: Rows,
        pixels: Ints,
        corners: Floats,
        first: int,
        last: int,
    ) -> None:
        levels, padded, N, M, _ = grid
        L = levels.shape[0]
        runs = (N + QUERIES - 1) // QUERIES
        for task in range(first, last):
            head = task // runs
            b = head // M
            start = (task - head * runs) * QUERIES
            for n in range(start, min(N, start + QUERIES)):
                query = (b * N + n) * M + head - b * M
                ahead = query + _AHEAD * M
                announce(out, ahead * D, D)
                upper_left, upper_right, lower_left, lower_right = zero(D), zero(D), zero(D), zero(D)
                for level in range(L):
                    at = (query * L + level) * K
                    share = numbers(weights, at, K)
                    _place(share, offsets, 2 * at, places, n * stride, levels, level, pixels, corners, level * K)
                for level in range(L):
                    announce(offsets, 2 * (ahead * L + level) * K, 2 * K)
                    announce(weights, (ahead * L + level) * K, K)
                    below = (levels[level, 1] + 1) * D
                    for p in range(level * K, (level + 1) * K):
                        at = (head * padded + number(pixels, p)) * D
                        upper_left += number(corners, p) * load(value, at, D)
                        upper_right += number(corners, L * K + p) * load(value, at + D, D)
                        lower_left += number(corners, 2 * L * K + p) * load(value, at + below, D)
                        lower_right += number(corners, 3 * L * K + p) * load(value, at + below + D, D)
                store(out, query * D, (upper_left + upper_right) + (lower_left + lower_right))

    @jit
    def attend_forward(
        queries: Floats,
        maps: Rows,
        grid: Grid,
        offsets: Rows,
        places: Floats,
        stride: int,
        scale: np.float32,
        out: Rows,
        pixels: Ints,
        corners: Floats,
        logits: Floats,
        products: Floats,
        sampled: Floats,
        first: int,
        last: int,
    ) -> None:
        levels, padded, N, M, _ = grid
        L = levels.shape[0]
        ones = zero(K) + ONE
        runs = (N + QUERIES - 1) // QUERIES
        for task in range(first, last):
            head = task // runs
            b = head // M
            start = (task - head * runs) * QUERIES
            for n in range(start, min(N, start + QUERIES)):
                query = (b * N + n) * M + head - b * M
                ahead = query + _AHEAD * M
                announce(queries, ahead * D, D)
                announce(out, ahead * D, D)
                q = load(queries, query * D, D)
                for level in range(L):
                    at = (query * L + level) * K
                    _place(ones, offsets, 2 * at, places, n * stride, levels, level, pixels, corners, level * K)
                for level in range(L):
                    announce(offsets, 2 * (ahead * L + level) * K, 2 * K)
                    below = (levels[level, 1] + 1) * 2 * D
                    for p in range(level * K, (level + 1) * K):
                        at = (head * padded + number(pixels, p)) * 2 * D
                        key = number(corners, p) * load(maps, at, D)
                        value = number(corners, p) * load(maps, at + D, D)
                        key += number(corners, L * K + p) * load(maps, at + 2 * D, D)
                        value += number(corners, L * K + p) * load(maps, at + 3 * D, D)
                        at += below
                        key += number(corners, 2 * L * K + p) * load(maps, at, D)
                        value += number(corners, 2 * L * K + p) * load(maps, at + D, D)
                        key += number(corners, 3 * L * K + p) * load(maps, at + 2 * D, D)
                        value += number(corners, 3 * L * K + p) * load(maps, at + 3 * D, D)
                        store(products, p * LANES, narrow(q * key))
                        store(sampled, p * D, value)
                for p in range(0, logits.size, LANES):
                    store(logits, p, scale * totals(products, p * LANES))
                softmax(logits, L * K)
                even, odd = zero(D), zero(D)
                for p in range(0, L * K - 1, 2):
                    even += number(logits, p) * load(sampled, p * D, D)
                    odd += number(logits, p + 1) * load(sampled, (p + 1) * D, D)
                if L * K % 2:
                    even += number(logits, L * K - 1) * load(sampled, (L * K - 1) * D, D)
                store(out, query * D, even + odd)

    return Forward(sum_forward, attend_forward)
