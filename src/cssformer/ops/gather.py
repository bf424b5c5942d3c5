"""The two sampling functions with nothing but arithmetic and Gather, which every runtime of exported networks has.

Several runtimes compute GridSample wrongly without saying so. Here a row of a table holds a pixel's value and those to
the right, below and both, so that a place is one row, weighed bilinearly; around every map lies a border of zeros. The
heads of the queries go in runs, head by head, whose samples stay in the cache. It computes what
:mod:`cssformer.ops.reference` defines, in float32 for half-precision values, in float64 for float64. It is for
inference: a place that is not finite has no finite gradient.

In the names R is a run, P = L·K. Axes are counted from the front, because the tracing ONNX exporter gets
``unbind(-1)``, ``split`` and ``unflatten`` of tensors of any size wrong.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cssformer.ops.reference import Shapes
from cssformer.ops.runs import Function, in_runs


def _corners(shapes: Shapes, device: torch.device) -> Tensor:
    """For each place of each scale with its border the pixels there, right, below and both: (Σ(H + 2)·(W + 2), 4).

    The border's are 0, the scales' are counted from 1.
    """
    corners, first = [], 1
    for H, W in shapes:
        pixels = F.pad((torch.arange(H * W, device=device) + first).reshape(H, W), (1, 2, 1, 2))
        upper, lower = pixels[:-1], pixels[1:]
        four = [side for row in (upper, lower) for side in (row[:, :-1], row[:, 1:])]
        corners.append(torch.stack(four, 2).reshape(-1, 4))
        first = first + H * W
    return torch.cat(corners)


def _table(maps_BSMD: Tensor, corners: Tensor) -> Tensor:
    """A row (4·D), the values of the corners, for each place of each head's maps: (B·M·places, 4·D)."""
    maps_BMSD = F.pad(maps_BSMD.permute(0, 2, 1, 3), (0, 0, 1, 0)).flatten(0, 1)
    # One gather is a third of the copies that slices, side by side and scale after scale, take.
    return maps_BMSD.index_select(1, corners.reshape(-1)).reshape(-1, 4 * int(maps_BSMD.shape[3]))


def _geometry(shapes: Shapes, points: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the points' scales: sides, (2, 1, P), a table's columns, (P,), its pixel (0, 0), (P,); and its rows, (1,)."""
    one = torch.ones(points, device=like.device, dtype=torch.int32)
    sides, columns, origins, first = [], [], [], torch.zeros(1, device=like.device, dtype=torch.int32)
    for H, W in shapes:
        sides.append(torch.stack([one * W, one * H]))
        columns.append(one * (W + 2))
        origins.append(first + columns[-1] + 1)
        first = first + (H + 2) * (W + 2)
    return torch.cat(sides, 1).unsqueeze(1).to(like.dtype), torch.cat(columns), torch.cat(origins), first


def _places(
    positions_RP2: Tensor, first_R1: Tensor, sides_21P: Tensor, columns_P: Tensor, origins_P: Tensor
) -> tuple[Tensor, Tensor]:
    """The table's row of each place, (1, R, P), and how far to the right and below of its pixel it is, (2, R, P)."""
    position_2RP = positions_RP2.permute(2, 0, 1)
    # The nearest position that is not beyond the border. Comparisons with NaN are false, so it becomes -1.
    position_2RP = torch.where(position_2RP > -1, torch.minimum(position_2RP, sides_21P), -1)
    cell_2RP = position_2RP.floor()
    x_1RP, y_1RP = cell_2RP.int().split(1)
    return y_1RP * columns_P + x_1RP + (first_R1 + origins_P), position_2RP - cell_2RP


def _rows(table: Tensor, index_1RP: Tensor) -> Tensor:
    """(R, 4·P, D)."""
    return F.embedding(index_1RP, table).reshape(-1, 4 * int(index_1RP.shape[2]), int(table.shape[1]) // 4)


def _products(moved_2RP: Tensor, weight_1RP: Tensor | None = None) -> Tensor:
    """Bilinear weights of the four corners of a place, times the place's own: (4, R, P)."""
    x_1RP, y_1RP = moved_2RP.split(1)
    right_1RP = x_1RP if weight_1RP is None else weight_1RP * x_1RP
    upper_2RP = torch.cat([(1 if weight_1RP is None else weight_1RP) - right_1RP, right_1RP])
    lower_2RP = upper_2RP * y_1RP
    return torch.cat([upper_2RP - lower_2RP, lower_2RP])


def _weighted_sum(weights_4RP: Tensor, rows_RPD: Tensor) -> Tensor:
    """(R, 1, D)."""
    # Transposed between two reshapes, else ONNX Runtime moves the transposition through the arithmetic before it.
    return weights_4RP.reshape(4, -1).t().reshape(-1, 1, int(rows_RPD.shape[1])) @ rows_RPD


def _sample(
    query_R: Tensor, first_R1: Tensor, positions_QP2: Tensor, weights_QP: Tensor, table: Tensor, *geometry: Tensor
) -> Tensor:
    """Samples of a run, (R, 1, D)."""
    index_1RP, moved_2RP = _places(positions_QP2.index_select(0, query_R), first_R1, *geometry)
    weights_1RP = weights_QP.index_select(0, query_R).unsqueeze(0)
    return _weighted_sum(_products(moved_2RP, weights_1RP), _rows(table, index_1RP))


def _attend(
    query_R: Tensor,
    first_R1: Tensor,
    positions_QP2: Tensor,
    queries_QD1: Tensor,
    keys: Tensor,
    values: Tensor,
    *geometry: Tensor,
) -> Tensor:
    """Attention of a run, (R, 1, D); the logit of a sampled key is the weighed sum of the logits of its corners."""
    index_1RP, moved_2RP = _places(positions_QP2.index_select(0, query_R), first_R1, *geometry)
    corners_4RP = _products(moved_2RP)
    of_corners = (_rows(keys, index_1RP) @ queries_QD1.index_select(0, query_R)).reshape(-1, 4).t()
    # A product with ones is a sum, and in ONNX Runtime a seventh of its sum's time.
    logits = of_corners.new_ones(1, 4) @ (of_corners * corners_4RP.reshape(4, -1))
    weights_RP = logits.reshape(-1, int(index_1RP.shape[2])).softmax(1)
    return _weighted_sum(weights_RP * corners_4RP, _rows(values, index_1RP))


def _by_heads(
    function: Function, positions_BNMLK2: Tensor, shapes: Shapes, others_BNM: Tensor, tables: Sequence[Tensor]
) -> Tensor:
    """``function`` of all places, (B, N, M, D), head by head: what neighbours of a head look at lies close together."""
    B, N, M, L, K = positions_BNMLK2.shape[:5]
    count = B * M * N
    order = torch.arange(count, device=positions_BNMLK2.device)
    *geometry, rows = _geometry(shapes, K, positions_BNMLK2)
    each = [order.view(B, N, M).permute(0, 2, 1).reshape(-1), (order // N).int().unsqueeze(1) * rows]
    shared = [positions_BNMLK2.reshape(count, L * K, 2), others_BNM.flatten(0, 2), *tables, *geometry]
    sampled = in_runs(function, each, shared)
    return sampled.index_select(0, order.view(B, M, N).permute(0, 2, 1).reshape(-1)).reshape(B, N, M, -1)


def ms_deform_sample(value_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor, weights_BNMLK: Tensor) -> Tensor:
    """As :func:`cssformer.ops.ms_deform_sample`."""
    compute = torch.promote_types(value_BSMD.dtype, torch.float32)
    table = _table(value_BSMD.to(compute), _corners(shapes, value_BSMD.device))
    sampled = _by_heads(_sample, positions_BNMLK2, shapes, weights_BNMLK.flatten(3).to(compute), [table])
    return sampled.to(value_BSMD.dtype)


def ms_deform_attend(
    query_BNMD: Tensor, key_BSMD: Tensor, value_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor
) -> Tensor:
    """As :func:`cssformer.ops.ms_deform_attend`."""
    compute = torch.promote_types(value_BSMD.dtype, torch.float32)
    query_BNMD = query_BNMD.to(compute) * query_BNMD.shape[3] ** -0.5
    corners = _corners(shapes, key_BSMD.device)
    tables = [_table(maps.to(compute), corners) for maps in (key_BSMD, value_BSMD)]
    return _by_heads(_attend, positions_BNMLK2, shapes, query_BNMD.unsqueeze(4), tables).to(value_BSMD.dtype)
