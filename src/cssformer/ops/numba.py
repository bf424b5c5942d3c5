"""The CPU backend: numba kernels for both functions, forward and backward.

Every level is copied once into a padded layout, (B, M, padded pixels, D): one head's map is contiguous, and a frame of
zeros around it makes every corner of every position that can contribute readable without a test. Rows of a level lie
W + 1 pixels apart, so the zero right of one row is the zero left of the next.

Work is cut into tasks that write disjoint memory, whatever the number of threads: forward, a run of queries of one
head; backward into the maps, one head's level. So every result has the same bits for any number of threads.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cssformer.ops.numba_backward import kernels
from cssformer.ops.numba_forward import forward
from cssformer.ops.numba_parts import QUERIES, Floats, Grid, Ints, Rows
from cssformer.ops.reference import Shapes
from cssformer.ops.simd import LANES, elements
from cssformer.ops.threads import run
from cssformer.utils.memory import empty


def _levels(shapes: Shapes) -> tuple[Ints, int]:
    """Rows of (H, W, pixel (0, 0)) in the padded layout, and its number of pixels."""
    rows, start = [], 0
    for height, width in shapes:
        rows.append((height, width, start + width + 2))
        start += (height + 2) * (width + 1) + 1
    return np.array(rows, np.int32).reshape(-1, 3), start


def _inside(levels: Ints) -> Ints:
    """Where each pixel of all levels lies in the padded layout."""
    pixels = [first + np.arange(height)[:, None] * (width + 1) + np.arange(width) for height, width, first in levels]
    return np.concatenate([np.empty(0, np.int32), *(each.ravel() for each in pixels)], dtype=np.int32)


def _room(size: int, dtype: Any = np.float32) -> Any:
    """Not written yet. It begins with a cache line: what is stored across two can not soon be loaded again."""
    itemsize = np.dtype(dtype).itemsize
    room = np.empty(size + 64 // itemsize, dtype)
    return room[-(room.ctypes.data // itemsize) % (64 // itemsize) :][:size]


def _framed(maps: int, padded: int, width: int, levels: Ints, dtype: np.dtype[Any]) -> Any:
    """Room for padded maps, ``width`` numbers a pixel: their frames zero, what is inside not written yet."""
    room = _room(maps * padded * width, dtype)
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
    places, width = _inside(levels), D * len(maps_BSMD)
    sources = [elements(map_BSMD, maps_BSMD[-1].dtype) for map_BSMD in maps_BSMD]
    packed = _framed(B * M, padded, width, levels, sources[0].dtype)
    for index, (map_BSMD, source) in enumerate(zip(maps_BSMD, sources, strict=True)):
        arguments = (source, places, packed[index * D :], M, padded, width)
        run(kernels(D).pack, B * S, map_BSMD.numel(), *arguments)
    return Packed(packed, levels, padded, D, maps_BSMD[-1].dtype)


def _unpacked(packed: Floats, index: int, like_BSMD: Tensor, levels: Ints, padded: int) -> Tensor:
    B, S, M, D = like_BSMD.shape
    target = empty(like_BSMD.shape)
    width = packed.size // (B * M * padded)
    arguments = (packed[index * D :], _inside(levels), _flat(target), M, padded, width)
    run(kernels(D).unpack, B * S, target.numel(), *arguments)
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
    grid, placed = Grid(maps.levels, maps.padded, N, M, K), _placed(offsets_BNMLK2, reference_NL2)
    arguments = (maps.rows, grid, *placed, elements(weights_BNMLK, weights_BNMLK.dtype), elements(out, out.dtype))

    def scratch() -> tuple[Any, ...]:
        return _room(L * K, np.int32), _room(4 * L * K)

    run(forward(maps.D, K).sum, B * M * -(-N // QUERIES), out.numel() * L * K, *arguments, scratch=scratch)
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
        kernels(D).sum_backward,
        B * M * L,
        grad_BNMD.numel() * L * K,
        *(_flat(grad_BNMD), value, Grid(levels, padded, N, M, K), positions, weights),
        *(grad_value, _flat(grad_positions), _flat(grad_weights), to_value, to_points),
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
    grid, placed = Grid(maps.levels, maps.padded, N, M, K), _placed(offsets_BNMLK2, reference_NL2)
    arguments = (_flat(query_BNMD), maps.rows, grid, *placed, np.float32(maps.D**-0.5), elements(out, out.dtype))
    points = -(-L * K // LANES) * LANES

    def scratch() -> tuple[Any, ...]:
        return _room(L * K, np.int32), _room(4 * L * K), _room(points), _room(points * LANES), _room(L * K * maps.D)

    run(forward(maps.D, K).attend, B * M * -(-N // QUERIES), out.numel() * L * K * 2, *arguments, scratch=scratch)
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
    grid = Grid(levels, padded, N, M, K)
    grad, queries, positions = _flat(grad_BNMD), _flat(query_BNMD), _flat(positions_BNMLK2)
    maps = pack([key_BSMD, value_BSMD], shapes).rows
    grad_query = empty(query_BNMD.shape)
    grad_positions = empty(positions_BNMLK2.shape)
    weights = np.empty(B * N * M * L * K, np.float32)
    grad_logits = np.empty_like(weights)
    work = grad.size * L * K * 2

    def scratch() -> tuple[Any, ...]:
        attention = _room(-(-L * K // LANES) * LANES)
        return np.empty((2, L * K), np.float32), np.empty((3, L * K), np.float32), attention, _room(L * K * D)

    run(
        kernels(D).attend_queries,
        B * M * -(-N // QUERIES),
        work,
        *(grad, queries, maps, grid, positions, np.float32(D**-0.5)),
        *(_flat(grad_query), _flat(grad_positions), weights, grad_logits),
        scratch=scratch,
    )
    grad_key, grad_value = key_BSMD.new_empty(0), value_BSMD.new_empty(0)
    if to_maps:
        grad_maps = np.zeros(maps.size, np.float32)
        arguments = (grad, queries, grid, positions, weights, grad_logits, grad_maps)
        run(kernels(D).attend_maps, B * M * L, work, *arguments)
        grad_key = _unpacked(grad_maps, 0, key_BSMD, levels, padded)
        grad_value = _unpacked(grad_maps, 1, value_BSMD, levels, padded)
    return grad_query.to(query_BNMD.dtype), grad_key, grad_value, grad_positions
