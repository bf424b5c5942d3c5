"""From feature maps to class scores: the decoder's head and the auxiliary one (paper section 3.5)."""

import math

import torch
from torch import Tensor, nn

from cssformer.model.layers import GroupNorm, Resize, xavier_init_


class SegmentationHead(nn.Module):
    """up(U_i) to stride 4, concat, 1x1 conv 4C -> C, norm, activation, dropout, 1x1 conv to the classes.

    A 1x1 conv commutes with bilinear up-sampling, so each scale's quarter of the first conv runs before its map grows.
    """

    def __init__(self, channels: int, num_classes: int, levels: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        quarters = [nn.Linear(channels, channels, bias=False) for _ in range(levels)]
        # Uniform after He (ReLU) for all the inputs of the one conv these are.
        bound = math.sqrt(6 / (levels * channels))
        for quarter in quarters:
            nn.init.uniform_(quarter.weight, -bound, bound)
        self.fuse = nn.ModuleList(quarters)
        self.resize = Resize()
        self.norm = GroupNorm(channels // 8, channels)
        self.dropout = nn.Dropout(dropout)
        self.classify = xavier_init_(nn.Linear(channels, num_classes))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, H_i, W_i, C), the finest first -> logits (B, H_1, W_1, classes)."""
        size = (maps[0].shape[1], maps[0].shape[2])
        fused = self.fuse[0](maps[0])
        for feature, fuse in zip(maps[1:], list(self.fuse)[1:], strict=True):
            fused = fused + self.resize(fuse(feature), size)
        logits: Tensor = self.classify(self.dropout(torch.relu(self.norm(fused))))
        return logits


class AuxiliaryHead(nn.Sequential):
    """A small FCN on one backbone stage, (B, C, h, w) -> logits (B, classes, h, w); used in training only."""

    def __init__(self, in_channels: int, channels: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(channels // 8, channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(channels, num_classes, 1),
        )
