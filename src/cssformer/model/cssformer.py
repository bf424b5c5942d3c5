"""CSSFormer: the whole network, from images to class scores (paper section 3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cssformer.accelerate.linear import Linear, xavier_init_
from cssformer.model import hub as store
from cssformer.model.backbone import STRIDES, Backbone
from cssformer.model.cia import ChannelInformationAugmentation
from cssformer.model.csf import CrossScaleFusion
from cssformer.model.head import AuxiliaryHead, SegmentationHead
from cssformer.model.interpolate import upsample
from cssformer.model.msfe import MultiScaleFeatureEnhancement
from cssformer.model.norm import MapNorm
from cssformer.model.positions import flatten, reference_points, sine_positions, unflatten

if TYPE_CHECKING:
    from typing_extensions import Self


class SegmentationNetwork(nn.Module):
    """A backbone, a decoder and an auxiliary head: what training, scoring and saving ask of a network.

    A subclass gives :meth:`decode`, sets ``aux_head``, and adds to ``config`` until that holds its arguments.
    """

    aux_head: AuxiliaryHead | None

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        pretrained: bool,
        weights: str | None,
        mean: tuple[float, float, float] | None,
        std: tuple[float, float, float] | None,
        inference: dict[str, Any] | None,
        classes: Sequence[str] | None,
        colours: Sequence[tuple[int, int, int]] | None,
        backbone_args: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        for name, described in (("classes", classes), ("colours", colours)):
            if described is not None and len(described) != num_classes:
                raise ValueError(f"{len(described)} {name} are given for {num_classes} classes")
        self.backbone = Backbone(backbone, pretrained, weights, mean, std, **backbone_args or {})
        self.num_classes = num_classes
        self.inference = inference or {}
        self.classes = None if classes is None else tuple(classes)
        self.colours = None if colours is None else tuple((r, g, b) for r, g, b in colours)
        self.config: dict[str, Any] = {
            "backbone": backbone,
            "num_classes": num_classes,
            "mean": list(self.backbone.mean),
            "std": list(self.backbone.std),
            "inference": self.inference,
            "classes": None if self.classes is None else list(self.classes),
            "colours": None if self.colours is None else [list(colour) for colour in self.colours],
            "backbone_args": backbone_args or {},
        }

    def decode(self, features: list[Tensor]) -> Tensor:
        """Four backbone maps (B, H_i, W_i, C_i) -> logits (B, num_classes, H_1, W_1)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """RGB images (B, 3, H, W) in [0, 1], H and W at least 32 -> logits (B, num_classes, H, W)."""
        return upsample(self.coarse(images), 4, images.shape[2:])

    def coarse(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits at stride 4, (B, num_classes, ceil(H/4), ceil(W/4))."""
        return crop(self.decode(self.backbone(pad(images))), images)

    def coarse_and_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the loss needs: :meth:`coarse`, and the auxiliary head's logits at stride 16 of the padded images."""
        features = self.backbone(pad(images))
        auxiliary = None if self.aux_head is None else self.aux_head(features[2].permute(0, 3, 1, 2))
        return crop(self.decode(features), images), auxiliary

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``, made if needed.

        Raises:
            UserError: the folder cannot be written.
        """
        store.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, source: str | Path, **hub_args: Any) -> "Self":
        """A saved network, in eval mode, from a model or run folder or from a model id of the Hugging Face hub.

        Args:
            source: what :meth:`save_pretrained` or :meth:`push_to_hub` wrote.
            **hub_args: passed on to ``huggingface_hub.hf_hub_download`` (``revision``, ``token``, ...).

        Raises:
            UserError: nothing there, or not such a network.
        """
        config, state = store.load(source, **hub_args)
        return store.build(cls, config, state, source)


class CSSFormer(SegmentationNetwork):
    """The Cross-Scale Sampling Transformer on any timm backbone.

    Args:
        backbone: a timm model name with feature maps of stride 4, 8, 16 and 32.
        num_classes: how many classes are told apart.
        pretrained: load timm's weights for the backbone from the Hugging Face hub.
        weights: a local weight file for the backbone instead.
        channels: C, the decoder's width; a multiple of ``heads`` and of 8.
        heads: M, attention heads of MSFE and CSF.
        points: K, sampled places per head and scale.
        cia: CIA on or off.
        fusion: MSFE and CSF, on or off together (the paper's switch). Without both this is the paper's baseline.
        fusion_stride: of the finest scale in MSFE and CSF, 4 as in the paper, 8, 16 or 32. Finer maps go to the head
            as CIA leaves them: with 8, a quarter of the tokens is left.
        msfe_depth: how many MSFE blocks follow each other.
        csf_depth: how many CSF blocks follow each other.
        aux: the auxiliary head on the stride-16 backbone map, used by the loss.
        dropout: of both heads.
        mean, std: input normalisation; None takes the weights' own as timm states them.
        inference: how pictures are to be predicted, options of :func:`cssformer.inference.predict`; kept with the
            model for those who predict with it.
        classes: class names; colours: an RGB triple for each. Kept with the model for those who show its output.
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
        channels: int = 256,
        heads: int = 8,
        points: int = 16,
        cia: bool = True,
        fusion: bool = True,
        fusion_stride: int = 4,
        msfe_depth: int = 1,
        csf_depth: int = 1,
        aux: bool = True,
        dropout: float = 0.1,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        inference: dict[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        colours: Sequence[tuple[int, int, int]] | None = None,
        backbone_args: dict[str, Any] | None = None,
    ) -> None:
        if channels % heads or channels % 8:
            raise ValueError(f"channels ({channels}) must be a multiple of heads ({heads}) and of 8")
        if fusion_stride not in STRIDES:
            raise ValueError(f"fusion_stride ({fusion_stride}) must be one of {STRIDES}")
        super().__init__(
            backbone,
            num_classes,
            pretrained=pretrained,
            weights=weights,
            mean=mean,
            std=std,
            inference=inference,
            classes=classes,
            colours=colours,
            backbone_args=backbone_args,
        )
        self.config |= {
            "channels": channels,
            "heads": heads,
            "points": points,
            "cia": cia,
            "fusion": fusion,
            "fusion_stride": fusion_stride,
            "msfe_depth": msfe_depth,
            "csf_depth": csf_depth,
            "aux": aux,
            "dropout": dropout,
        }
        in_channels = self.backbone.channels
        self.lateral = nn.ModuleList(
            nn.Sequential(MapNorm(1, c), xavier_init_(Linear(c, channels))) for c in in_channels
        )
        self.cia = nn.ModuleList(ChannelInformationAugmentation(channels) for _ in in_channels) if cia else None
        self.msfe: nn.ModuleList | None = None
        self.csf: nn.ModuleList | None = None
        if fusion:
            levels = len(self.fusion_strides)
            self.scale_embedding = nn.Parameter(torch.empty(levels, channels).normal_(std=0.02))
            self.msfe = nn.ModuleList(
                MultiScaleFeatureEnhancement(channels, heads, points, levels) for _ in range(msfe_depth)
            )
            self.csf = nn.ModuleList(CrossScaleFusion(channels, heads, points, levels) for _ in range(csf_depth))
        self.head = SegmentationHead(channels, num_classes, dropout=dropout)
        self.aux_head = AuxiliaryHead(in_channels[2], channels, num_classes, dropout) if aux else None

    @property
    def fusion_strides(self) -> tuple[int, ...]:
        """Of the scales in MSFE and CSF."""
        return STRIDES[STRIDES.index(self.config["fusion_stride"]) :]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Four backbone maps (B, H_i, W_i, C_i) -> logits (B, num_classes, H_1, W_1)."""
        maps = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        if self.cia is not None:
            maps = [cia(feature) for cia, feature in zip(self.cia, maps, strict=True)]
        if self.msfe is not None and self.csf is not None:
            finer = len(maps) - len(self.fusion_strides)
            maps[finer:] = self.look_across_scales(maps[finer:], self.msfe, self.csf)
        return self.head(maps)

    def look_across_scales(self, maps: list[Tensor], enhancement: nn.ModuleList, fusion: nn.ModuleList) -> list[Tensor]:
        """MSFE, then CSF: Q_i (B, H_i, W_i, C) -> U_i of the same shapes."""
        queries, shapes = flatten(maps)
        reference = reference_points(shapes, queries.device)
        positions = sine_positions(shapes, queries.shape[-1], queries.device)
        places = torch.cat([position + scale for position, scale in zip(positions, self.scale_embedding, strict=True)])
        # In the tokens' precision, which autocast may have lowered.
        places, features = places.to(queries.dtype), queries
        for enhance in enhancement:
            features = enhance(features, places, shapes, reference)
        for fuse in fusion:
            features = fuse(queries, features, places, shapes, reference)
        return unflatten(features, shapes)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face hub; returns the page's address."""
        return store.push(self, repo_id, private, token)


def pad(images: Tensor) -> Tensor:
    """Pad (B, 3, H, W) below and to the right, with its mirror image, to multiples of 32, which every stride divides.

    To 64 at least: a single cell at stride 32 would leave a backbone's BatchNorm nothing to normalise by.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"images must be floats (B, 3, H, W) in [0, 1], not {images.dtype} {tuple(images.shape)}")
    height, width = images.shape[2:]
    if height < 32 or width < 32:
        raise ValueError(f"images must be at least 32 pixels high and wide, these are {height} and {width}")
    right, below = (max(-side % 32, 64 - side) for side in (width, height))
    # A side of 32 is one pixel too short to be mirrored; its picture's edges are repeated.
    mode = "reflect" if min(height, width) > 32 else "replicate"
    return F.pad(images, (0, right, 0, below), mode=mode)


def crop(coarse: Tensor, images: Tensor) -> Tensor:
    """The cells of coarse logits at stride 4 that cover the unpadded images."""
    height, width = images.shape[2:]
    return coarse[..., : -(-height // 4), : -(-width // 4)]
