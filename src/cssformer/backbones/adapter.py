"""Four scales of a plain Vision Transformer by an adapter, which sees the picture itself too."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from cssformer.backbones.pyramid import SCALES, STRIDES, PlainViT
from cssformer.ops import ms_deform_sample

POINTS = 4
"""Places that a head of an extractor looks at."""


class ViTAdapter(PlainViT):
    """The ViT-Adapter (Chen et al., 2023) without its injectors: maps of stride 4, 8, 16 and 32 from a plain ViT.

    A small convolutional network, the spatial prior, makes four maps of the picture. Four extractors follow each other:
    tokens of stride 8, 16 and 32 look at a few learned places of the patches that a block of the ViT gives. In the end
    the finest map gets the one of stride 8, and every map the patches of its block, resampled bilinearly. Nothing goes
    back into the ViT, so that it can stay frozen and its gradients uncomputed; DINOv3's authors leave it out too.

    Pixel (x, y) of the picture is (x + 1/2)/p - 1/2 on the patches' map, by which patches of every size p are met.

    Args:
        vit: see :class:`PlainViT`.
        given: likewise.
    """

    def __init__(self, vit: nn.Module, given: bool = False) -> None:
        super().__init__(vit, given)
        self.describe((self.width,) * SCALES)
        self.prior = SpatialPrior(
            self.width, next(part for part in vit.modules() if isinstance(part, nn.Conv2d)).in_channels
        )
        self.level_embed = nn.Parameter(torch.zeros(SCALES - 1, self.width))
        self.norms = nn.ModuleList(LayerNorm2d(self.width) for _ in range(SCALES))
        self.extractors = nn.ModuleList(Extractor(self.width) for _ in range(SCALES))
        self.finest = nn.ConvTranspose2d(self.width, self.width, kernel_size=2, stride=2)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W), H and W multiples of 32, 64 at least -> maps (B, width, H/s, W/s), s = 4, 8, 16, 32."""
        finest, *coarser = self.prior(images)
        shapes = [(feature.shape[2], feature.shape[3]) for feature in coarser]
        tokens = torch.cat(
            [feature.flatten(2).mT + level for feature, level in zip(coarser, self.level_embed, strict=True)], dim=1
        )
        places = torch.cat(
            [self.places(shape, stride, images.device) for shape, stride in zip(shapes, STRIDES[1:], strict=True)]
        )
        patches = [norm(feature) for norm, feature in zip(self.norms, self.patches(images), strict=True)]
        for extractor, feature in zip(self.extractors, patches, strict=True):
            tokens = extractor(tokens, feature, places, shapes)
        coarser = _unflatten(tokens, shapes)
        maps = [finest + self.finest(coarser[0]), *coarser]
        return [
            feature + self.resampled(patch, stride)[:, :, : feature.shape[2], : feature.shape[3]]
            for feature, patch, stride in zip(maps, patches, STRIDES, strict=True)
        ]

    def places(self, shape: tuple[int, int], stride: int, device: torch.device) -> Tensor:
        """Where the cells of a map lie on the patches' map: (H·W, 2) float32, (x, y)."""
        y, x = ((torch.arange(side, device=device) + 0.5) * (stride / self.patch) - 0.5 for side in shape)
        return torch.stack([x.expand(shape), y[:, None].expand(shape)], dim=-1).flatten(0, 1)

    def resampled(self, patches: Tensor, stride: int) -> Tensor:
        """The patches' map at a stride; its first cell begins where the picture does."""
        return F.interpolate(patches.contiguous(), scale_factor=self.patch / stride, mode="bilinear")


class SpatialPrior(nn.Module):
    """Pictures (B, C, H, W) -> maps (B, width, H/s, W/s), s = 4, 8, 16, 32, by 3x3 convolutions with GroupNorm."""

    def __init__(self, width: int, in_channels: int) -> None:
        super().__init__()
        stem = (
            *_convolution(in_channels, 64, 2),
            *_convolution(64, 64),
            *_convolution(64, 64),
            nn.MaxPool2d(3, 2, padding=1),
        )
        widths = (64, 128, 256, 256)
        self.stages = nn.ModuleList([nn.Sequential(*stem)])
        for before, after in pairwise(widths):
            self.stages.append(nn.Sequential(*_convolution(before, after, 2)))
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            images = stage(images)
            maps.append(lateral(images))
        return maps


class Extractor(nn.Module):
    """Tokens look at learned places of one map, then mix among themselves: deformable attention, then a ConvFFN."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = math.gcd(width, max(1, width // 64))
        self.norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.offsets = nn.Linear(width, self.heads * POINTS * 2)
        self.weights = nn.Linear(width, self.heads * POINTS)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        hidden = max(1, width // 4)
        self.wide, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        # A head looks along a direction of its own, and the tokens begin as the spatial prior gives them.
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        star = direction[:, None] * torch.arange(1, POINTS + 1)[:, None]
        with torch.no_grad():
            self.offsets.bias.copy_(star.flatten())
        for zero in (self.offsets.weight, self.weights.weight, self.weights.bias):
            nn.init.zeros_(zero)
        for last in (self.output, self.narrow):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, tokens: Tensor, feature: Tensor, places: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """Tokens (B, N, C) of maps of these shapes, at places (N, 2) of a feature (B, C, h, w) -> tokens (B, N, C)."""
        normed = self.norm(tokens)
        offsets_BNM1K2 = self.offsets(normed).unflatten(-1, (self.heads, 1, POINTS, 2))
        weights_BNM1K = self.weights(normed).unflatten(-1, (self.heads, 1, POINTS)).softmax(-1)
        value_BSMD = self.value(feature.flatten(2).mT).unflatten(-1, (self.heads, -1))
        positions_BNM1K2 = places[:, None, None, None] + offsets_BNM1K2
        shape = (feature.shape[2], feature.shape[3])
        sampled = ms_deform_sample(value_BSMD, (shape,), positions_BNM1K2, weights_BNM1K)
        tokens = tokens + self.output(sampled.flatten(2))
        hidden = [self.mix(part).flatten(2).mT for part in _unflatten(self.wide(self.ffn_norm(tokens)), shapes)]
        mixed: Tensor = self.narrow(F.gelu(torch.cat(hidden, dim=1)))
        return tokens + mixed


def _unflatten(tokens: Tensor, shapes: list[tuple[int, int]]) -> list[Tensor]:
    parts = tokens.split([height * width for height, width in shapes], dim=1)
    return [part.mT.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]


def _convolution(channels: int, out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.GroupNorm(16, out), nn.ReLU()
