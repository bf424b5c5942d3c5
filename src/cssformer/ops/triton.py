"""The CUDA backend: launches of the Triton kernels for both functions, forward and backward.

The order of atomic additions changes the last bits of the maps' gradients from run to run. Under
``torch.use_deterministic_algorithms(True)`` they are added as 64-bit fixed-point numbers instead, whose sum does not
depend on the order; if one of the contributions is not finite, that whole gradient is NaN.

The kernels are checked with Triton's interpreter and compiled for several GPUs; their speed has not been measured.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from cssformer.ops import triton_kernels as kernels
from cssformer.ops.reference import Shapes

# Triton's default for fused multiply-adds is changing.
OPTIONS = {"enable_fp_fusion": True}


def _levels(shapes: Shapes, device: torch.device) -> Tensor:
    """(H, W, first pixel) of each level, one after the other."""
    rows, start = [], 0
    for height, width in shapes:
        rows.append((height, width, start))
        start += height * width
    # Made on the GPU: a copy would wait until that has done all it was asked, and could not be part of a CUDA graph.
    return torch.cat([torch.full((1,), size, dtype=torch.int32, device=device) for row in rows for size in row])


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


def _run(
    kernel: Any, shapes: Shapes, positions_BNMLK2: Tensor, inputs: Sequence[Tensor], *others: Any, **constants: Any
) -> None:
    """Launch a kernel for all triples: inputs, of which the last are maps (B, S, M, D), levels, positions, others."""
    B, N, M, L, K, _ = positions_BNMLK2.shape
    S, D = inputs[-1].shape[1], inputs[-1].shape[3]
    if B * N * M * D == 0:
        return
    channels = triton.next_power_of_2(D)
    # Four numbers of a tile for each thread: with eight, attend_backward takes more than the 255 registers there are.
    block = max(1, 512 // channels)
    tensors = (tensor.contiguous() for tensor in (*inputs, _levels(shapes, positions_BNMLK2.device), positions_BNMLK2))
    sizes, constants = (B * N * M, N, S, M, D, L, K), {"BLOCK": block, "CHANNELS": channels, **constants}
    _launch(kernel, (triton.cdiv(B * N * M, block),), *tensors, *others, *sizes, **constants)


def _launch(kernel: Any, grid: tuple[int], first: Tensor, *arguments: Any, **constants: Any) -> None:
    # Triton takes the current device, which need not be the tensors'.
    with torch.cuda.device_of(first):
        kernel[grid](first, *arguments, **constants, **OPTIONS)


def _largest(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor.float(), float("inf")) if tensor.numel() else tensor.new_zeros(()).float()


def sum_forward(value_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor, weights_BNMLK: Tensor) -> Tensor:
    out = value_BSMD.new_empty((*positions_BNMLK2.shape[:3], value_BSMD.shape[-1]))
    _run(kernels.sum_forward, shapes, positions_BNMLK2, [value_BSMD], weights_BNMLK.contiguous(), out)
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
    like = value_BSMD if to_value else value_BSMD.new_empty(0)
    bound = _largest(grad_BNMD) * _largest(weights_BNMLK) if fixed else grad_BNMD.new_zeros((), dtype=torch.float32)
    grad_value = _Gradient(like, bound, 4 * weights_BNMLK.numel(), fixed)
    grad_positions = positions_BNMLK2.new_empty(positions_BNMLK2.shape if to_points else 0)
    grad_weights = weights_BNMLK.new_empty(weights_BNMLK.shape if to_points else 0)
    results = (grad_value.sum, grad_positions, grad_weights, grad_value.scale)
    asked = {"TO_VALUE": to_value, "TO_POINTS": to_points, "FIXED": fixed}
    inputs = [grad_BNMD, value_BSMD]
    _run(kernels.sum_backward, shapes, positions_BNMLK2, inputs, weights_BNMLK.contiguous(), *results, **asked)
    return grad_value.result(), grad_positions, grad_weights


def attend_forward(
    query_BNMD: Tensor, key_BSMD: Tensor, value_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor
) -> Tensor:
    out, temperature = value_BSMD.new_empty(query_BNMD.shape), value_BSMD.shape[-1] ** -0.5
    _run(kernels.attend_forward, shapes, positions_BNMLK2, [query_BNMD, key_BSMD, value_BSMD], temperature, out)
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
    D = value_BSMD.shape[-1]
    value_bound = key_bound = grad_BNMD.new_zeros((), dtype=torch.float32)
    if fixed:
        value_bound = _largest(grad_BNMD)
        # A logit's gradient is a share of the difference of two g · value, each at most D · max|g| · max|value|.
        key_bound = 2 * D**0.5 * value_bound * _largest(value_BSMD) * _largest(query_BNMD)
    contributions = 4 * positions_BNMLK2[..., 0].numel()
    grad_key, grad_value = (
        _Gradient(maps if to_maps else maps.new_empty(0), bound, contributions, fixed)
        for maps, bound in ((key_BSMD, key_bound), (value_BSMD, value_bound))
    )
    grad_query = torch.zeros_like(query_BNMD, memory_format=torch.contiguous_format)
    grad_positions = positions_BNMLK2.new_empty(positions_BNMLK2.shape)
    results = (grad_query, grad_key.sum, grad_value.sum, grad_positions, grad_key.scale, grad_value.scale)
    inputs = [grad_BNMD, query_BNMD, key_BSMD, value_BSMD]
    _run(kernels.attend_backward, shapes, positions_BNMLK2, inputs, D**-0.5, *results, TO_MAPS=to_maps, FIXED=fixed)
    return grad_query, grad_key.result(), grad_value.result(), grad_positions
