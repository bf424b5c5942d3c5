"""Channel Information Augmentation, CIA (paper section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cssformer.model.linear import Linear
from cssformer.model.tokens import silent

POOLED_SIZES = (1, 2, 3, 6)


class ChannelAugmentation(nn.Module):
    """Strengthens the query feature of one scale with pooled context, channel by channel.

        G_s = up(conv(pool_s(P)))  for s in 1, 2, 3, 6
        S   = conv([P, G_1, G_2, G_3, G_6])
        w   = sigmoid(W_2 relu(W_1 mean(S)))
        Q   = P + w * S

    Every conv is 1x1, which on channels-last maps is a linear layer.
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
        contexts = [
            resize(reduce(adaptive_average_pool(feature, size)), feature.shape[1:3])
            for size, reduce in zip(POOLED_SIZES, self.reduce, strict=True)
        ]
        context = self.fuse(torch.cat([feature, *contexts], dim=-1))
        weight = self.gate(context.mean(dim=(1, 2)))
        return feature + weight[:, None, None] * context


def adaptive_average_pool(feature: Tensor, size: int) -> Tensor:
    """(B, H, W, C) -> (B, size, size, C), as ``F.adaptive_avg_pool2d``, but exportable at every H and W."""
    rows = pooling_matrix(feature.shape[1], size, feature.device).to(feature.dtype)
    columns = pooling_matrix(feature.shape[2], size, feature.device).to(feature.dtype)
    narrow = torch.einsum("sw,bhwc->bhsc", columns, feature)
    return torch.einsum("sh,bhtc->bstc", rows, narrow)


def pooling_matrix(length: int, size: int, device: torch.device | None = None) -> Tensor:
    """(size, length): row i averages the cells floor(i·length/size) to ceil((i+1)·length/size) - 1."""
    row = torch.arange(size, device=device)[:, None]
    cell = torch.arange(length, device=device)
    # In integers: floor(i·length/size) <= cell < ceil((i+1)·length/size).
    inside = ((cell + 1) * size > row * length) & (cell * size < (row + 1) * length)
    return inside / inside.sum(dim=1, keepdim=True)


def resize(feature: Tensor, size: torch.Size) -> Tensor:
    """(B, h, w, C) -> (B, *size, C), bilinear."""
    return F.interpolate(feature.permute(0, 3, 1, 2), list(size), mode="bilinear").permute(0, 2, 3, 1)
