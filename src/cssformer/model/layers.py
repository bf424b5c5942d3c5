"""What several parts of the network are built from; maps are channels last, (B, H, W, C)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """GroupNorm of maps (B, H, W, C): one mean and one deviation for a group of channels on a whole map.

    Unlike LayerNorm, which scales each pixel to the same length, it leaves how strongly a pixel answers, and unlike
    BatchNorm it does not mind a batch of one.
    """

    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(feature.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Resize(nn.Module):
    """Bilinear interpolation of maps: (B, h, w, C) -> (B, *size, C); pixel centres as with ``align_corners=False``."""

    def forward(self, feature: Tensor, size: tuple[int, int]) -> Tensor:
        channels_first = feature.permute(0, 3, 1, 2)
        if feature.shape[-1] < 16:  # PyTorch resizes few channels faster one after the other, many side by side
            channels_first = channels_first.contiguous()
        return F.interpolate(channels_first, size, mode="bilinear").permute(0, 2, 3, 1)


class FeedForward(nn.Sequential):
    """The pre-norm feed-forward block of a Transformer: LayerNorm, C -> ratio·C -> C. The caller adds the residual."""

    def __init__(self, channels: int, ratio: int) -> None:
        widened = nn.Linear(channels, ratio * channels)
        super().__init__(nn.LayerNorm(channels), widened, nn.ReLU(), zero_init_(nn.Linear(ratio * channels, channels)))


class SamplingOffsets(nn.Linear):
    """The linear layer W_Δ: where each token looks on each scale, in pixels of that scale.

    At the start head m looks along the direction 2πm/M, its K points ``radius``/K pixels apart from the token itself
    outwards, the same for every token and every scale (as in Deformable DETR).
    """

    radius = 4.0

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        # First, because nn.Linear's constructor calls reset_parameters.
        self.heads, self.levels, self.points = heads, levels, points
        super().__init__(channels, heads * levels * points * 2)

    def reset_parameters(self) -> None:
        angle_M = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction_M2 = torch.stack([angle_M.cos(), angle_M.sin()], dim=-1)
        distance_K = torch.arange(self.points) * (self.radius / self.points)
        start_MLK2 = (direction_M2[:, None, None] * distance_K[:, None]).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.weight.zero_()
            self.bias.copy_(start_MLK2.flatten())

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, C) -> offsets (B, N, M, L, K, 2), pixels of each scale."""
        return super().forward(tokens).unflatten(-1, (self.heads, self.levels, self.points, 2))


def xavier_init_(layer: nn.Linear) -> nn.Linear:
    """The layer with weights uniform after Glorot and Bengio, and bias 0."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zero_init_(layer: nn.Linear) -> nn.Linear:
    """The layer with weights and bias 0. As a residual branch's last layer: the network starts as its baseline."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
