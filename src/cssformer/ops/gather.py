"""The two sampling functions with nothing but arithmetic and Gather, which every runtime of exported networks has.

Several runtimes compute GridSample wrongly without saying so. Here the four corners of a place are read as rows of one
table, weighed, and left out where they are outside the map. Memory is bounded: a few rows for each head of each query
at one time, scale by scale. It computes what :mod:`cssformer.ops.reference` defines, in float32 for half-precision
values, in float64 for float64. It is for inference: a place that is not finite has no finite gradient.

Axes are counted from the front and runs are cut by slices, because the tracing ONNX exporter gets ``unbind(-1)``,
``split`` and ``unflatten`` of tensors of any size wrong.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

POINTS_AT_ONCE = 4
"""Points of a head and a scale that are read at one time, four corners each."""


def _corners(
    value_BSMD: Tensor, shapes: Sequence[tuple[int, int]], positions_BNMLK2: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each scale: the rows of the table (B·S·M, D) that hold its places' corners, and their bilinear weights.

    Both (B, N, M, K, 4); a corner outside the map has the weight 0.
    """
    B, S, M, _ = value_BSMD.shape
    device = value_BSMD.device
    map_BNMKC = torch.arange(B, device=device).view(-1, 1, 1, 1, 1) * S
    head_BNMKC = torch.arange(M, device=device).view(-1, 1, 1)
    right_C, below_C = (torch.tensor(corners, device=device) for corners in ((0, 1, 0, 1), (0, 0, 1, 1)))
    first = 0
    for level, (H, W) in enumerate(shapes):
        x, y = (positions_BNMLK2[:, :, :, level, :, axis].unsqueeze(4) for axis in (0, 1))
        left, top = x.floor(), y.floor()
        column, row = left + right_C, top + below_C
        # Comparisons with NaN are false, and an infinite place has no corner inside either.
        inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
        weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
        cell = torch.where(inside, row, 0).long() * W + torch.where(inside, column, 0).long()
        index = (map_BNMKC + first + cell) * M + head_BNMKC
        yield index, torch.where(inside, weight, 0)
        first = first + H * W


def _runs(index_BNMKC: Tensor) -> list[slice]:
    # A number, which tracing makes a tensor of.
    points = int(index_BNMKC.shape[3])
    return [slice(first, min(first + POINTS_AT_ONCE, points)) for first in range(0, points, POINTS_AT_ONCE)]


def _weighted_sum(table: Tensor, index_BNMKC: Tensor, weight_BNMKC: Tensor) -> Tensor:
    """Σ_kc weight[..., k, c] · table[index[..., k, c]], in runs of points: (B, N, M, D)."""
    total = torch.zeros((), device=table.device)
    for run in _runs(index_BNMKC):
        index, weight = index_BNMKC[:, :, :, run].flatten(3), weight_BNMKC[:, :, :, run].flatten(3)
        total = total + (weight.unsqueeze(3) @ F.embedding(index, table)).squeeze(3)
    return total


def ms_deform_sample(
    value_BSMD: Tensor, shapes: Sequence[tuple[int, int]], positions_BNMLK2: Tensor, weights_BNMLK: Tensor
) -> Tensor:
    """As :func:`cssformer.ops.ms_deform_sample`."""
    compute = torch.promote_types(value_BSMD.dtype, torch.float32)
    table = value_BSMD.to(compute).flatten(0, 2)
    total = torch.zeros((), device=table.device)
    for level, (index, bilinear) in enumerate(_corners(value_BSMD, shapes, positions_BNMLK2)):
        weight_BNMK = weights_BNMLK[:, :, :, level].to(compute)
        total = total + _weighted_sum(table, index, bilinear * weight_BNMK.unsqueeze(4))
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
    query_BNM1D1 = (query_BNMD.to(compute) * query_BNMD.shape[3] ** -0.5).unsqueeze(3).unsqueeze(5)
    keys, values = (maps.to(compute).flatten(0, 2) for maps in (key_BSMD, value_BSMD))
    corners = list(_corners(value_BSMD, shapes, positions_BNMLK2))
    logits = []
    for index, bilinear in corners:
        for run in _runs(index):
            of_corners = (F.embedding(index[:, :, :, run], keys) @ query_BNM1D1).squeeze(5)
            logits.append((of_corners * bilinear[:, :, :, run]).sum(4))
    weights_LBNMK = torch.cat(logits, 3).softmax(3).chunk(len(corners), 3)
    total = torch.zeros((), device=values.device)
    for (index, bilinear), weight in zip(corners, weights_LBNMK, strict=True):
        total = total + _weighted_sum(values, index, bilinear * weight.unsqueeze(4))
    return total.to(value_BSMD.dtype)
