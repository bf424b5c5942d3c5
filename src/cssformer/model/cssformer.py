"""CSSFormer: the whole network, from images to class scores (paper section 3)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cssformer.model.backbone import STRIDES, Backbone
from cssformer.model.cia import ChannelInformationAugmentation
from cssformer.model.csf import CrossScaleFusion
from cssformer.model.head import AuxiliaryHead, SegmentationHead
from cssformer.model.layers import GroupNorm, Resize, xavier_init_
from cssformer.model.loss import SegmentationOutput
from cssformer.model.msfe import MultiScaleFeatureEnhancement
from cssformer.model.positions import flatten, reference_points, sine_positions, unflatten
from cssformer.weights.hub import HubModel


class SegmentationNetwork(nn.Module, HubModel):
    """A backbone, a decoder and an auxiliary head.

    A subclass gives :meth:`decode` and sets ``aux_head``.
    """

    aux_head: AuxiliaryHead | None

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone, self.num_classes = backbone, num_classes
        self.resize = Resize()

    def decode(self, features: list[Tensor]) -> Tensor:
        """Four backbone maps (B, H_i, W_i, C_i) -> logits (B, H_1, W_1, num_classes)."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Names of the decoder's embeddings, which are like biases: decay would pull all towards the origin."""
        return {name for name, _ in self.named_parameters() if name.endswith(("_embed", "cls_emb"))}

    def forward(self, images: Tensor) -> Tensor | SegmentationOutput:
        """Images (B, in_channels, H, W), RGB in [0, 1], H and W at least 32 -> logits (B, num_classes, H, W).

        In training mode, where there is an auxiliary head: logits and auxiliary logits, both of this shape.
        """
        features = self.backbone(pad(images))
        logits = self.to_pixels(crop(self.decode(features), images), 4, images)
        if not self.training or self.aux_head is None:
            return logits
        aux = self.aux_head(features[2].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return SegmentationOutput(logits, self.to_pixels(aux, 16, images))

    def forward_logits(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits of one cell for 4x4 pixels, (B, num_classes, ceil(H/4), ceil(W/4))."""
        return crop(self.decode(self.backbone(pad(images))), images).permute(0, 3, 1, 2)

    def to_pixels(self, logits: Tensor, stride: int, images: Tensor) -> Tensor:
        """Logits (B, h, w, classes), a cell for stride x stride pixels -> (B, classes, H, W) of the images."""
        height, width = images.shape[2:]
        full = self.resize(logits, (stride * logits.shape[1], stride * logits.shape[2]))
        return full[:, :height, :width].permute(0, 3, 1, 2)


class CSSFormer(SegmentationNetwork):
    """The Cross-Scale Sampling Transformer on any timm backbone.

    Args:
        backbone: a timm model name with feature maps of stride 4, 8, 16 and 32.
        num_classes: how many classes are told apart.
        pretrained: load timm's weights for the backbone from the Hugging Face hub.
        weights: a local weight file for the backbone instead.
        in_channels: of the images, 3 for photographs.
        channels: C, the decoder's width; a multiple of ``heads`` and of 8.
        heads: M, attention heads of MSFE and CSF.
        points: K, sampled points per head and scale.
        cia: CIA on or off.
        fusion: MSFE and CSF, on or off together (the paper's switch). Without all three this is the paper's baseline.
        fusion_stride: of the finest scale in MSFE and CSF, 4 as in the paper, 8, 16 or 32. Finer maps go to the head
            as CIA leaves them: with 8, a quarter of the tokens is left.
        msfe_depth: how many MSFE blocks follow each other.
        csf_depth: how many CSF blocks follow each other.
        ffn_ratio: the hidden width of their feed-forward layers is so many times C.
        aux: the auxiliary head on the stride-16 backbone map, used by the loss.
        dropout: of both heads.
        mean, std: input normalisation, per channel; None takes the weights' own as timm states them.
        backbone_args: passed on to ``timm.create_model``.

    Raises:
        UserError: the backbone or its weights cannot be had.
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        backbone: str = "swin_tiny_patch4_window7_224",
        num_classes: int = 150,
        *,
        pretrained: bool = False,
        weights: str | None = None,
        in_channels: int = 3,
        channels: int = 256,
        heads: int = 8,
        points: int = 16,
        cia: bool = True,
        fusion: bool = True,
        fusion_stride: int = 4,
        msfe_depth: int = 1,
        csf_depth: int = 1,
        ffn_ratio: int = 4,
        aux: bool = True,
        dropout: float = 0.1,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        backbone_args: dict[str, Any] | None = None,
    ) -> None:
        if min(channels, heads, points, ffn_ratio) < 1 or channels % heads or channels % 8:
            raise ValueError(f"channels ({channels}) must be a multiple of heads ({heads}) and of 8, no size below 1")
        if min(msfe_depth, csf_depth) < 0 or fusion_stride not in STRIDES:
            raise ValueError(f"fusion_stride ({fusion_stride}) must be one of {STRIDES}, and no depth below 0")
        body = Backbone(backbone, pretrained, weights, in_channels, mean, std, **backbone_args or {})
        super().__init__(body, num_classes)
        dims = body.channels
        self.lateral = nn.ModuleList(nn.Sequential(GroupNorm(1, c), xavier_init_(nn.Linear(c, channels))) for c in dims)
        self.cia = nn.ModuleList(ChannelInformationAugmentation(channels) for _ in dims if cia)
        self.fusion_strides = STRIDES[STRIDES.index(fusion_stride) :] if fusion else ()
        sampling = channels, heads, points, len(self.fusion_strides), ffn_ratio
        if fusion:
            self.scale_embed = nn.Parameter(torch.empty(len(self.fusion_strides), channels).normal_(std=0.02))
        msfe_depth, csf_depth = (depth if fusion else 0 for depth in (msfe_depth, csf_depth))
        self.msfe = nn.ModuleList(MultiScaleFeatureEnhancement(*sampling) for _ in range(msfe_depth))
        self.csf = nn.ModuleList(CrossScaleFusion(*sampling) for _ in range(csf_depth))
        self.head = SegmentationHead(channels, num_classes, dropout=dropout)
        self.aux_head = AuxiliaryHead(dims[2], channels, num_classes, dropout) if aux else None

    def decode(self, features: list[Tensor]) -> Tensor:
        """Four backbone maps (B, H_i, W_i, C_i) -> logits (B, H_1, W_1, num_classes)."""
        maps = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        if self.cia:
            maps = [cia(feature) for cia, feature in zip(self.cia, maps, strict=True)]
        if self.fusion_strides:
            finer = len(maps) - len(self.fusion_strides)
            maps[finer:] = self.cross_scale_attention(maps[finer:])
        logits: Tensor = self.head(maps)
        return logits

    def cross_scale_attention(self, maps: list[Tensor]) -> list[Tensor]:
        """MSFE, then CSF: Q_i (B, H_i, W_i, C) -> U_i of the same shapes."""
        queries, shapes = flatten(maps)
        reference = reference_points(shapes, queries.device)
        sines = sine_positions(shapes, queries.shape[-1], queries.device)
        pos_embed = torch.cat([sine + scale for sine, scale in zip(sines, self.scale_embed, strict=True)])
        # In the tokens' precision, which autocast may have lowered.
        pos_embed, tokens = pos_embed.to(queries.dtype), queries
        for msfe in self.msfe:
            tokens = msfe(tokens, pos_embed, shapes, reference)
        for csf in self.csf:
            tokens = csf(queries, tokens, pos_embed, shapes, reference)
        return unflatten(tokens, shapes)


def pad(images: Tensor) -> Tensor:
    """Pad (B, C, H, W) below and to the right, with its mirror image, to multiples of 32, which every stride divides.

    To 64 at least: a single cell at stride 32 would leave a backbone's BatchNorm nothing to normalise by.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be floats (B, C, H, W), not {images.dtype} {tuple(images.shape)}")
    height, width = images.shape[2:]
    if height < 32 or width < 32:
        raise ValueError(f"images must be at least 32 pixels high and wide, these are {height} and {width}")
    right, below = (max(-(-side // 32) * 32, 64) - side for side in (width, height))
    # A side of 32 is one pixel too short to be mirrored; its picture's edges are repeated.
    mode = "reflect" if height > 32 and width > 32 else "replicate"
    return F.pad(images, (0, right, 0, below), mode=mode)


def crop(logits: Tensor, images: Tensor) -> Tensor:
    """The cells of logits (B, h, w, classes) at stride 4 that cover the unpadded images."""
    height, width = images.shape[2:]
    return logits[:, : -(-height // 4), : -(-width // 4)]
