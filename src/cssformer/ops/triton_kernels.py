# Triton compiles the kernels' parameters, which have no Python types.
# mypy: disable-error-code="no-untyped-def"
"""The kernels of the CUDA backend.

A program takes a block of (batch, query, head) triples, which lie one after another in positions, weights, queries and
results, and walks through the points; a sample is a (block, D) tile in registers, in float32 whatever the dtype of the
maps. Gradients of maps are added atomically.
"""

import triton
import triton.language as tl


@triton.jit
def _block(queries, N, S, M, D, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    """The program's triples and channels, which of them exist, the step of a pixel, where each triple's map starts."""
    query = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, CHANNELS)
    step = M * D
    return query, query < queries, channel, channel < D, step, (query // (N * M)) * S * step + (query % M) * D


@triton.jit
def _corners(positions, point, levels, level, live):
    """Fractions beyond the upper left corner, and pixel and validity of the four corners of each position."""
    height = tl.load(levels + level * 3)
    width = tl.load(levels + level * 3 + 1)
    start = tl.load(levels + level * 3 + 2)
    x = tl.load(positions + point * 2, mask=live, other=-2.0)
    y = tl.load(positions + point * 2 + 1, mask=live, other=-2.0)
    inside = (x >= -1) & (x < width) & (y >= -1) & (y < height)  # NaN is outside
    x = tl.where(inside, x, 0.0)
    y = tl.where(inside, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    column = left.to(tl.int32)
    row = top.to(tl.int32)
    pixel = start + row * width + column
    on_left = inside & (column >= 0)
    on_right = inside & (column + 1 < width)
    above = row >= 0
    below = row + 1 < height
    return x - left, y - top, pixel, width, on_left & above, on_right & above, on_left & below, on_right & below


@triton.jit
def _shares(fx, fy, weight):
    """How much each of the four corners counts."""
    low = weight * fy
    high = weight - low
    return high - high * fx, high * fx, low - low * fx, low * fx


@triton.jit
def _load(maps, first, pixel, valid, channel, used, step):
    """One corner's channels, (block, D); zeros where it is not valid."""
    offset = first + pixel.to(tl.int64) * step
    return tl.load(maps + offset[:, None] + channel[None, :], mask=valid[:, None] & used[None, :], other=0.0).to(
        tl.float32
    )


@triton.jit
def _sample(maps, first, pixel, width, ul, ur, ll, lr, channel, used, step, a, b, c, d):
    """The sum of four corners' channels that count a, b, c and d, (block, D)."""
    sample = a[:, None] * _load(maps, first, pixel, ul, channel, used, step)
    sample += b[:, None] * _load(maps, first, pixel + 1, ur, channel, used, step)
    sample += c[:, None] * _load(maps, first, pixel + width, ll, channel, used, step)
    sample += d[:, None] * _load(maps, first, pixel + width + 1, lr, channel, used, step)
    return sample


@triton.jit
def _read(maps, first, pixel, width, ul, ur, ll, lr, channel, used, step):
    """The four corners' channels, (block, D) each."""
    return (
        _load(maps, first, pixel, ul, channel, used, step),
        _load(maps, first, pixel + 1, ur, channel, used, step),
        _load(maps, first, pixel + width, ll, channel, used, step),
        _load(maps, first, pixel + width + 1, lr, channel, used, step),
    )


@triton.jit
def _product(g, at_ul, at_ur, at_ll, at_lr, fx, fy):
    """The product of g and the bilinear sample between four corners, and its slopes along x and y."""
    upper_left = tl.sum(g * at_ul, 1)
    upper = tl.sum(g * at_ur, 1) - upper_left
    lower_left = tl.sum(g * at_ll, 1)
    lower = tl.sum(g * at_lr, 1) - lower_left
    down = lower_left + fx * lower - upper_left - fx * upper
    return upper_left + fx * upper + fy * down, upper + fy * (lower - upper), down


@triton.jit
def _add(maps, first, pixel, valid, channel, used, step, amount, scale, FIXED: tl.constexpr):
    pointers = maps + (first + pixel.to(tl.int64) * step)[:, None] + channel[None, :]
    mask = valid[:, None] & used[None, :]
    # Relaxed, as nothing is read before the kernel ends; Triton's default waits for all accesses before an addition.
    if FIXED:
        # Rounded by hand: a plain conversion truncates.
        tl.atomic_add(pointers, tl.floor(amount.to(tl.float64) * scale + 0.5).to(tl.int64), mask=mask, sem="relaxed")
    else:
        tl.atomic_add(pointers, amount, mask=mask, sem="relaxed")


@triton.jit
def _scatter(
    maps, first, pixel, width, ul, ur, ll, lr, channel, used, step, a, b, c, d, amount, scale, FIXED: tl.constexpr
):
    """Add the amount (block, D) to four corners, which count a, b, c and d."""
    _add(maps, first, pixel, ul, channel, used, step, a[:, None] * amount, scale, FIXED)
    _add(maps, first, pixel + 1, ur, channel, used, step, b[:, None] * amount, scale, FIXED)
    _add(maps, first, pixel + width, ll, channel, used, step, c[:, None] * amount, scale, FIXED)
    _add(maps, first, pixel + width + 1, lr, channel, used, step, d[:, None] * amount, scale, FIXED)


@triton.jit
def _store(rows, query, live, channel, used, D, result):
    pointers = rows + (query * D)[:, None] + channel[None, :]
    tl.store(pointers, result.to(rows.dtype.element_ty), mask=live[:, None] & used[None, :])


@triton.jit
def sum_forward(
    value, levels, positions, weights, out, queries, N, S, M, D, L, K, BLOCK: tl.constexpr, CHANNELS: tl.constexpr
):
    query, live, channel, used, step, first = _block(queries, N, S, M, D, BLOCK, CHANNELS)
    total = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for level in range(L):
        for k in range(K):
            point = (query * L + level) * K + k
            fx, fy, pixel, width, ul, ur, ll, lr = _corners(positions, point, levels, level, live)
            weight = tl.load(weights + point, mask=live, other=0.0).to(tl.float32)
            a, b, c, d = _shares(fx, fy, weight)
            total += _sample(value, first, pixel, width, ul, ur, ll, lr, channel, used, step, a, b, c, d)
    _store(out, query, live, channel, used, D, total)


@triton.jit
def sum_backward(
    grad, value, levels, positions, weights, grad_value, grad_positions, grad_weights, scale,
    queries, N, S, M, D, L, K,
    TO_VALUE: tl.constexpr, TO_POINTS: tl.constexpr, FIXED: tl.constexpr,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    query, live, channel, used, step, first = _block(queries, N, S, M, D, BLOCK, CHANNELS)
    g = _load(grad, query * 0, query, live, channel, used, D)
    factor = tl.load(scale)
    for level in range(L):
        for k in range(K):
            point = (query * L + level) * K + k
            fx, fy, pixel, width, ul, ur, ll, lr = _corners(positions, point, levels, level, live)
            weight = tl.load(weights + point, mask=live, other=0.0).to(tl.float32)
            if TO_POINTS:
                at_ul, at_ur, at_ll, at_lr = _read(value, first, pixel, width, ul, ur, ll, lr, channel, used, step)
                sample, along_x, along_y = _product(g, at_ul, at_ur, at_ll, at_lr, fx, fy)
                tl.store(grad_weights + point, sample.to(grad_weights.dtype.element_ty), mask=live)
                tl.store(grad_positions + point * 2, weight * along_x, mask=live)
                tl.store(grad_positions + point * 2 + 1, weight * along_y, mask=live)
            if TO_VALUE:
                a, b, c, d = _shares(fx, fy, weight)
                _scatter(
                    grad_value, first, pixel, width, ul, ur, ll, lr, channel, used, step, a, b, c, d, g, factor, FIXED
                )


@triton.jit
def attend_forward(
    query_rows, key, value, levels, positions, temperature, out, queries, N, S, M, D, L, K,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    query, live, channel, used, step, first = _block(queries, N, S, M, D, BLOCK, CHANNELS)
    q = _load(query_rows, query * 0, query, live, channel, used, D) * temperature
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    norm = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for level in range(L):
        for k in range(K):
            point = (query * L + level) * K + k
            fx, fy, pixel, width, ul, ur, ll, lr = _corners(positions, point, levels, level, live)
            a, b, c, d = _shares(fx, fy, 1.0)
            sample = _sample(key, first, pixel, width, ul, ur, ll, lr, channel, used, step, a, b, c, d)
            logit = tl.sum(q * sample, 1)
            sample = _sample(value, first, pixel, width, ul, ur, ll, lr, channel, used, step, a, b, c, d)
            above = tl.maximum(largest, logit)
            shrink = tl.exp(largest - above)
            share = tl.exp(logit - above)
            norm = norm * shrink + share
            total = total * shrink[:, None] + share[:, None] * sample
            largest = above
    _store(out, query, live, channel, used, D, total / norm[:, None])


@triton.jit
def attend_backward(
    grad, query_rows, key, value, levels, positions, temperature,
    grad_query, grad_key, grad_value, grad_positions, key_scale, value_scale,
    queries, N, S, M, D, L, K,
    TO_MAPS: tl.constexpr, FIXED: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    query, live, channel, used, step, first = _block(queries, N, S, M, D, BLOCK, CHANNELS)
    q = _load(query_rows, query * 0, query, live, channel, used, D)
    g = _load(grad, query * 0, query, live, channel, used, D)
    key_factor = tl.load(key_scale)
    value_factor = tl.load(value_scale)
    # The softmax's largest logit and norm, and the mean of g · value under it, before any gradient can be known.
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    norm = tl.zeros((BLOCK,), tl.float32)
    mean = tl.zeros((BLOCK,), tl.float32)
    for level in range(L):
        for k in range(K):
            point = (query * L + level) * K + k
            fx, fy, pixel, width, ul, ur, ll, lr = _corners(positions, point, levels, level, live)
            a, b, c, d = _shares(fx, fy, 1.0)
            sample = _sample(key, first, pixel, width, ul, ur, ll, lr, channel, used, step, a, b, c, d)
            logit = tl.sum(q * sample, 1) * temperature
            sample = _sample(value, first, pixel, width, ul, ur, ll, lr, channel, used, step, a, b, c, d)
            above = tl.maximum(largest, logit)
            shrink = tl.exp(largest - above)
            share = tl.exp(logit - above)
            norm = norm * shrink + share
            mean = mean * shrink + share * tl.sum(g * sample, 1)
            largest = above
    mean = mean / norm
    of_query = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for level in range(L):
        for k in range(K):
            point = (query * L + level) * K + k
            fx, fy, pixel, width, ul, ur, ll, lr = _corners(positions, point, levels, level, live)
            at_ul, at_ur, at_ll, at_lr = _read(value, first, pixel, width, ul, ur, ll, lr, channel, used, step)
            of_value, value_x, value_y = _product(g, at_ul, at_ur, at_ll, at_lr, fx, fy)
            at_ul, at_ur, at_ll, at_lr = _read(key, first, pixel, width, ul, ur, ll, lr, channel, used, step)
            logit, key_x, key_y = _product(q, at_ul, at_ur, at_ll, at_lr, fx, fy)
            attention = tl.exp(logit * temperature - largest) / norm
            of_logit = temperature * attention * (of_value - mean)
            tl.store(grad_positions + point * 2, attention * value_x + of_logit * key_x, mask=live)
            tl.store(grad_positions + point * 2 + 1, attention * value_y + of_logit * key_y, mask=live)
            a, b, c, d = _shares(fx, fy, of_logit)
            of_query += a[:, None] * at_ul + b[:, None] * at_ur
            of_query += c[:, None] * at_ll + d[:, None] * at_lr
            if TO_MAPS:
                _scatter(
                    grad_key, first, pixel, width, ul, ur, ll, lr, channel, used, step, a, b, c, d, q, key_factor, FIXED
                )
                a, b, c, d = _shares(fx, fy, attention)
                _scatter(
                    grad_value, first, pixel, width, ul, ur, ll, lr, channel, used, step, a, b, c, d, g,
                    value_factor, FIXED,
                )  # fmt: skip
    _store(grad_query, query, live, channel, used, D, of_query)
