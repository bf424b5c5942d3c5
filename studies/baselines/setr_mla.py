"""SETR-MLA, multi-level aggregation (Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence
Perspective with Transformers", CVPR 2021, section 3.3), written here because no library has it on a pyramid."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiLevelAggregation(nn.Module):
    """Laterals added from the deepest map on, each refined on its own, all concatenated at the finest map's size.

    The original's four maps come from layers of one ViT and have one size; those of a pyramid are up-sampled where
    they meet. Every convolution is followed by BatchNorm and ReLU.

    Args:
        channels: widths of the maps, the finest first.
        num_classes: of the logits.
        width: of the laterals; the streams that follow have half of it.
    """

    def __init__(self, channels: list[int], num_classes: int, width: int = 256) -> None:
        super().__init__()
        half = width // 2
        self.lateral = nn.ModuleList(_block(c, width, 1) for c in channels)
        self.merge = nn.ModuleList(_block(width, width, 3) for _ in channels)
        self.stream = nn.ModuleList(nn.Sequential(_block(width, half, 3), _block(half, half, 3)) for _ in channels)
        self.classify = nn.Conv2d(half * len(channels), num_classes, 1)
        nn.init.normal_(self.classify.weight, std=0.01)
        assert self.classify.bias is not None
        nn.init.zeros_(self.classify.bias)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), the finest first -> logits (B, num_classes, H_1, W_1)."""
        size = features[0].shape[2:]
        sums: list[Tensor] = []
        for lateral, feature in zip(reversed(self.lateral), reversed(features), strict=True):
            own = lateral(feature)
            sums.append(own + _enlarge(sums[-1], own.shape[2:]) if sums else own)
        streams = [
            _enlarge(stream(merge(total)), size)
            for stream, merge, total in zip(self.stream, self.merge, reversed(sums), strict=True)
        ]
        logits: Tensor = self.classify(torch.cat(streams, dim=1))
        return logits


def _block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    # The first weights that mmsegmentation gives it.
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _enlarge(feature: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(feature, list(size), mode="bilinear")
