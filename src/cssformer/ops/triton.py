# Triton compiles the kernels' parameters, which have no Python types.
# mypy: disable-error-code="no-untyped-def"
"""The CUDA backend: Triton kernels for both functions, forward and backward.

A program takes a block of (batch, query, head) triples, which lie one after another in positions, weights, queries and
results, and walks through the points; a sample is a (block, D) tile in registers, in float32 whatever the dtype of the
maps. Gradients of maps are added atomically, whose order changes the last bits from run to run. Under
``torch.use_deterministic_algorithms(True)`` they are added as 64-bit fixed-point numbers instead, whose sum does not
depend on the order; if one of the contributions is not finite, that whole gradient is NaN.

The kernels are checked with Triton's interpreter and compiled for several GPUs; their speed has not been measured.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

Shapes = Sequence[tuple[int, int]]

# Triton's default for fused multiply-adds is changing.
OPTIONS = {"enable_fp_fusion": True}


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
def _load(maps, first, pixel, valid, channel, used, step):
    """One corner's channels, (block, D); zeros where it is not valid."""
    offset = first + pixel.to(tl.int64) * step
    return tl.load(maps + offset[:, None] + channel[None, :], mask=valid[:, None] & used[None, :], other=0.0).to(
        tl.float32
    )


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
def _bilinear(upper_left, upper_right, lower_left, lower_right, fx, fy):
    """The value between four corners, and its slopes along x and y."""
    upper = upper_right - upper_left
    lower = lower_right - lower_left
    down = lower_left + fx * lower - upper_left - fx * upper
    return upper_left + fx * upper + fy * down, upper + fy * (lower - upper), down


@triton.jit
def _sum_forward(
    value, levels, positions, weights, out, queries, N, S, M, D, L, K, BLOCK: tl.constexpr, CHANNELS: tl.constexpr
):
    query = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = query < queries
    channel = tl.arange(0, CHANNELS)
    used = channel < D
    step = M * D
    first = (query // (N * M)) * S * step + (query % M) * D
    total = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for level in range(L):
        for k in range(K):
            point = (query * L + level) * K + k
            fx, fy, pixel, width, ul, ur, ll, lr = _corners(positions, point, levels, level, live)
            weight = tl.load(weights + point, mask=live, other=0.0).to(tl.float32)
            low = weight * fy
            high = weight - low
            total += (high - high * fx)[:, None] * _load(value, first, pixel, ul, channel, used, step)
            total += (high * fx)[:, None] * _load(value, first, pixel + 1, ur, channel, used, step)
            total += (low - low * fx)[:, None] * _load(value, first, pixel + width, ll, channel, used, step)
            total += (low * fx)[:, None] * _load(value, first, pixel + width + 1, lr, channel, used, step)
    pointers = out + (query * D)[:, None] + channel[None, :]
    tl.store(pointers, total.to(out.dtype.element_ty), mask=live[:, None] & used[None, :])


@triton.jit
def _sum_backward(
    grad,
    value,
    levels,
    positions,
    weights,
    grad_value,
    grad_positions,
    grad_weights,
    scale,
    queries,
    N,
    S,
    M,
    D,
    L,
    K,
    TO_VALUE: tl.constexpr,
    TO_POINTS: tl.constexpr,
    FIXED: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    query = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = query < queries
    channel = tl.arange(0, CHANNELS)
    used = channel < D
    step = M * D
    first = (query // (N * M)) * S * step + (query % M) * D
    g = _load(grad, query * 0, query, live, channel, used, D)
    factor = tl.load(scale)
    for level in range(L):
        for k in range(K):
            point = (query * L + level) * K + k
            fx, fy, pixel, width, ul, ur, ll, lr = _corners(positions, point, levels, level, live)
            weight = tl.load(weights + point, mask=live, other=0.0).to(tl.float32)
            if TO_POINTS:
                sample, along_x, along_y = _bilinear(
                    tl.sum(g * _load(value, first, pixel, ul, channel, used, step), 1),
                    tl.sum(g * _load(value, first, pixel + 1, ur, channel, used, step), 1),
                    tl.sum(g * _load(value, first, pixel + width, ll, channel, used, step), 1),
                    tl.sum(g * _load(value, first, pixel + width + 1, lr, channel, used, step), 1),
                    fx,
                    fy,
                )
                tl.store(grad_weights + point, sample.to(grad_weights.dtype.element_ty), mask=live)
                tl.store(grad_positions + point * 2, weight * along_x, mask=live)
                tl.store(grad_positions + point * 2 + 1, weight * along_y, mask=live)
            if TO_VALUE:
                low = weight * fy
                high = weight - low
                amount = (high - high * fx)[:, None] * g
                _add(grad_value, first, pixel, ul, channel, used, step, amount, factor, FIXED)
                amount = (high * fx)[:, None] * g
                _add(grad_value, first, pixel + 1, ur, channel, used, step, amount, factor, FIXED)
                amount = (low - low * fx)[:, None] * g
                _add(grad_value, first, pixel + width, ll, channel, used, step, amount, factor, FIXED)
                amount = (low * fx)[:, None] * g
                _add(grad_value, first, pixel + width + 1, lr, channel, used, step, amount, factor, FIXED)


@triton.jit
def _attend_forward(
    query_rows, key, value, levels, positions, temperature, out, queries, N, S, M, D, L, K,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = query < queries
    channel = tl.arange(0, CHANNELS)
    used = channel < D
    step = M * D
    first = (query // (N * M)) * S * step + (query % M) * D
    q = _load(query_rows, query * 0, query, live, channel, used, D) * temperature
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    norm = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for level in range(L):
        for k in range(K):
            point = (query * L + level) * K + k
            fx, fy, pixel, width, ul, ur, ll, lr = _corners(positions, point, levels, level, live)
            a = ((1 - fx) * (1 - fy))[:, None]
            b = (fx * (1 - fy))[:, None]
            c = ((1 - fx) * fy)[:, None]
            d = (fx * fy)[:, None]
            sample = a * _load(key, first, pixel, ul, channel, used, step)
            sample += b * _load(key, first, pixel + 1, ur, channel, used, step)
            sample += c * _load(key, first, pixel + width, ll, channel, used, step)
            sample += d * _load(key, first, pixel + width + 1, lr, channel, used, step)
            logit = tl.sum(q * sample, 1)
            sample = a * _load(value, first, pixel, ul, channel, used, step)
            sample += b * _load(value, first, pixel + 1, ur, channel, used, step)
            sample += c * _load(value, first, pixel + width, ll, channel, used, step)
            sample += d * _load(value, first, pixel + width + 1, lr, channel, used, step)
            above = tl.maximum(largest, logit)
            shrink = tl.exp(largest - above)
            share = tl.exp(logit - above)
            norm = norm * shrink + share
            total = total * shrink[:, None] + share[:, None] * sample
            largest = above
    pointers = out + (query * D)[:, None] + channel[None, :]
    tl.store(pointers, (total / norm[:, None]).to(out.dtype.element_ty), mask=live[:, None] & used[None, :])


@triton.jit
def _attend_backward(
    grad,
    query_rows,
    key,
    value,
    levels,
    positions,
    temperature,
    grad_query,
    grad_key,
    grad_value,
    grad_positions,
    key_scale,
    value_scale,
    queries,
    N,
    S,
    M,
    D,
    L,
    K,
    TO_MAPS: tl.constexpr,
    FIXED: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    query = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = query < queries
    channel = tl.arange(0, CHANNELS)
    used = channel < D
    step = M * D
    first = (query // (N * M)) * S * step + (query % M) * D
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
            a = ((1 - fx) * (1 - fy))[:, None]
            b = (fx * (1 - fy))[:, None]
            c = ((1 - fx) * fy)[:, None]
            d = (fx * fy)[:, None]
            sample = a * _load(key, first, pixel, ul, channel, used, step)
            sample += b * _load(key, first, pixel + 1, ur, channel, used, step)
            sample += c * _load(key, first, pixel + width, ll, channel, used, step)
            sample += d * _load(key, first, pixel + width + 1, lr, channel, used, step)
            logit = tl.sum(q * sample, 1) * temperature
            sample = a * _load(value, first, pixel, ul, channel, used, step)
            sample += b * _load(value, first, pixel + 1, ur, channel, used, step)
            sample += c * _load(value, first, pixel + width, ll, channel, used, step)
            sample += d * _load(value, first, pixel + width + 1, lr, channel, used, step)
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
            a = (1 - fx) * (1 - fy)
            b = fx * (1 - fy)
            c = (1 - fx) * fy
            d = fx * fy
            key_ul = _load(key, first, pixel, ul, channel, used, step)
            key_ur = _load(key, first, pixel + 1, ur, channel, used, step)
            key_ll = _load(key, first, pixel + width, ll, channel, used, step)
            key_lr = _load(key, first, pixel + width + 1, lr, channel, used, step)
            logit, key_x, key_y = _bilinear(
                tl.sum(q * key_ul, 1), tl.sum(q * key_ur, 1), tl.sum(q * key_ll, 1), tl.sum(q * key_lr, 1), fx, fy
            )
            of_value, value_x, value_y = _bilinear(
                tl.sum(g * _load(value, first, pixel, ul, channel, used, step), 1),
                tl.sum(g * _load(value, first, pixel + 1, ur, channel, used, step), 1),
                tl.sum(g * _load(value, first, pixel + width, ll, channel, used, step), 1),
                tl.sum(g * _load(value, first, pixel + width + 1, lr, channel, used, step), 1),
                fx,
                fy,
            )
            attention = tl.exp(logit * temperature - largest) / norm
            of_logit = temperature * attention * (of_value - mean)
            tl.store(grad_positions + point * 2, attention * value_x + of_logit * key_x, mask=live)
            tl.store(grad_positions + point * 2 + 1, attention * value_y + of_logit * key_y, mask=live)
            of_query += (of_logit * a)[:, None] * key_ul + (of_logit * b)[:, None] * key_ur
            of_query += (of_logit * c)[:, None] * key_ll + (of_logit * d)[:, None] * key_lr
            if TO_MAPS:
                amount = (of_logit * a)[:, None] * q
                _add(grad_key, first, pixel, ul, channel, used, step, amount, key_factor, FIXED)
                amount = (of_logit * b)[:, None] * q
                _add(grad_key, first, pixel + 1, ur, channel, used, step, amount, key_factor, FIXED)
                amount = (of_logit * c)[:, None] * q
                _add(grad_key, first, pixel + width, ll, channel, used, step, amount, key_factor, FIXED)
                amount = (of_logit * d)[:, None] * q
                _add(grad_key, first, pixel + width + 1, lr, channel, used, step, amount, key_factor, FIXED)
                amount = (attention * a)[:, None] * g
                _add(grad_value, first, pixel, ul, channel, used, step, amount, value_factor, FIXED)
                amount = (attention * b)[:, None] * g
                _add(grad_value, first, pixel + 1, ur, channel, used, step, amount, value_factor, FIXED)
                amount = (attention * c)[:, None] * g
                _add(grad_value, first, pixel + width, ll, channel, used, step, amount, value_factor, FIXED)
                amount = (attention * d)[:, None] * g
                _add(grad_value, first, pixel + width + 1, lr, channel, used, step, amount, value_factor, FIXED)
    pointers = grad_query + (query * D)[:, None] + channel[None, :]
    tl.store(pointers, of_query.to(grad_query.dtype.element_ty), mask=live[:, None] & used[None, :])


# ---------------------------------------------------------------- the backend's face


def _levels(shapes: Shapes, device: torch.device) -> Tensor:
    """(H, W, first pixel) of each level, one after the other."""
    rows, start = [], 0
    for height, width in shapes:
        rows.append((height, width, start))
        start += height * width
    # Made on the GPU: a copy would wait until that has done all it was asked, and could not be part of a CUDA graph.
    return torch.cat([torch.full((1,), size, dtype=torch.int32, device=device) for row in rows for size in row])


def _sizes(positions_BNMLK2: Tensor, maps_BSMD: Tensor) -> tuple[tuple[int], tuple[int, ...], dict[str, Any]]:
    """Grid, sizes and constants of a launch."""
    B, N, M, L, K, _ = positions_BNMLK2.shape
    S, D = maps_BSMD.shape[1], maps_BSMD.shape[3]
    channels = triton.next_power_of_2(D)
    # Four numbers of a tile for each thread: with eight, _attend_backward takes more than the 255 registers there are.
    block = max(1, 512 // channels)
    return (triton.cdiv(B * N * M, block),), (B * N * M, N, S, M, D, L, K), {"BLOCK": block, "CHANNELS": channels}


class _Gradient:
    """Where the gradient of maps is summed: float32, or fixed point when the sum must not depend on the order.

    ``bound`` is at least the magnitude of any one contribution, ``count`` the number of contributions.
    """

    def __init__(self, like: Tensor, bound: Tensor, count: int, fixed: bool) -> None:
        self.sum = torch.zeros(like.shape, dtype=torch.int64 if fixed else torch.float32, device=like.device)
        self.scale = bound.new_ones(())
        if fixed:
            steps = 2.0**61 / (bound.double().clamp_min(1e-200) * max(1, count))
            self.scale = torch.where(bound.isfinite(), steps, torch.nan)
        self.fixed, self.dtype = fixed, like.dtype

    def result(self) -> Tensor:
        return (self.sum / self.scale if self.fixed else self.sum).to(self.dtype)


def _launch(kernel: Any, grid: tuple[int], first: Tensor, *arguments: Any, **constants: Any) -> None:
    # Triton takes the current device, which need not be the tensors'.
    with torch.cuda.device_of(first):
        kernel[grid](first, *arguments, **constants, **OPTIONS)


def _largest(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor.float(), float("inf")) if tensor.numel() else tensor.new_zeros(()).float()


def sum_forward(value_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor, weights_BNMLK: Tensor) -> Tensor:
    out = value_BSMD.new_empty((*positions_BNMLK2.shape[:3], value_BSMD.shape[-1]))
    grid, sizes, constants = _sizes(positions_BNMLK2, value_BSMD)
    if out.numel():
        tensors = (value_BSMD.contiguous(), _levels(shapes, out.device), positions_BNMLK2.contiguous())
        _launch(_sum_forward, grid, *tensors, weights_BNMLK.contiguous(), out, *sizes, **constants)
    return out


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
    fixed = to_value and torch.are_deterministic_algorithms_enabled()
    grid, sizes, constants = _sizes(positions_BNMLK2, value_BSMD)
    like = value_BSMD if to_value else value_BSMD.new_empty(0)
    bound = _largest(grad_BNMD) * _largest(weights_BNMLK) if fixed else grad_BNMD.new_zeros((), dtype=torch.float32)
    grad_value = _Gradient(like, bound, 4 * weights_BNMLK.numel(), fixed)
    grad_positions = positions_BNMLK2.new_empty(positions_BNMLK2.shape if to_points else 0)
    grad_weights = weights_BNMLK.new_empty(weights_BNMLK.shape if to_points else 0)
    if grad_BNMD.numel():
        _launch(
            _sum_backward,
            grid,
            grad_BNMD.contiguous(),
            value_BSMD.contiguous(),
            _levels(shapes, grad_BNMD.device),
            positions_BNMLK2.contiguous(),
            weights_BNMLK.contiguous(),
            grad_value.sum,
            grad_positions,
            grad_weights,
            grad_value.scale,
            *sizes,
            TO_VALUE=to_value,
            TO_POINTS=to_points,
            FIXED=fixed,
            **constants,
        )
    return grad_value.result(), grad_positions, grad_weights


def attend_forward(
    query_BNMD: Tensor, key_BSMD: Tensor, value_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor
) -> Tensor:
    out = value_BSMD.new_empty(query_BNMD.shape)
    grid, sizes, constants = _sizes(positions_BNMLK2, value_BSMD)
    if out.numel():
        _launch(
            _attend_forward,
            grid,
            query_BNMD.contiguous(),
            key_BSMD.contiguous(),
            value_BSMD.contiguous(),
            _levels(shapes, out.device),
            positions_BNMLK2.contiguous(),
            value_BSMD.shape[-1] ** -0.5,
            out,
            *sizes,
            **constants,
        )
    return out


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
    fixed = to_maps and torch.are_deterministic_algorithms_enabled()
    grid, sizes, constants = _sizes(positions_BNMLK2, value_BSMD)
    D = value_BSMD.shape[-1]
    value_bound = key_bound = grad_BNMD.new_zeros((), dtype=torch.float32)
    if fixed:
        value_bound = _largest(grad_BNMD)
        # A logit's gradient is a share of the difference of two g · value, each at most D · max|g| · max|value|.
        key_bound = 2 * D**0.5 * value_bound * _largest(value_BSMD) * _largest(query_BNMD)
    empty = value_BSMD.new_empty(0)
    contributions = 4 * positions_BNMLK2[..., 0].numel()
    grad_key = _Gradient(key_BSMD if to_maps else empty.to(key_BSMD.dtype), key_bound, contributions, fixed)
    grad_value = _Gradient(value_BSMD if to_maps else empty, value_bound, contributions, fixed)
    grad_query = torch.zeros_like(query_BNMD, memory_format=torch.contiguous_format)
    grad_positions = positions_BNMLK2.new_empty(positions_BNMLK2.shape)
    if grad_BNMD.numel():
        _launch(
            _attend_backward,
            grid,
            grad_BNMD.contiguous(),
            query_BNMD.contiguous(),
            key_BSMD.contiguous(),
            value_BSMD.contiguous(),
            _levels(shapes, grad_BNMD.device),
            positions_BNMLK2.contiguous(),
            D**-0.5,
            grad_query,
            grad_key.sum,
            grad_value.sum,
            grad_positions,
            grad_key.scale,
            grad_value.scale,
            *sizes,
            TO_MAPS=to_maps,
            FIXED=fixed,
            **constants,
        )
    return grad_query, grad_key.result(), grad_value.result(), grad_positions
