"""The backward kernels on the CPU and those of the padded layout, compiled for each D."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from cssformer.ops.numba_parts import ONE, QUERIES, Floats, Grid, Ints, Rows, softmax
from cssformer.ops.simd import accumulate, announce, lay, load, number, store, zero
from cssformer.ops.simd_sums import dots
from cssformer.utils.jit import jit


@jit
def _locate(x: np.float32, y: np.float32, levels: Ints, level: int) -> tuple[int, np.float32, np.float32]:
    """The padded pixel of the upper left corner and the fractions beyond it; pixel -1 if nothing can be sampled."""
    # Written so that NaN is outside. A branch, not a select: guessed right, it lets the gather start before the
    # position is known.
    if x >= -ONE and x < np.float32(levels[level, 1]) and y >= -ONE and y < np.float32(levels[level, 0]):
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


class Kernels(NamedTuple):
    pack: Any
    unpack: Any
    sum_backward: Any
    attend_queries: Any
    attend_maps: Any


@cache
def kernels(D: int) -> Kernels:
    @jit
    def pack(source: Rows, places: Ints, packed: Rows, M: int, padded: int, width: int, first: int, last: int) -> None:
        """Copy pixels ``first`` to ``last`` of (B·S, M, D) into the frame of zeros, rows of ``width`` numbers."""
        for pixel in range(first, last):
            b = pixel // places.size
            at = b * M * padded + number(places, pixel - b * places.size)
            for m in range(M):
                lay(packed, (at + m * padded) * width, source, (pixel * M + m) * D, D)

    @jit
    def unpack(
        packed: Floats, places: Ints, target: Floats, M: int, padded: int, width: int, first: int, last: int
    ) -> None:
        """The inverse of ``pack``."""
        for pixel in range(first, last):
            b = pixel // places.size
            at = b * M * padded + number(places, pixel - b * places.size)
            for m in range(M):
                store(target, (pixel * M + m) * D, load(packed, (at + m * padded) * width, D))

    @jit
    def sum_backward(
        grad: Floats,
        value: Floats,
        grid: Grid,
        positions: Floats,
        weights: Floats,
        grad_value: Floats,
        grad_positions: Floats,
        grad_weights: Floats,
        to_value: bool,
        to_points: bool,
        first: int,
        last: int,
    ) -> None:
        """Task = one level of one head: it alone writes that level's gradient and the gradients of its points."""
        levels, padded, N, M, K = grid
        L = levels.shape[0]
        for task in range(first, last):
            head = task // L
            level = task - head * L
            b = head // M
            below = (levels[level, 1] + 1) * D
            for n in range(N):
                query = (b * N + n) * M + head - b * M
                announce(positions, ((query + M) * L + level) * K * 2, K * 2)
                announce(weights, ((query + M) * L + level) * K, K)
                announce(grad, (query + M) * D, D)
                if to_points:
                    announce(grad_positions, ((query + M) * L + level) * K * 2, K * 2)
                    announce(grad_weights, ((query + M) * L + level) * K, K)
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
        grid: Grid,
        positions: Floats,
        scale: np.float32,
        grad_queries: Floats,
        grad_positions: Floats,
        weights: Floats,
        grad_logits: Floats,
        keys: Floats,
        values: Floats,
        attention: Floats,
        sampled: Floats,
        first: int,
        last: int,
    ) -> None:
        """Gradients of queries and positions; leaves the attention and the logits' gradients for ``attend_maps``.

        ``keys`` (2, L·K) are slopes along x and y of q · key, ``values`` (3, L·K) g · value and its slopes.
        """
        levels, padded, N, M, K = grid
        L = levels.shape[0]
        runs = (N + QUERIES - 1) // QUERIES
        for task in range(first, last):
            head = task // runs
            b = head // M
            start = (task - head * runs) * QUERIES
            for n in range(start, min(N, start + QUERIES)):
                query = (b * N + n) * M + head - b * M
                point = query * L * K
                ahead = (query + M) * L * K
                announce(positions, 2 * ahead, L * K * 2)
                announce(grad_positions, 2 * ahead, L * K * 2)
                announce(weights, ahead, L * K)
                announce(grad_logits, ahead, L * K)
                announce(queries, (query + M) * D, D)
                announce(grad, (query + M) * D, D)
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
                            key = (ONE - fx) * (ONE - fy) * upper_left + fx * (ONE - fy) * upper_right
                            store(sampled, p * D, key + (ONE - fx) * fy * lower_left + fx * fy * lower_right)
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
                softmax(attention, L * K)
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
        grid: Grid,
        positions: Floats,
        weights: Floats,
        grad_logits: Floats,
        grad_maps: Floats,
        first: int,
        last: int,
    ) -> None:
        """Gradients of keys and values. Task = one level of one head, which it alone writes."""
        levels, padded, N, M, K = grid
        L = levels.shape[0]
        for task in range(first, last):
            head = task // L
            level = task - head * L
            b = head // M
            below = (levels[level, 1] + 1) * 2 * D
            for n in range(N):
                query = (b * N + n) * M + head - b * M
                ahead = ((query + M) * L + level) * K
                announce(positions, 2 * ahead, 2 * K)
                announce(weights, ahead, K)
                announce(grad_logits, ahead, K)
                announce(queries, (query + M) * D, D)
                announce(grad, (query + M) * D, D)
                q = load(queries, query * D, D)
                g = load(grad, query * D, D)
                for p in range((query * L + level) * K, (query * L + level + 1) * K):
                    pixel, fx, fy = _locate(positions[2 * p], positions[2 * p + 1], levels, level)
                    if pixel >= 0:
                        at = (head * padded + pixel) * 2 * D
                        upper_left, upper_right = (ONE - fx) * (ONE - fy), fx * (ONE - fy)
                        lower_left, lower_right = (ONE - fx) * fy, fx * fy
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

    return Kernels(pack, unpack, sum_backward, attend_queries, attend_maps)
