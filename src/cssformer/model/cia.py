"""Channel Information Augmentation, CIA (paper section 3.2)."""

import torch
from torch import Tensor, nn

from cssformer.accelerate.linear import Linear, linear, zero_init_
from cssformer.utils.eager import values_only

POOLED_SIZES = (1, 2, 3, 6)


class ChannelInformationAugmentation(nn.Module):
    """Strengthens the query feature of one scale with pooled context, channel by channel.

        G_s = up(conv(pool_s(P)))  for s in 1, 2, 3, 6
        S   = conv([P, G_1, G_2, G_3, G_6])
        w   = sigmoid(W_2 relu(W_1 mean(S)))
        Q   = P + w * S

    Every conv is 1x1, which on channels-last maps is a linear layer.

    Where nothing is to be differentiated S is found without up-sampling any G_s: a 1x1 conv commutes with bilinear
    up-sampling, and that is a product with one small matrix for the rows and one for the columns.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(Linear(channels, channels // 4) for _ in POOLED_SIZES)
        self.fuse = zero_init_(Linear(2 * channels, channels))
        self.gate = nn.Sequential(
            Linear(channels, channels // 2), nn.ReLU(), Linear(channels // 2, channels), nn.Sigmoid()
        )

    def forward(self, feature: Tensor) -> Tensor:
        """P (B, H, W, C) -> Q (B, H, W, C)."""
        pooled = [reduce(pool) for reduce, pool in zip(self.reduce, pools(feature), strict=True)]
        context = self._fused_values(feature, pooled) if values_only() else self._fused(feature, pooled)
        weight = self.gate(context.mean(dim=(1, 2)))
        return torch.addcmul(feature, weight[:, None, None], context)

    def _fused(self, feature: Tensor, pooled: list[Tensor]) -> Tensor:
        """P and all conv(pool_s(P)), (B, s, s, C/4) -> S (B, H, W, C)."""
        cells = pooled_cells(feature.device)
        along_y, along_x = (
            upsampling_matrix(length, cells, feature.dtype).split(POOLED_SIZES, dim=1) for length in feature.shape[1:3]
        )
        # Up-sampled by matrices, because interpolation takes longer to differentiate (docs/performance.md).
        contexts = [
            torch.einsum("wt,bhtc->bhwc", columns, torch.einsum("hs,bstc->bhtc", rows, context))
            for rows, columns, context in zip(along_y, along_x, pooled, strict=True)
        ]
        fused: Tensor = self.fuse(torch.cat([feature, *contexts], dim=-1))
        return fused

    def _fused_values(self, feature: Tensor, pooled: list[Tensor]) -> Tensor:
        """The same without maps of 2C channels; values only."""
        batch, height, width, channels = feature.shape
        own, *others = self.fuse.weight.split([channels, *(context.shape[-1] for context in pooled)], dim=1)
        cells = pooled_cells(feature.device)
        along_y, along_x = (upsampling_matrix(length, cells, feature.dtype) for length in (height, width))
        rows_BHSC = torch.cat(
            [
                torch.einsum("hs,bstc->bhtc", rows, linear(context, weight).to(feature.dtype))
                for rows, context, weight in zip(along_y.split(POOLED_SIZES, dim=1), pooled, others, strict=True)
            ],
            dim=2,
        )
        fused = linear(feature, own, self.fuse.bias).view(batch * height, width, channels)
        columns = along_x.to(fused.dtype).expand(batch * height, -1, -1)
        return fused.baddbmm_(columns, rows_BHSC.flatten(0, 1).to(fused.dtype)).view_as(feature)


def pools(feature: Tensor) -> list[Tensor]:
    """(B, H, W, C) -> (B, s, s, C) for s in 1, 2, 3, 6: as ``F.adaptive_avg_pool2d``, but exportable at every H, W."""
    cells = pooled_cells(feature.device)
    along_y, along_x = (pooling_matrix(length, cells, feature.dtype) for length in feature.shape[1:3])
    # All sizes along x in one product: the map, which is large, is read once.
    narrow = torch.matmul(along_x, feature)
    parts = zip(along_y.split(POOLED_SIZES), narrow.split(POOLED_SIZES, dim=2), strict=True)
    return [torch.einsum("sh,bhtc->bstc", rows, part) for rows, part in parts]


def pooled_cells(device: torch.device) -> Tensor:
    """(12, 2): along one axis the pooled size each cell belongs to, and its place there: 1 0, 2 0, 2 1, 3 0, ..."""
    # Made on the device: to copy them there would wait for a GPU.
    sizes = torch.cat([torch.full((size,), size, device=device) for size in POOLED_SIZES])
    places = torch.cat([torch.arange(size, device=device) for size in POOLED_SIZES])
    return torch.stack([sizes, places], dim=1)


def pooling_matrix(length: int, cells: Tensor, dtype: torch.dtype) -> Tensor:
    """(12, length), a row for each pooled cell: i of s averages floor(i·length/s) to ceil((i+1)·length/s) - 1."""
    size, row = cells[:, :1], cells[:, 1:]
    cell = torch.arange(length, device=cells.device)
    # In integers: floor(i·length/size) <= cell < ceil((i+1)·length/size).
    inside = ((cell + 1) * size > row * length) & (cell * size < (row + 1) * length)
    share = 1 / inside.sum(dim=1, keepdim=True, dtype=torch.promote_types(dtype, torch.float32))
    return (inside * share).to(dtype)


def upsampling_matrix(length: int, cells: Tensor, dtype: torch.dtype) -> Tensor:
    """(length, 12), a column for each pooled cell: bilinear up-sampling along one axis."""
    size, column = cells.unbind(1)
    cell = torch.arange(length, device=cells.device, dtype=torch.promote_types(dtype, torch.float32))
    centre = (cell[:, None] + 0.5) * size / length - 0.5
    distance = torch.minimum(centre.clamp(min=0), size - 1) - column
    return (1 - distance.abs()).clamp(min=0).to(dtype)
