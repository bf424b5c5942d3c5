"""The two sampling functions with nothing but arithmetic and Gather, which every runtime of exported networks has.

Several runtimes compute GridSample wrongly without saying so. Here a row of a table holds a pixel with its neighbours
to the right, below and both, so that a place is one row, weighed four times; around every map lies a border of zeros.
Memory is bounded: a few rows for each head of each query at one time, scale by scale. It computes what
:mod:`cssformer.ops.reference` defines, in float32 for half-precision values, in float64 for float64. It is for
inference: a place that is not finite has no finite gradient.

Axes are counted from the front and runs are cut by slices, because the tracing ONNX exporter gets ``unbind(-1)``,
``split`` and ``unflatten`` of tensors of any size wrong.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

POINTS_AT_ONCE = 2
"""Points of a head and a scale that are read at one time, four corners each."""


def _tables(maps_BSMD: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Of each scale: a row (4·D) for each head of each pixel with its neighbours, (B·(H + 2)·(W + 2)·M, 4·D).

    The first row and column are the border; the last ones are read as neighbours and as places beyond the map.
    """
    B, _, M, D = maps_BSMD.shape
    tables, first = [], 0
    for H, W in shapes:
        map_BHWMD = maps_BSMD[:, first : first + H * W].reshape(B, H, W, M, D)
        padded = F.pad(map_BHWMD, (0, 0, 0, 0, 1, 2, 1, 2))
        corners = [padded[:, y : y + H + 2, x : x + W + 2] for y in (0, 1) for x in (0, 1)]
        tables.append(torch.cat(corners, 4).reshape(B * (H + 2) * (W + 2) * M, 4 * D))
        first = first + H * W
    return tables


def _places(shape: tuple[int, int], positions_BNMK2: Tensor) -> tuple[Tensor, Tensor]:
    """The row of the table that holds each place, (B, N, M, K), and the weights of its corners, (B, N, M, K, 4)."""
    H, W = shape
    B, _, M = positions_BNMK2.shape[:3]
    device = positions_BNMK2.device
    x, y = (_within(positions_BNMK2[:, :, :, :, axis], side) for axis, side in ((0, W), (1, H)))
    column, row = x.floor(), y.floor()
    right, below = x - column, y - row
    left, above = 1 - right, 1 - below
    map_BNMK = torch.arange(B, device=device).view(-1, 1, 1, 1) * (H + 2)
    head_MK = torch.arange(M, device=device).view(-1, 1)
    index = ((map_BNMK + row.long() + 1) * (W + 2) + column.long() + 1) * M + head_MK
    return index, torch.stack([left * above, right * above, left * below, right * below], 4)


def _within(position: Tensor, side: int) -> Tensor:
    """The nearest position that is not beyond the border. Comparisons with NaN are false, so it becomes -1."""
    return torch.where(position > -1, torch.where(position < side, position, side), -1)


def _runs(index_BNMK: Tensor) -> list[slice]:
    # A number, which tracing makes a tensor of.
    points = int(index_BNMK.shape[3])
    return [slice(first, min(first + POINTS_AT_ONCE, points)) for first in range(0, points, POINTS_AT_ONCE)]


def _weighted_sum(table: Tensor, index_BNMK: Tensor, weight_BNMKC: Tensor) -> Tensor:
    """Σ_kc weight[..., k, c] · corner c of table[index[..., k]], in runs of points: (B, N, M, D)."""
    total = torch.zeros((), device=table.device)
    for run in _runs(index_BNMK):
        weight_BNM1C = weight_BNMKC[:, :, :, run].flatten(3).unsqueeze(3)
        total = total + (weight_BNM1C @ _corners(table, index_BNMK[:, :, :, run])).squeeze(3)
    return total


def _corners(table: Tensor, index_BNMK: Tensor) -> Tensor:
    """The corners of places: (B, N, M, 4·K, D)."""
    B, N, M, K = index_BNMK.shape
    return F.embedding(index_BNMK, table).reshape(B, N, M, 4 * K, table.shape[1] // 4)


def ms_deform_sample(
    value_BSMD: Tensor, shapes: Sequence[tuple[int, int]], positions_BNMLK2: Tensor, weights_BNMLK: Tensor
) -> Tensor:
    """As :func:`cssformer.ops.ms_deform_sample`."""
    compute = torch.promote_types(value_BSMD.dtype, torch.float32)
    total = torch.zeros((), device=value_BSMD.device)
    for level, table in enumerate(_tables(value_BSMD.to(compute), shapes)):
        index, bilinear = _places(shapes[level], positions_BNMLK2[:, :, :, level])
        weight_BNMK1 = weights_BNMLK[:, :, :, level].to(compute).unsqueeze(4)
        total = total + _weighted_sum(table, index, bilinear * weight_BNMK1)
    return total.to(value_BSMD.dtype)


def ms_deform_attend(
    query_BNMD: Tensor,
    key_BSMD: Tensor,
    value_BSMD: Tensor,
    shapes: Sequence[tuple[int, int]],
    positions_BNMLK2: Tensor,
) -> Tensor:
    """As :func:`cssformer.ops.ms_deform_attend`; a sampled key's logit is the weighed sum of its corners' logits."""
    compute = torch.promote_types(value_BSMD.dtype, torch.float32)
    query_BNMD1 = (query_BNMD.to(compute) * query_BNMD.shape[3] ** -0.5).unsqueeze(4)
    places = [_places(shape, positions_BNMLK2[:, :, :, level]) for level, shape in enumerate(shapes)]
    logits = []
    for table, (index, bilinear) in zip(_tables(key_BSMD.to(compute), shapes), places, strict=True):
        for run in _runs(index):
            weight = bilinear[:, :, :, run]
            of_corners = _corners(table, index[:, :, :, run]) @ query_BNMD1
            logits.append((of_corners.reshape(weight.shape) * weight).sum(4))
    weights_LBNMK = torch.cat(logits, 3).softmax(3).chunk(len(places), 3)
    total = torch.zeros((), device=value_BSMD.device)
    tables = _tables(value_BSMD.to(compute), shapes)
    for table, (index, bilinear), weight in zip(tables, places, weights_LBNMK, strict=True):
        total = total + _weighted_sum(table, index, bilinear * weight.unsqueeze(4))
    return total.to(value_BSMD.dtype)
