"""Four scales of a plain Vision Transformer by an adapter, which sees the picture itself too."""

import math
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, resample_abs_pos_embed_nhwc
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cssformer.backbones.pyramid import SCALES, STRIDES, PlainViT
from cssformer.ops import ms_deform_sample
from cssformer.ops.reference import Shapes
from cssformer.utils.errors import UserError

POINTS = 4
"""Places that a head looks at on each map."""


class ViTAdapter(PlainViT):
    """The ViT-Adapter (Chen et al., 2023): maps of stride 4, 8, 16 and 32 from a plain ViT.

    A small convolutional network, the spatial prior, makes four maps of the picture; those of stride 8, 16 and 32 are
    tokens. Before each of four groups of the ViT's blocks an injector lets the patches look at a few learned places of
    these tokens; after it an extractor lets the tokens look at such places of the patches. In the end the finest map
    gets the one of stride 8, and every map the patches of its group, resampled bilinearly.

    The ViT begins as timm's to the bit, because what is injected is scaled by a learned gamma that is 0 at first.
    Without injectors nothing goes back into the ViT, so that it can stay frozen and its gradients uncomputed; DINOv3's
    authors do so.

    Pixel (x, y) of the picture is (x + 1/2)/s - 1/2 on a map of stride s, by which patches of every size are met.

    Args:
        vit: see :class:`PlainViT`; timm's VisionTransformer, Eva or VisionTransformerSAM.
        given: likewise.
        injectors: with them.

    Raises:
        UserError: the ViT is of another kind, or see :class:`PlainViT`.
    """

    def __init__(self, vit: nn.Module, given: bool = False, injectors: bool = True) -> None:
        super().__init__(vit, given)
        if not isinstance(network := cast("Any", vit).model, VisionTransformer | Eva | VisionTransformerSAM):
            raise UserError(
                f"A ViT-Adapter is not built over timm's {type(network).__name__}; leave the argument pyramid out."
            )
        self.describe((self.width,) * SCALES)
        self.prior = SpatialPrior(
            self.width, next(part for part in vit.modules() if isinstance(part, nn.Conv2d)).in_channels
        )
        self.level_embed = nn.Parameter(torch.zeros(SCALES - 1, self.width))
        self.norms = nn.ModuleList(LayerNorm2d(self.width) for _ in range(SCALES))
        self.injectors = nn.ModuleList(Injector(self.width) for _ in range(SCALES * injectors))
        self.extractors = nn.ModuleList(Extractor(self.width) for _ in range(SCALES))
        self.finest = nn.ConvTranspose2d(self.width, self.width, kernel_size=2, stride=2)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W), H and W multiples of 32, 64 at least -> maps (B, width, H/s, W/s), s = 4, 8, 16, 32."""
        finest, *coarser = self.prior(images)
        shapes = [(feature.shape[2], feature.shape[3]) for feature in coarser]
        tokens = torch.cat(
            [
                feature.flatten(2).transpose(1, 2) + level
                for feature, level in zip(coarser, self.level_embed, strict=True)
            ],
            dim=1,
        )
        filled = self.filled(images)
        shape = filled.shape[2] // self.patch, filled.shape[3] // self.patch
        on_patches = torch.cat(
            [places(each, s, self.patch, images.device) for each, s in zip(shapes, STRIDES[1:], strict=True)]
        )[:, None]
        on_tokens = torch.stack([places(shape, self.patch, s, images.device) for s in STRIDES[1:]], dim=1)
        network = cast("Any", self.vit).model
        prefix = getattr(network, "num_prefix_tokens", 0)
        x, rope = embedded(network, filled)
        patches = []
        bounds = pairwise((0, *(last + 1 for last in cast("Any", self.vit).out_indices)))
        for number, (first, end) in enumerate(bounds):
            if self.injectors:
                own = x.flatten(1, -2)
                injected = self.injectors[number](own[:, prefix:], tokens, on_tokens, shapes)
                x = torch.cat([own[:, :prefix], injected], dim=1).view(x.shape)
            for index in range(first, end):
                x = _block(network, index, x, rope)
            feature = x.flatten(1, -2)[:, prefix:].transpose(1, 2).unflatten(2, shape)
            patches.append(self.norms[number](feature))
            tokens = self.extractors[number](tokens, patches[-1], on_patches, shapes)
        coarser = _unflatten(tokens, shapes)
        maps = [finest + self.finest(coarser[0]), *coarser]
        return [
            feature + self.resampled(patch, stride)[:, :, : feature.shape[2], : feature.shape[3]]
            for feature, patch, stride in zip(maps, patches, STRIDES, strict=True)
        ]

    def resampled(self, patches: Tensor, stride: int) -> Tensor:
        """The patches' map at a stride; its first cell begins where the picture does."""
        return F.interpolate(patches.contiguous(), scale_factor=self.patch / stride, mode="bilinear")


def places(shape: tuple[int, int], stride: int, onto: int, device: torch.device) -> Tensor:
    """Where the cells of a map of a stride lie on a map of another one: (H·W, 2) float32, (x, y)."""
    y, x = ((torch.arange(side, device=device) + 0.5) * (stride / onto) - 0.5 for side in shape)
    return torch.stack([x.expand(shape), y[:, None].expand(shape)], dim=-1).flatten(0, 1)


def embedded(network: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the first block of timm's ViT gets: tokens, (B, N, C) or SAM's (B, h, w, C), and rotations for all blocks.

    timm itself has no function that stops here.
    """
    x, rope = network.patch_embed(images), None
    if isinstance(network, VisionTransformerSAM):
        if network.pos_embed is not None:
            x = x + resample_abs_pos_embed_nhwc(network.pos_embed, x.shape[1:3])
        x = network.patch_drop(network.pos_drop(x))
    elif isinstance(network, Eva):
        x, rope = network._pos_embed(x)
    else:
        x = network.patch_drop(network._pos_embed(x))
    return network.norm_pre(x), rope


def _block(network: Any, index: int, x: Tensor, rope: Tensor | None) -> Tensor:
    arguments = {}
    if isinstance(network, Eva):
        mixed = getattr(network, "rope_mixed", False) and rope is not None
        arguments["rope"] = rope[index] if rope is not None and mixed else rope
    block = network.blocks[index]
    if network.grad_checkpointing:
        block = partial(checkpoint, block, use_reentrant=False)
    out: Tensor = block(x, **arguments)
    return out


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


class DeformableAttention(nn.Module):
    """Tokens look at learned places of some maps (Zhu et al., 2021): each head at ``POINTS`` of every map."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.heads, self.levels = math.gcd(width, max(1, width // 64)), levels
        self.offsets = nn.Linear(width, self.heads * levels * POINTS * 2)
        self.weights = nn.Linear(width, self.heads * levels * POINTS)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        # A head looks along a direction of its own.
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        star_MLK2 = direction[:, None, None] * torch.arange(1, POINTS + 1)[:, None].expand(levels, -1, 1)
        with torch.no_grad():
            self.offsets.bias.copy_(star_MLK2.flatten())
        for zero in (self.offsets.weight, self.weights.weight, self.weights.bias):
            nn.init.zeros_(zero)

    def forward(self, query: Tensor, cells: Tensor, places_NL2: Tensor, shapes: Shapes) -> Tensor:
        """Queries (B, N, C) at places of the maps of these shapes, their cells (B, S, C) -> (B, N, C)."""
        offsets_BNMLK2 = self.offsets(query).unflatten(-1, (self.heads, self.levels, POINTS, 2))
        weights_BNMK = self.weights(query).unflatten(-1, (self.heads, self.levels * POINTS)).softmax(-1)
        value_BSMD = self.value(cells).unflatten(-1, (self.heads, -1))
        positions_BNMLK2 = places_NL2[:, None, :, None] + offsets_BNMLK2
        weights_BNMLK = weights_BNMK.unflatten(-1, (self.levels, POINTS))
        sampled_BNMD = ms_deform_sample(value_BSMD, shapes, positions_BNMLK2, weights_BNMLK)
        out: Tensor = self.output(sampled_BNMD.flatten(2))
        return out


class Injector(nn.Module):
    """The ViT's patches look at the prior's tokens, scaled by gamma, which is 0 at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.token_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = DeformableAttention(width, SCALES - 1)
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, patches: Tensor, tokens: Tensor, places: Tensor, shapes: Shapes) -> Tensor:
        """Patches (B, P, C) at places (P, 3, 2) of tokens (B, N, C) of maps of these shapes -> patches (B, P, C)."""
        return patches + self.gamma * self.attention(self.norm(patches), self.token_norm(tokens), places, shapes)


class Extractor(nn.Module):
    """Tokens look at the patches, then mix among themselves: deformable attention, then a ConvFFN."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = DeformableAttention(width, 1)
        hidden = max(1, width // 4)
        self.wide, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        # The tokens begin as the spatial prior gives them.
        for last in (self.attention.output, self.narrow):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, tokens: Tensor, feature: Tensor, places: Tensor, shapes: Shapes) -> Tensor:
        """Tokens (B, N, C) of maps of these shapes, at places (N, 1, 2) of a feature (B, C, h, w) -> (B, N, C)."""
        shape = feature.shape[2], feature.shape[3]
        tokens = tokens + self.attention(self.norm(tokens), feature.flatten(2).transpose(1, 2), places, [shape])
        hidden = [
            self.mix(part).flatten(2).transpose(1, 2) for part in _unflatten(self.wide(self.ffn_norm(tokens)), shapes)
        ]
        mixed: Tensor = self.narrow(F.gelu(torch.cat(hidden, dim=1)))
        return tokens + mixed


def _unflatten(tokens: Tensor, shapes: Shapes) -> list[Tensor]:
    parts = tokens.split([height * width for height, width in shapes], dim=1)
    return [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]


def _convolution(channels: int, out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.GroupNorm(16, out), nn.ReLU()
