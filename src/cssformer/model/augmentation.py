"""Channel Information Augmentation, CIA (paper section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cssformer.eager import values_only
from cssformer.model.linear import Linear, linear
from cssformer.model.tokens import silent
from cssformer.model.upsampling import resize

POOLED_SIZES = (1, 2, 3, 6)


class ChannelAugmentation(nn.Module):
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
        self.fuse = silent(Linear(2 * channels, channels))
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
        contexts = [resize(context, feature.shape[1:3]) for context in pooled]
        fused: Tensor = self.fuse(torch.cat([feature, *contexts], dim=-1))
        return fused

    def _fused_values(self, feature: Tensor, pooled: list[Tensor]) -> Tensor:
        batch, height, width, channels = feature.shape
        own, *others = self.fuse.weight.split([channels, *(context.shape[-1] for context in pooled)], dim=1)
        along_y, along_x = (
            [upsampling_matrix(length, size, feature.device) for size in POOLED_SIZES] for length in (height, width)
        )
        rows_BHSC = torch.cat(
            [
                torch.einsum("hs,bstc->bhtc", rows.to(context.dtype), linear(context, weight))
                for rows, context, weight in zip(along_y, pooled, others, strict=True)
            ],
            dim=2,
        )
        fused = linear(feature, own, self.fuse.bias).view(batch * height, width, channels)
        columns = torch.cat(along_x, dim=1).to(fused.dtype).expand(batch * height, -1, -1)
        return fused.baddbmm_(columns, rows_BHSC.flatten(0, 1)).view_as(feature)


def pools(feature: Tensor) -> list[Tensor]:
    """(B, H, W, C) -> (B, s, s, C) for s in 1, 2, 3, 6: as ``F.adaptive_avg_pool2d``, but exportable at every H, W."""
    height, width = feature.shape[1:3]
    along_y, along_x = (
        [pooling_matrix(length, size, feature.device).to(feature.dtype) for size in POOLED_SIZES]
        for length in (height, width)
    )
    # All sizes along x in one product: the map, which is large, is read once.
    narrow = torch.matmul(torch.cat(along_x), feature).split(POOLED_SIZES, dim=2)
    return [torch.einsum("sh,bhtc->bstc", rows, part) for rows, part in zip(along_y, narrow, strict=True)]


def pooling_matrix(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """(size, length): row i averages the cells floor(i·length/size) to ceil((i+1)·length/size) - 1."""
    row = torch.arange(size, device=device)[:, None]
    cell = torch.arange(length, device=device)
    # In integers: floor(i·length/size) <= cell < ceil((i+1)·length/size).
    inside = ((cell + 1) * size > row * length) & (cell * size < (row + 1) * length)
    return inside / inside.sum(dim=1, keepdim=True)


def upsampling_matrix(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """(length, size): bilinear up-sampling from ``size`` cells along one axis, as :func:`resize` does it."""
    identity = torch.eye(size, device=device)[None]
    return F.interpolate(identity, length, mode="linear")[0].T
