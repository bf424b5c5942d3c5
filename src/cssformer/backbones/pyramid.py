"""Four scales of a plain Vision Transformer, which itself has one."""

from typing import Any, cast

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models import FeatureInfo
from torch import Tensor, nn

from cssformer.utils.errors import UserError

SCALES = 4


class SimpleFeaturePyramid(nn.Module):
    """The simple feature pyramid of ViTDet (Li et al., 2022): maps of stride 4, 8, 16 and 32 from a plain ViT.

    Four blocks at equal distances give the tokens of their patches; class and register tokens are left out. A LayerNorm
    scales them, which blocks do not. Then one map becomes four times as fine and one twice, by transposed convolutions
    2x2 with LayerNorm and GELU between two of them, one stays, and one is halved by max-pooling 2x2.

    Patches of p pixels, not 16, give strides p/4 to 2p. Then the picture is mirrored below and to the right to a
    multiple of 2p, which every map divides, and the maps are resampled bilinearly: cell y of the map of stride s looks
    at y' = (y + 1/2)·16/p - 1/2, so that its centre is pixel (y + 1/2)·s of the picture. What lies beyond the picture
    is cut off.

    Args:
        vit: a timm model of one stride under ``features_only``; its ``out_indices`` are changed unless given.
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
        width = int(timm_vit.feature_info.channels()[-1])
        half, quarter = width // 2, width // 4
        self.scales = nn.ModuleList(
            nn.Sequential(LayerNorm2d(width), *scale)
            for scale in (
                (_twice(width, half), LayerNorm2d(half), nn.GELU(), _twice(half, quarter)),
                (_twice(width, half),),
                (),
                (nn.MaxPool2d(2),),
            )
        )
        self.pretrained_cfg = timm_vit.pretrained_cfg
        widths = zip((quarter, half, width, width), (4, 8, 16, 32), strict=True)
        maps = [{"num_chs": channels, "reduction": stride, "module": ""} for channels, stride in widths]
        self.feature_info = FeatureInfo(maps, tuple(range(SCALES)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W), H and W multiples of 32, 64 at least -> maps (B, channels[i], H/s, W/s), s = 4, 8, 16, 32."""
        height, width = images.shape[2:]
        below, right = -height % (2 * self.patch), -width % (2 * self.patch)
        if self.patch != 16:
            images = F.pad(images, (0, right, 0, below), mode="reflect")
        maps = [scale(tokens) for scale, tokens in zip(self.scales, self.vit(images), strict=True)]
        if self.patch == 16:
            return maps
        finer = [F.interpolate(feature.contiguous(), scale_factor=self.patch / 16, mode="bilinear") for feature in maps]
        return [
            feature[:, :, : height // stride, : width // stride]
            for feature, stride in zip(finer, self.feature_info.reduction(), strict=True)
        ]


def _twice(channels: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out, kernel_size=2, stride=2)


def trunk(backbone: nn.Module) -> nn.Module:
    """What the pretrained weights are of: timm's own part of a :class:`cssformer.model.backbone.Backbone`.

    The pyramid over a plain ViT is none of it: it begins anew, and learns at the decoder's rate.
    """
    body = cast("Any", backbone).body
    return cast("nn.Module", body.vit if isinstance(body, SimpleFeaturePyramid) else body)
