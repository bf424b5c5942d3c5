"""The CPU backend: numba kernels for both functions, forward and backward.

Every level is copied once into a padded layout, (B, M, padded pixels, D): one head's map is contiguous, and a frame of
zeros around it makes every corner of every position that can contribute readable without a test. Rows of a level lie
W + 1 pixels apart, so the zero right of one row is the zero left of the next.

Work is cut into tasks that write disjoint memory, whatever the number of threads: forward, a run of queries of one
head; backward into the maps, one head's level. So every result has the same bits for any number of threads.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cssformer.ops.simd import (
    LANES,
    accumulate,
    dots,
    elements,
    floor,
    integers,
    largest,
    lay,
    load,
    narrow,
    number,
    numbers,
    pairs,
    power_of_two,
    prefetch,
    store,
    total,
    totals,
    where,
    zero,
)
from cssformer.ops.threads import run
from cssformer.utils.jit import jit
from cssformer.utils.memory import empty

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Rows = NDArray[np.float32] | NDArray[np.uint16]  # uint16: the bits of bfloat16
Shapes = Sequence[tuple[int, int]]

_QUERIES = 64  # queries in one forward task
_AHEAD = 3  # queries between asking memory for what belongs to one and using it, forward

_ONE = np.float32(1)


# ---------------------------------------------------------------- where a position falls


@jit
def _locate(x: np.float32, y: np.float32, levels: Ints, level: int) -> tuple[int, np.float32, np.float32]:
    """The padded pixel of the upper left corner and the fractions beyond it; pixel -1 if nothing can be sampled."""
    # Written so that NaN is outside. A branch, not a select: guessed right, it lets the gather start before the
    # position is known.
    if x >= -_ONE and x < np.float32(levels[level, 1]) and y >= -_ONE and y < np.float32(levels[level, 0]):
        left, top = np.floor(x), np.floor(y)
        pixel = levels[level, 2] + np.int32(top) * (levels[level, 1] + np.int32(1)) + np.int32(left)
        return pixel, x - left, y - top
    return np.int32(-1), np.float32(0), np.float32(0)


@jit
def _bilinear(
    upper_left: np.float32,
    upper_right: np.float32,
    lower_left: np.float32,
    lower_right: np.float32,
    fx: np.float32,
    fy: np.float32,
) -> tuple[np.float32, np.float32, np.float32]:
    """The value between four corners, and its slopes along x and y."""
    upper, lower = upper_right - upper_left, lower_right - lower_left
    down = lower_left + fx * lower - upper_left - fx * upper
    return upper_left + fx * upper + fy * down, upper + fy * (lower - upper), down


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
    all shares are zero and the pixel is one that may be read. As :func:`_locate`, but without a branch.
    """
    x, y = pairs(offsets, at, weights)
    x += number(places, place + 2 * level)
    y += number(places, place + 2 * level + 1)
    height, width = np.float32(levels[level, 0]), np.float32(levels[level, 1])
    inside = (x >= -_ONE) & (x < width) & (y >= -_ONE) & (y < height)
    x, y, weights = where(inside, x, -_ONE), where(inside, y, -_ONE), where(inside, weights, np.float32(0))
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


@jit
def _scratch(size: int) -> Floats:
    """Zeros at the start of a cache line: what is stored across two lines can not soon be loaded again."""
    room = np.zeros(size + 16, np.float32)
    return room[-(room.ctypes.data // 4) % 16 :][:size]


@jit
def _announce(floats: Rows, start: int, count: int) -> None:
    """Bring a coming query's part nearer: heads lie a page apart, too far for the machine to guess."""
    for offset in range(start, start + count, 64 // floats.itemsize):
        prefetch(floats, offset)


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
    series = series * x * x + x + _ONE
    return series * power_of_two(whole)


@jit
def _softmax(logits: Floats, count: int) -> None:
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
    scale = _ONE / total(sums)
    for p in range(0, logits.size, LANES):
        store(logits, p, load(logits, p, LANES) * scale)


# ---------------------------------------------------------------- kernels, one set for each D, forward for each K too


class _Kernels(NamedTuple):
    pack: Any
    unpack: Any
    sum_backward: Any
    attend_queries: Any
    attend_maps: Any


class _Forward(NamedTuple):
    sum: Any
    attend: Any


@cache
def _forward(D: int, K: int) -> _Forward:
    @jit
    def sum_forward(
        value: Rows,
        levels: Ints,
        padded: int,
        offsets: Rows,
        places: Floats,
        stride: int,
        weights: Rows,
        out: Rows,
        N: int,
        M: int,
        first: int,
        last: int,
    ) -> None:
        L = levels.shape[0]
        pixels = _scratch(L * K).view(np.int32)
        corners = _scratch(4 * L * K)
        runs = (N + _QUERIES - 1) // _QUERIES
        for task in range(first, last):
            head = task // runs
            b = head // M
            start = (task - head * runs) * _QUERIES
            for n in range(start, min(N, start + _QUERIES)):
                query = (b * N + n) * M + head - b * M
                ahead = query + _AHEAD * M
                _announce(out, ahead * D, D)
                upper_left, upper_right, lower_left, lower_right = zero(D), zero(D), zero(D), zero(D)
                for level in range(L):
                    at = (query * L + level) * K
                    share = numbers(weights, at, K)
                    _place(share, offsets, 2 * at, places, n * stride, levels, level, pixels, corners, level * K)
                for level in range(L):
                    _announce(offsets, 2 * (ahead * L + level) * K, 2 * K)
                    _announce(weights, (ahead * L + level) * K, K)
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
        levels: Ints,
        padded: int,
        offsets: Rows,
        places: Floats,
        stride: int,
        scale: np.float32,
        out: Rows,
        N: int,
        M: int,
        first: int,
        last: int,
    ) -> None:
        L = levels.shape[0]
        ones = zero(K) + _ONE
        pixels = _scratch(L * K).view(np.int32)
        corners = _scratch(4 * L * K)
        rows = -(-L * K // LANES)
        logits = _scratch(rows * LANES)
        products = _scratch(rows * LANES * LANES)
        sampled = _scratch(L * K * D)
        runs = (N + _QUERIES - 1) // _QUERIES
        for task in range(first, last):
            head = task // runs
            b = head // M
            start = (task - head * runs) * _QUERIES
            for n in range(start, min(N, start + _QUERIES)):
                query = (b * N + n) * M + head - b * M
                ahead = query + _AHEAD * M
                _announce(queries, ahead * D, D)
                _announce(out, ahead * D, D)
                q = load(queries, query * D, D)
                for level in range(L):
                    at = (query * L + level) * K
                    _place(ones, offsets, 2 * at, places, n * stride, levels, level, pixels, corners, level * K)
                for level in range(L):
                    _announce(offsets, 2 * (ahead * L + level) * K, 2 * K)
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
                _softmax(logits, L * K)
                even, odd = zero(D), zero(D)
                for p in range(0, L * K - 1, 2):
                    even += number(logits, p) * load(sampled, p * D, D)
                    odd += number(logits, p + 1) * load(sampled, (p + 1) * D, D)
                if L * K % 2:
                    even += number(logits, L * K - 1) * load(sampled, (L * K - 1) * D, D)
                store(out, query * D, even + odd)

    return _Forward(sum_forward, attend_forward)


@cache
def _kernels(D: int) -> _Kernels:
    @jit
    def pack(
        source: Rows, levels: Ints, packed: Rows, S: int, M: int, padded: int, width: int, first: int, last: int
    ) -> None:
        """Copy pixels ``first`` to ``last`` of (B·S, M, D) into the frame of zeros, rows of ``width`` floats."""
        for pixel in range(first, last):
            b = pixel // S
            s = pixel - b * S
            level = 0
            while s >= levels[level, 0] * levels[level, 1]:
                s -= levels[level, 0] * levels[level, 1]
                level += 1
            y = s // levels[level, 1]
            at = b * M * padded + levels[level, 2] + s + y
            for m in range(M):
                lay(packed, (at + m * padded) * width, source, (pixel * M + m) * D, D)

    @jit
    def unpack(
        packed: Floats, levels: Ints, target: Floats, S: int, M: int, padded: int, width: int, first: int, last: int
    ) -> None:
        """The inverse of ``pack``."""
        for pixel in range(first, last):
            b = pixel // S
            s = pixel - b * S
            level = 0
            while s >= levels[level, 0] * levels[level, 1]:
                s -= levels[level, 0] * levels[level, 1]
                level += 1
            y = s // levels[level, 1]
            at = b * M * padded + levels[level, 2] + s + y
            for m in range(M):
                store(target, (pixel * M + m) * D, load(packed, (at + m * padded) * width, D))

    @jit
    def sum_backward(
        grad: Floats,
        value: Floats,
        levels: Ints,
        padded: int,
        positions: Floats,
        weights: Floats,
        grad_value: Floats,
        grad_positions: Floats,
        grad_weights: Floats,
        to_value: bool,
        to_points: bool,
        N: int,
        M: int,
        K: int,
        first: int,
        last: int,
    ) -> None:
        """Task = one level of one head: it alone writes that level's gradient and the gradients of its points."""
        L = levels.shape[0]
        for task in range(first, last):
            head = task // L
            level = task - head * L
            b = head // M
            below = (levels[level, 1] + 1) * D
            for n in range(N):
                query = (b * N + n) * M + head - b * M
                _announce(positions, ((query + M) * L + level) * K * 2, K * 2)
                _announce(weights, ((query + M) * L + level) * K, K)
                _announce(grad, (query + M) * D, D)
                if to_points:
                    _announce(grad_positions, ((query + M) * L + level) * K * 2, K * 2)
                    _announce(grad_weights, ((query + M) * L + level) * K, K)
                g = load(grad, query * D, D)
                for p in range((query * L + level) * K, (query * L + level + 1) * K):
                    pixel, fx, fy = _locate(positions[2 * p], positions[2 * p + 1], levels, level)
                    if pixel >= 0:
                        weight = weights[p]
                        at = (head * padded + pixel) * D
                        if to_points:
                            corners = dots(
                                g,
                                load(value, at, D),
                                load(value, at + D, D),
                                load(value, at + below, D),
                                load(value, at + below + D, D),
                            )
                            sample, along_x, along_y = _bilinear(*corners, fx, fy)
                            grad_weights[p] = sample
                            grad_positions[2 * p] = weight * along_x
                            grad_positions[2 * p + 1] = weight * along_y
                        if to_value:
                            lower = weight * fy
                            upper = weight - lower
                            accumulate(grad_value, at, upper - upper * fx, g)
                            accumulate(grad_value, at + D, upper * fx, g)
                            accumulate(grad_value, at + below, lower - lower * fx, g)
                            accumulate(grad_value, at + below + D, lower * fx, g)
                    elif to_points:
                        grad_weights[p] = 0
                        grad_positions[2 * p] = 0
                        grad_positions[2 * p + 1] = 0

    @jit
    def attend_queries(
        grad: Floats,
        queries: Floats,
        maps: Floats,
        levels: Ints,
        padded: int,
        positions: Floats,
        scale: np.float32,
        grad_queries: Floats,
        grad_positions: Floats,
        weights: Floats,
        grad_logits: Floats,
        N: int,
        M: int,
        K: int,
        first: int,
        last: int,
    ) -> None:
        """Gradients of queries and positions; leaves the attention and the logits' gradients for ``attend_maps``."""
        L = levels.shape[0]
        keys = np.empty((2, L * K), np.float32)  # slopes along x and y of q · key
        values = np.empty((3, L * K), np.float32)  # g · value and its slopes
        attention = _scratch(-(-L * K // LANES) * LANES)
        sampled = _scratch(L * K * D)
        runs = (N + _QUERIES - 1) // _QUERIES
        for task in range(first, last):
            head = task // runs
            b = head // M
            start = (task - head * runs) * _QUERIES
            for n in range(start, min(N, start + _QUERIES)):
                query = (b * N + n) * M + head - b * M
                point = query * L * K
                ahead = (query + M) * L * K
                _announce(positions, 2 * ahead, L * K * 2)
                _announce(grad_positions, 2 * ahead, L * K * 2)
                _announce(weights, ahead, L * K)
                _announce(grad_logits, ahead, L * K)
                _announce(queries, (query + M) * D, D)
                _announce(grad, (query + M) * D, D)
                q = load(queries, query * D, D)
                g = load(grad, query * D, D)
                for level in range(L):
                    below = (levels[level, 1] + 1) * 2 * D
                    for p in range(level * K, (level + 1) * K):
                        x, y = positions[2 * (point + p)], positions[2 * (point + p) + 1]
                        pixel, fx, fy = _locate(x, y, levels, level)
                        if pixel >= 0:
                            at = (head * padded + pixel) * 2 * D
                            upper_left = load(maps, at, D)
                            upper_right = load(maps, at + 2 * D, D)
                            lower_left = load(maps, at + below, D)
                            lower_right = load(maps, at + below + 2 * D, D)
                            corners = dots(q, upper_left, upper_right, lower_left, lower_right)
                            logit, keys[0, p], keys[1, p] = _bilinear(*corners, fx, fy)
                            attention[p] = scale * logit
                            key = (_ONE - fx) * (_ONE - fy) * upper_left + fx * (_ONE - fy) * upper_right
                            store(sampled, p * D, key + (_ONE - fx) * fy * lower_left + fx * fy * lower_right)
                            at += D
                            corners = dots(
                                g,
                                load(maps, at, D),
                                load(maps, at + 2 * D, D),
                                load(maps, at + below, D),
                                load(maps, at + below + 2 * D, D),
                            )
                            values[0, p], values[1, p], values[2, p] = _bilinear(*corners, fx, fy)
                        else:
                            keys[0, p] = keys[1, p] = 0
                            values[0, p] = values[1, p] = values[2, p] = 0
                            attention[p] = 0
                            store(sampled, p * D, zero(D))
                _softmax(attention, L * K)
                mean = np.float32(0)
                for p in range(L * K):
                    mean += attention[p] * values[0, p]
                grad_query = zero(D)
                for p in range(L * K):
                    grad_logit = scale * attention[p] * (values[0, p] - mean)
                    weights[point + p] = attention[p]
                    grad_logits[point + p] = grad_logit
                    grad_positions[2 * (point + p)] = attention[p] * values[1, p] + grad_logit * keys[0, p]
                    grad_positions[2 * (point + p) + 1] = attention[p] * values[2, p] + grad_logit * keys[1, p]
                    grad_query += grad_logit * load(sampled, p * D, D)
                store(grad_queries, query * D, grad_query)

    @jit
    def attend_maps(
        grad: Floats,
        queries: Floats,
        levels: Ints,
        padded: int,
        positions: Floats,
        weights: Floats,
        grad_logits: Floats,
        grad_maps: Floats,
        N: int,
        M: int,
        K: int,
        first: int,
        last: int,
    ) -> None:
        """Gradients of keys and values. Task = one level of one head, which it alone writes."""
        L = levels.shape[0]
        for task in range(first, last):
            head = task // L
            level = task - head * L
            b = head // M
            below = (levels[level, 1] + 1) * 2 * D
            for n in range(N):
                query = (b * N + n) * M + head - b * M
                ahead = ((query + M) * L + level) * K
                _announce(positions, 2 * ahead, 2 * K)
                _announce(weights, ahead, K)
                _announce(grad_logits, ahead, K)
                _announce(queries, (query + M) * D, D)
                _announce(grad, (query + M) * D, D)
                q = load(queries, query * D, D)
                g = load(grad, query * D, D)
                for p in range((query * L + level) * K, (query * L + level + 1) * K):
                    pixel, fx, fy = _locate(positions[2 * p], positions[2 * p + 1], levels, level)
                    if pixel >= 0:
                        at = (head * padded + pixel) * 2 * D
                        upper_left, upper_right = (_ONE - fx) * (_ONE - fy), fx * (_ONE - fy)
                        lower_left, lower_right = (_ONE - fx) * fy, fx * fy
                        of_key, of_value = grad_logits[p], weights[p]
                        accumulate(grad_maps, at, upper_left * of_key, q)
                        accumulate(grad_maps, at + D, upper_left * of_value, g)
                        accumulate(grad_maps, at + 2 * D, upper_right * of_key, q)
                        accumulate(grad_maps, at + 3 * D, upper_right * of_value, g)
                        at += below
                        accumulate(grad_maps, at, lower_left * of_key, q)
                        accumulate(grad_maps, at + D, lower_left * of_value, g)
                        accumulate(grad_maps, at + 2 * D, lower_right * of_key, q)
                        accumulate(grad_maps, at + 3 * D, lower_right * of_value, g)

    return _Kernels(pack, unpack, sum_backward, attend_queries, attend_maps)


# ---------------------------------------------------------------- the backend's face


def _levels(shapes: Shapes) -> tuple[Ints, int]:
    """Rows of (H, W, pixel (0, 0)) in the padded layout, and its number of pixels."""
    rows, start = [], 0
    for height, width in shapes:
        rows.append((height, width, start + width + 2))
        start += (height + 2) * (width + 1) + 1
    return np.array(rows, np.int32).reshape(-1, 3), start


def _framed(maps: int, padded: int, width: int, levels: Ints, dtype: np.dtype[Any]) -> Any:
    """Room for padded maps, ``width`` numbers a pixel: their frames zero, what is inside not written yet.

    It begins with a cache line, so that rows do not straddle more lines than they must.
    """
    line, size = 64 // dtype.itemsize, maps * padded * width
    room = np.empty(size + line, dtype)
    room = room[-(room.ctypes.data // dtype.itemsize) % line :][:size]
    pixels = room.reshape(maps, padded, width)
    for height, columns, first in levels:
        below = first + height * (columns + 1)
        pixels[:, first - columns - 2 : first] = 0
        pixels[:, first + columns : below : columns + 1] = 0
        pixels[:, below : below + columns + 1] = 0
    return room


def _flat(tensor: Tensor) -> Floats:
    return elements(tensor, torch.float32)


class Packed(NamedTuple):
    """Maps side by side in the padded layout, (B, M, padded, maps · D), flat: float32, or bfloat16 laid by ``lay``."""

    rows: Rows
    levels: Ints
    padded: int
    D: int
    dtype: torch.dtype


def _placed(offsets_BNMLK2: Tensor, reference_NL2: Tensor | None) -> tuple[Rows, Floats, int]:
    """Offsets, reference points, and how many numbers of these belong to a query: 0 if all share one."""
    L = offsets_BNMLK2.shape[3]
    places = np.zeros(2 * L, np.float32) if reference_NL2 is None else _flat(reference_NL2)
    return elements(offsets_BNMLK2, offsets_BNMLK2.dtype), places, 0 if reference_NL2 is None else 2 * L


def pack(maps_BSMD: Sequence[Tensor], shapes: Shapes) -> Packed:
    """Lay out value, or key and value, for :func:`sum_packed` and :func:`attend_packed`."""
    B, S, M, D = maps_BSMD[0].shape
    levels, padded = _levels(shapes)
    width = D * len(maps_BSMD)
    sources = [elements(map_BSMD, maps_BSMD[-1].dtype) for map_BSMD in maps_BSMD]
    packed = _framed(B * M, padded, width, levels, sources[0].dtype)
    for index, (map_BSMD, source) in enumerate(zip(maps_BSMD, sources, strict=True)):
        arguments = (source, levels, packed[index * D :], S, M, padded, width)
        run(_kernels(D).pack, B * S, map_BSMD.numel(), *arguments)
    return Packed(packed, levels, padded, D, maps_BSMD[-1].dtype)


def _unpacked(packed: Floats, index: int, like_BSMD: Tensor, levels: Ints, padded: int) -> Tensor:
    B, S, M, D = like_BSMD.shape
    target = empty(like_BSMD.shape)
    width = packed.size // (B * M * padded)
    arguments = (packed[index * D :], levels, _flat(target), S, M, padded, width)
    run(_kernels(D).unpack, B * S, target.numel(), *arguments)
    return target.to(like_BSMD.dtype)


def _result(maps: Packed, B: int, N: int, M: int) -> Tensor:
    """Room for what the kernels make of the maps: they write float32 or bfloat16."""
    return empty((B, N, M, maps.D), torch.bfloat16 if maps.dtype == torch.bfloat16 else torch.float32)


def sum_forward(value_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor, weights_BNMLK: Tensor) -> Tensor:
    return sum_packed(pack([value_BSMD], shapes), positions_BNMLK2, None, weights_BNMLK)


def sum_packed(maps: Packed, offsets_BNMLK2: Tensor, reference_NL2: Tensor | None, weights_BNMLK: Tensor) -> Tensor:
    """Samples at the offsets from the reference points, or from 0."""
    B, N, M, L, K, _ = offsets_BNMLK2.shape
    out = _result(maps, B, N, M)
    layout = (maps.levels, maps.padded, *_placed(offsets_BNMLK2, reference_NL2))
    arguments = (maps.rows, *layout, elements(weights_BNMLK, weights_BNMLK.dtype), elements(out, out.dtype), N, M)
    run(_forward(maps.D, K).sum, B * M * -(-N // _QUERIES), out.numel() * L * K, *arguments)
    return out.to(maps.dtype)


def sum_backward(
    grad_BNMD: Tensor,
    value_BSMD: Tensor,
    shapes: Shapes,
    positions_BNMLK2: Tensor,
    weights_BNMLK: Tensor,
    to_value: bool,
    to_points: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, positions and weights; empty tensors where they are not asked for."""
    B, N, M, L, K, _ = positions_BNMLK2.shape
    D = value_BSMD.shape[-1]
    levels, padded = _levels(shapes)
    positions, weights = _flat(positions_BNMLK2), _flat(weights_BNMLK)
    value = pack([value_BSMD], shapes).rows if to_points else np.empty(0, np.float32)
    grad_value = np.zeros(B * M * padded * D if to_value else 0, np.float32)
    grad_positions = empty(positions_BNMLK2.shape if to_points else (0,))
    grad_weights = empty(weights_BNMLK.shape if to_points else (0,))
    run(
        _kernels(D).sum_backward,
        B * M * L,
        grad_BNMD.numel() * L * K,
        *(_flat(grad_BNMD), value, levels, padded, positions, weights),
        *(grad_value, _flat(grad_positions), _flat(grad_weights), to_value, to_points, N, M, K),
    )
    grad_value_BSMD = _unpacked(grad_value, 0, value_BSMD, levels, padded) if to_value else value_BSMD.new_empty(0)
    return grad_value_BSMD, grad_positions, grad_weights.to(weights_BNMLK.dtype)


def attend_forward(
    query_BNMD: Tensor, key_BSMD: Tensor, value_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor
) -> Tensor:
    return attend_packed(pack([key_BSMD, value_BSMD], shapes), query_BNMD, positions_BNMLK2, None)


def attend_packed(maps: Packed, query_BNMD: Tensor, offsets_BNMLK2: Tensor, reference_NL2: Tensor | None) -> Tensor:
    """See :func:`sum_packed`."""
    B, N, M, L, K, _ = offsets_BNMLK2.shape
    out = _result(maps, B, N, M)
    layout = (maps.levels, maps.padded, *_placed(offsets_BNMLK2, reference_NL2))
    arguments = (_flat(query_BNMD), maps.rows, *layout, np.float32(maps.D**-0.5), elements(out, out.dtype))
    run(_forward(maps.D, K).attend, B * M * -(-N // _QUERIES), out.numel() * L * K * 2, *arguments, N, M)
    return out.to(maps.dtype)


def attend_backward(
    grad_BNMD: Tensor,
    query_BNMD: Tensor,
    key_BSMD: Tensor,
    value_BSMD: Tensor,
    shapes: Shapes,
    positions_BNMLK2: Tensor,
    to_maps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and positions; those of key and value are empty where not asked for."""
    B, N, M, L, K, _ = positions_BNMLK2.shape
    D = value_BSMD.shape[-1]
    levels, padded = _levels(shapes)
    grad, queries, positions = _flat(grad_BNMD), _flat(query_BNMD), _flat(positions_BNMLK2)
    maps = pack([key_BSMD, value_BSMD], shapes).rows
    grad_query = empty(query_BNMD.shape)
    grad_positions = empty(positions_BNMLK2.shape)
    weights = np.empty(B * N * M * L * K, np.float32)
    grad_logits = np.empty_like(weights)
    work = grad.size * L * K * 2
    run(
        _kernels(D).attend_queries,
        B * M * -(-N // _QUERIES),
        work,
        *(grad, queries, maps, levels, padded, positions, np.float32(D**-0.5)),
        *(_flat(grad_query), _flat(grad_positions), weights, grad_logits, N, M, K),
    )
    grad_key, grad_value = key_BSMD.new_empty(0), value_BSMD.new_empty(0)
    if to_maps:
        grad_maps = np.zeros(maps.size, np.float32)
        arguments = (grad, queries, levels, padded, positions, weights, grad_logits, grad_maps, N, M, K)
        run(_kernels(D).attend_maps, B * M * L, work, *arguments)
        grad_key = _unpacked(grad_maps, 0, key_BSMD, levels, padded)
        grad_value = _unpacked(grad_maps, 1, value_BSMD, levels, padded)
    return grad_query.to(query_BNMD.dtype), grad_key, grad_value, grad_positions
