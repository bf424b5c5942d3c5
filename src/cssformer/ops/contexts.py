"""CIA's pooled contexts, mapped while they are small: a 1x1 conv commutes with bilinear up-sampling."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def with_small_contexts(cia: Any, sizes: Sequence[int], feature: Tensor, linear: Callable[..., Tensor]) -> Tensor:
    """P (B, H, W, C) -> Q (B, H, W, C), by pooling and up-sampling that are products with two matrices each.

    Args:
        cia: a :class:`cssformer.model.cia.ChannelInformationAugmentation`.
        sizes: s of its pooled maps.
        feature: P.
        linear: as ``torch.nn.functional.linear``.
    """
    batch, height, width, channels = feature.shape
    own, *others = cia.fuse.weight.split([channels, *(reduce.out_features for reduce in cia.reduce)], dim=1)
    pooled_x = torch.matmul(pooling_matrix(sizes, width).to(feature.dtype), feature).split(sizes, dim=2)
    pooling_y = pooling_matrix(sizes, height).to(feature.dtype).split(sizes)
    upsampling_y = upsampling_matrix(sizes, height).to(feature.dtype).split(sizes, dim=1)
    rows = []
    for up_y, reduce, y, x, weight in zip(upsampling_y, cia.reduce, pooling_y, pooled_x, others, strict=True):
        pooled_BSSC = torch.matmul(y, x.flatten(2)).view(batch, len(y), len(y), channels)
        contexts_BSSC = linear(reduce(pooled_BSSC), weight)
        rows.append(torch.matmul(up_y, contexts_BSSC.flatten(2)).view(batch, height, len(y), channels))
    rows_BHSC = torch.cat(rows, dim=2)
    fused = linear(feature, own, cia.fuse.bias).view(batch * height, width, channels)
    columns = upsampling_matrix(sizes, width).to(fused.dtype).expand(batch * height, -1, -1)
    fused = fused.baddbmm_(columns, rows_BHSC.flatten(0, 1).to(fused.dtype)).view_as(feature)
    weight = cia.gate(fused.mean(2).mean(1))
    return torch.addcmul(feature, weight[:, None, None], fused)


def _cells(sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Of the pooled cells along an axis, for sizes 1, 2, ...: the pooled size, 1, 2, 2, ..., and the index in it."""
    cells = torch.tensor([(size, index) for size in sizes for index in range(size)])
    return cells[:, 0], cells[:, 1]


def pooling_matrix(sizes: Sequence[int], length: int) -> Tensor:
    """(cells, length), a row for each pooled cell: i of s averages floor(i·length/s) to ceil((i+1)·length/s) - 1."""
    size, index = (part[:, None] for part in _cells(sizes))
    cell = torch.arange(length)
    inside = ((cell + 1) * size > index * length) & (cell * size < (index + 1) * length)
    return inside / inside.sum(dim=1, keepdim=True)


def upsampling_matrix(sizes: Sequence[int], length: int) -> Tensor:
    """(length, cells), a column for each pooled cell: bilinear up-sampling along one axis."""
    size, index = _cells(sizes)
    centre = (torch.arange(length)[:, None] + 0.5) * size / length - 0.5
    distance = torch.minimum(centre.clamp(min=0), size - 1) - index
    return (1 - distance.abs()).clamp(min=0)
