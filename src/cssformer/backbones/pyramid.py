"""Four scales of a plain Vision Transformer, which itself has one."""

from typing import Any, cast

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models import FeatureInfo
from torch import Tensor, nn

from cssformer.utils.errors import UserError

STRIDES = (4, 8, 16, 32)
SCALES = len(STRIDES)


class PlainViT(nn.Module):
    """A plain Vision Transformer of which four blocks become four maps: what all ways to do so have in common.

    Class and register tokens are left out. Pictures are mirrored below and to the right until patches fill them.

    Args:
        vit: a timm model of one stride under ``features_only``; its ``out_indices`` are changed unless given: to
            four blocks at equal distances, the last one among them.
        given: the caller has chosen the blocks, four of them.

    Raises:
        UserError: the ViT has fewer than four blocks, or another number of blocks was chosen.
    """

    def __init__(self, vit: nn.Module, given: bool = False) -> None:
        super().__init__()
        timm_vit = cast("Any", vit)
        depth = max(timm_vit.out_indices) + 1
        if not given:
            timm_vit.out_indices = sorted({-(-depth * number // SCALES) - 1 for number in range(1, SCALES + 1)})
        if len(timm_vit.out_indices) != SCALES:
            raise UserError(f"A pyramid takes the maps of 4 blocks of a ViT, not of {len(timm_vit.out_indices)}.")
        self.vit = vit
        self.patch = int(timm_vit.feature_info.reduction()[-1])
        self.width = int(timm_vit.feature_info.channels()[-1])
        self.pretrained_cfg = timm_vit.pretrained_cfg

    def describe(self, channels: tuple[int, ...]) -> None:
        """Say as timm does of which widths the maps are."""
        maps = zip(channels, STRIDES, strict=True)
        info = [{"num_chs": width, "reduction": stride, "module": ""} for width, stride in maps]
        self.feature_info = FeatureInfo(info, tuple(range(SCALES)))

    def filled(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), 64 at least -> pictures of the next multiples of twice the patch."""
        if self.patch == 16:
            return images
        below, right = (-side % (2 * self.patch) for side in images.shape[2:])
        return F.pad(images, (0, right, 0, below), mode="reflect")


class SimpleFeaturePyramid(PlainViT):
    """The simple feature pyramid of ViTDet (Li et al., 2022): maps of stride 4, 8, 16 and 32 from a plain ViT.

    A LayerNorm scales the patches of each block, which blocks do not. Then one map becomes four times as fine and one
    twice, by transposed convolutions 2x2 with LayerNorm and GELU between two of them, one stays, and one is halved by
    max-pooling 2x2.

    Patches of p pixels, not 16, give strides p/4 to 2p. These maps are resampled bilinearly: cell y of the map of
    stride s looks at y' = (y + 1/2)·16/p - 1/2, so that its centre is pixel (y + 1/2)·s of the picture. What lies
    beyond the picture is cut off.

    Args:
        vit: see :class:`PlainViT`.
        given: likewise.
    """

    def __init__(self, vit: nn.Module, given: bool = False) -> None:
        super().__init__(vit, given)
        width, half, quarter = self.width, self.width // 2, self.width // 4
        self.describe((quarter, half, width, width))
        self.scales = nn.ModuleList(
            nn.Sequential(LayerNorm2d(width), *scale)
            for scale in (
                (_twice(width, half), LayerNorm2d(half), nn.GELU(), _twice(half, quarter)),
                (_twice(width, half),),
                (),
                (nn.MaxPool2d(2),),
            )
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W), H and W multiples of 32, 64 at least -> maps (B, channels[i], H/s, W/s), s = 4, 8, 16, 32."""
        maps = [scale(feature) for scale, feature in zip(self.scales, self.vit(self.filled(images)), strict=True)]
        if self.patch == 16:
            return maps
        finer = [F.interpolate(feature.contiguous(), scale_factor=self.patch / 16, mode="bilinear") for feature in maps]
        height, width = images.shape[2:]
        return [
            feature[:, :, : height // stride, : width // stride] for feature, stride in zip(finer, STRIDES, strict=True)
        ]


def _twice(channels: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out, kernel_size=2, stride=2)


def trunk(backbone: nn.Module) -> nn.Module:
    """What the pretrained weights are of: timm's own part of a :class:`cssformer.model.backbone.Backbone`.

    What makes a pyramid of a plain ViT is none of it: it begins anew, and learns at the decoder's rate.
    """
    body = cast("Any", backbone).body
    return cast("nn.Module", body.vit if isinstance(body, PlainViT) else body)
