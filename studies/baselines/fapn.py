"""FaPN, the feature-aligned pyramid (Huang et al., "FaPN: Feature-aligned Pyramid Network for Dense Image Prediction",
ICCV 2021), written here because no library has it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class FeatureSelection(nn.Module):
    """FSM (its section 3.2): weighs a map's channels by what they hold on the whole picture, then narrows them.

    conv(C + C · sigmoid(conv(mean(C)))), both convolutions 1x1.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weigh = _xavier(nn.Conv2d(channels, channels, 1, bias=False))
        self.select = _xavier(nn.Conv2d(channels, width, 1, bias=False))

    def forward(self, feature: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width, H, W)."""
        weight = torch.sigmoid(self.weigh(feature.mean((2, 3), keepdim=True)))
        selected: Tensor = self.select(feature + feature * weight)
        return selected


class FeatureAlignment(nn.Module):
    """FAM (its section 3.1): a deformable 3x3 convolution moves an up-sampled map to where the finer one has its edges.

    Offsets and the samples' weights come from both maps, the coarser one doubled as by the authors; at the start the
    offsets are 0.
    """

    groups = 8

    def __init__(self, width: int) -> None:
        super().__init__()
        self.compare = _xavier(nn.Conv2d(2 * width, width, 1, bias=False))
        self.place = nn.Conv2d(width, 3 * 9 * self.groups, 3, padding=1)
        self.align = nn.Conv2d(width, width, 3, padding=1)
        for start in (*self.place.parameters(), self.align.get_parameter("bias")):
            nn.init.zeros_(start)

    def forward(self, selected: Tensor, coarse: Tensor) -> Tensor:
        """The finer map (B, C, H, W) and the coarser one of any size -> their sum, aligned, (B, C, H, W)."""
        coarse = F.interpolate(coarse, list(selected.shape[2:]), mode="bilinear")
        places = self.place(self.compare(torch.cat([selected, 2 * coarse], dim=1)))
        offsets, weights = places.split([18 * self.groups, 9 * self.groups], dim=1)
        aligned: Tensor = deform_conv2d(
            coarse.float(),
            offsets.float(),
            self.align.weight.float(),
            self.align.get_parameter("bias").float(),
            padding=1,
            mask=torch.sigmoid(weights.float()),
        )
        return torch.relu(aligned).to(selected.dtype) + selected


class AlignedPyramid(nn.Module):
    """A pyramid whose top-down path selects and aligns, under the head of Semantic FPN.

    Args:
        channels: widths of the maps, the finest first.
        head: takes the pyramid's maps (B, width, H_i, W_i), the finest first, to logits.
        width: of the pyramid.
    """

    def __init__(self, channels: list[int], head: nn.Module, width: int = 256) -> None:
        super().__init__()
        self.deepest = nn.Conv2d(channels[-1], width, 1)
        self.select = nn.ModuleList(FeatureSelection(c, width) for c in channels[:-1])
        self.align = nn.ModuleList(FeatureAlignment(width) for _ in channels[:-1])
        self.smooth = nn.ModuleList(_xavier(nn.Conv2d(width, width, 3, padding=1)) for _ in channels[:-1])
        self.head = head

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), the finest first -> logits."""
        maps = [self.deepest(features[-1])]
        for feature, select, align in reversed(list(zip(features[:-1], self.select, self.align, strict=True))):
            maps.insert(0, align(select(feature), maps[0]))
        smoothed = [smooth(feature) for smooth, feature in zip(self.smooth, maps[:-1], strict=True)]
        logits: Tensor = self.head([*smoothed, maps[-1]])
        return logits


def _xavier(convolution: nn.Conv2d) -> nn.Conv2d:
    """With the first weights that FaPN's authors give it: uniform within sqrt(3 / inputs), biases 0."""
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution
