"""Channel Information Augmentation, CIA (paper section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cssformer.model.layers import Resize, zero_init_

POOLED_SIZES = (1, 2, 3, 6)


class ChannelInformationAugmentation(nn.Module):
    """Strengthens the query feature of one scale with pooled context, channel by channel.

        G_s = up(conv(pool_s(P)))  for s in 1, 2, 3, 6
        S   = conv([P, G_1, G_2, G_3, G_6])
        w   = sigmoid(W_2 relu(W_1 mean(S)))
        Q   = P + w * S

    Every conv is 1x1, which on channels-last maps is a linear layer; each G_s has C/4 channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // 4
        self.reduce = nn.ModuleList(nn.Linear(channels, narrow) for _ in POOLED_SIZES)
        self.resize = Resize()
        self.fuse = zero_init_(nn.Linear(channels + len(POOLED_SIZES) * narrow, channels))
        self.gate = nn.Sequential(
            nn.Linear(channels, channels // 2), nn.ReLU(), nn.Linear(channels // 2, channels), nn.Sigmoid()
        )

    def forward(self, feature: Tensor) -> Tensor:
        """P (B, H, W, C) -> Q (B, H, W, C)."""
        size = (feature.shape[1], feature.shape[2])
        channels_first = feature.permute(0, 3, 1, 2)
        contexts = [
            self.resize(reduce(F.adaptive_avg_pool2d(channels_first, pooled).permute(0, 2, 3, 1)), size)
            for pooled, reduce in zip(POOLED_SIZES, self.reduce, strict=True)
        ]
        fused = self.fuse(torch.cat([feature, *contexts], dim=-1))
        weight = self.gate(fused.mean(dim=(1, 2)))
        return feature + weight[:, None, None] * fused
