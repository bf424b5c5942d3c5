"""The decoder's norm over whole maps."""

from torch import Tensor, nn


class MapNorm(nn.GroupNorm):
    """GroupNorm of channels-last maps, (B, H, W, C) -> the same: one mean and one deviation for a group on a whole map.

    Unlike LayerNorm, which scales each pixel to the same length, it leaves how strongly a pixel answers, and unlike
    BatchNorm it does not mind a batch of one.
    """

    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(feature.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
