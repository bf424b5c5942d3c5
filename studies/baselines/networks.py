"""Other decoders on the product's backbone: same pyramid, auxiliary head, loss and data.

They are other libraries' own code, with the width, the dropout and the first weights these give them; three that no
library offers have a file each beside this one. All their layers learn at the decoder's rate; CSSFormer's sampling
offsets at a tenth of it, as in Deformable DETR, which makes no difference to its score (docs/experiments.md). What the
pyramid decides is said where the decoder is built. The last up-sampling, from stride 4 to the picture, is the
product's for all of them, in training and in scoring.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cssformer.model import SegmentationNetwork
from cssformer.model.backbone import Backbone
from cssformer.model.head import AuxiliaryHead
from cssformer.utils.errors import UserError
from studies.baselines.fapn import AlignedPyramid
from studies.baselines.segmenter import MaskTransformer
from studies.baselines.setr_mla import MultiLevelAggregation

if TYPE_CHECKING:
    from cssformer.training.datasets import Dataset
    from cssformer.training.recipe import Recipe


class BaselineNetwork(SegmentationNetwork):
    """Another decoder in CSSFormer's place.

    Args:
        decoder: one of :data:`DECODERS`.
        channels, aux, dropout: of the auxiliary head, as in ``CSSFormer``; the decoder has its own.
        others: as in ``CSSFormer``.

    Raises:
        UserError: the library that holds the decoder is not installed, or the backbone cannot be had.
    """

    def __init__(
        self,
        decoder: str,
        backbone: str,
        num_classes: int,
        *,
        pretrained: bool = False,
        weights: str | None = None,
        channels: int = 256,
        aux: bool = True,
        dropout: float = 0.1,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        backbone_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(Backbone(backbone, pretrained, weights, 3, mean, std, **backbone_args or {}), num_classes)
        try:
            self.decoder = DECODERS[decoder](self.backbone.channels, num_classes)
        except ImportError as error:
            raise UserError(
                f"The decoder {decoder} needs a package that is not installed ({error.name}); install cssformer[study]."
            ) from error
        self.aux_head = AuxiliaryHead(self.backbone.channels[2], channels, num_classes, dropout) if aux else None

    def decode(self, features: list[Tensor]) -> Tensor:
        """Four backbone maps (B, H_i, W_i, C_i) -> logits (B, H_1, W_1, num_classes).

        A decoder whose logits are coarser than stride 4 gets them up-sampled, bilinear.
        """
        logits = self.decoder([feature.permute(0, 3, 1, 2) for feature in features])
        size = list(features[0].shape[1:3])
        if list(logits.shape[2:]) != size:
            logits = F.interpolate(logits, size, mode="bilinear")
        return logits.permute(0, 2, 3, 1)


class PyramidDecoder(nn.Module):
    """A decoder of segmentation_models_pytorch with its classifier, as that library's models put them together.

    Args:
        decoder: takes the library's list of six maps, of which those of stride 1 and 2 are not read.
        channels: of its output.
        num_classes: of the logits.
        kernel: side of the classifier's convolution.
        deepest: stride at which the decoder expects the deepest map; the pyramid's, of stride 32, is up-sampled to it.
        initialize: give it the library's own first weights, as most of its models do; else it keeps PyTorch's.
    """

    def __init__(
        self,
        decoder: nn.Module,
        channels: int,
        num_classes: int,
        kernel: int = 1,
        deepest: int = 32,
        initialize: bool = True,
    ) -> None:
        super().__init__()
        from segmentation_models_pytorch.base import SegmentationHead
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head

        self.decoder = decoder
        self.head = SegmentationHead(channels, num_classes, kernel_size=kernel)
        self.enlarge = 32 // deepest
        if initialize:
            initialize_decoder(self.decoder)
            initialize_head(self.head)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i) of stride 4, 8, 16 and 32 -> logits."""
        *finer, deepest = features
        if self.enlarge > 1:
            deepest = F.interpolate(deepest, scale_factor=self.enlarge, mode="bilinear")
        batch, _, height, width = finer[0].shape
        unread = [finer[0].new_empty(batch, 0, height * scale, width * scale) for scale in (4, 2)]
        return self.head(self.decoder([*unread, *finer, deepest]))


def fpn(channels: list[int], num_classes: int) -> nn.Module:
    """Semantic FPN (Kirillov et al. 2019): width 256, then 128; logits at stride 4."""
    from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder

    decoder = FPNDecoder([3, 0, *channels])
    return PyramidDecoder(decoder, decoder.out_channels, num_classes)


def pspnet(channels: list[int], num_classes: int) -> nn.Module:
    """PSPNet (Zhao et al. 2017), width 512, on the deepest map.

    The original looks at a dilated backbone of stride 8; here the pyramid's deepest map is up-sampled to stride 8, and
    that is where the logits lie.
    """
    from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder

    return PyramidDecoder(PSPDecoder([3, 0, *channels]), 512, num_classes, kernel=3, deepest=8)


def deeplabv3plus(channels: list[int], num_classes: int) -> nn.Module:
    """DeepLabV3+ (Chen et al. 2018), width 256, separable ASPP with rates 6, 12 and 18; logits at stride 4.

    The original looks at a dilated backbone of stride 16; here the pyramid's deepest map is up-sampled to stride 16.
    The rates are the original's for that stride; the library's 12, 24 and 36 are those for stride 8.
    """
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder

    decoder = DeepLabV3PlusDecoder(
        [3, 0, *channels],
        encoder_depth=5,
        out_channels=256,
        atrous_rates=(6, 12, 18),
        output_stride=16,
        aspp_separable=True,
        aspp_dropout=0.5,
    )
    return PyramidDecoder(decoder, 256, num_classes, deepest=16, initialize=False)


def upernet(channels: list[int], num_classes: int) -> nn.Module:
    """UPerNet (Xiao et al. 2018) as segmentation_models_pytorch has it, width 256; logits at stride 4."""
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

    return PyramidDecoder(UPerNetDecoder([3, 0, *channels]), 256, num_classes)


def segformer(channels: list[int], num_classes: int) -> nn.Module:
    """The all-MLP decoder of SegFormer (Xie et al. 2021), width 256; logits at stride 4."""
    from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder

    return PyramidDecoder(SegformerDecoder([3, 0, *channels]), 256, num_classes)


def upernet512(channels: list[int], num_classes: int) -> nn.Module:
    """UPerNet as transformers has it, after mmsegmentation: width 512; logits at stride 4."""
    from transformers import UperNetConfig, UperNetPreTrainedModel
    from transformers.models.upernet.modeling_upernet import UperNetHead

    config = UperNetConfig()
    config.num_labels = num_classes
    return _with_first_weights(UperNetHead(config, channels), UperNetPreTrainedModel(config))


def _with_first_weights(part: nn.Module, model: Any) -> nn.Module:
    """A part of a model of transformers with the weights that the model would give it at first."""
    # Not by a class derived from the model's, which transformers initialises as foreign code: less.
    model.part = part
    model.post_init()
    return part


def dpt(channels: list[int], num_classes: int) -> nn.Module:
    """DPT (Ranftl et al. 2021), fusion width 256; its logits, of stride 2, are averaged to stride 4.

    Made for the maps of a plain ViT, which it brings to strides 4 to 32; a pyramid's have these strides already, and
    there is no token of class to read out.
    """
    from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
    from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = DPTDecoder(
                channels, encoder_output_strides=(4, 8, 16, 32), encoder_has_prefix_tokens=False, readout="ignore"
            )
            self.head = DPTSegmentationHead(256, num_classes, upsampling=1)
            initialize_decoder(self.decoder)
            initialize_head(self.head)

        def forward(self, features: list[Tensor]) -> Tensor:
            logits: Tensor = self.head(self.decoder(features, [None] * len(features)))
            return logits

    return Decoder()


def mask2former(channels: list[int], num_classes: int) -> nn.Module:
    """The pixel decoder of Mask2Former (Cheng et al. 2022), width 256; logits at stride 4.

    Six layers of deformable attention over strides 8, 16 and 32, then a top-down step to stride 4. A 1x1 convolution
    classifies the pixels, as in all the other networks; the mask queries, which need a loss of their own, are left out.
    """
    from transformers import Mask2FormerConfig, Mask2FormerPreTrainedModel
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = Mask2FormerConfig()
            decoder = Mask2FormerPixelDecoder(config, channels)
            self.decoder = _with_first_weights(decoder, Mask2FormerPreTrainedModel(config))
            self.classifier = nn.Conv2d(config.mask_feature_size, num_classes, 1)

        def forward(self, features: list[Tensor]) -> Tensor:
            # In float32, as its authors have it: places in bfloat16 would be off by up to a quarter of a cell.
            # A copy without data, by which products are counted, knows no mixed precision.
            device = "cpu" if features[0].is_meta else features[0].device.type
            with torch.autocast(device, enabled=False):
                mask_features = self.decoder([feature.float() for feature in features]).mask_features
            logits: Tensor = self.classifier(mask_features)
            return logits

    return Decoder()


def fapn(channels: list[int], num_classes: int) -> nn.Module:
    """FaPN (Huang et al. 2021), width 256, under segmentation_models_pytorch's head of Semantic FPN."""
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
    from segmentation_models_pytorch.decoders.fpn.decoder import MergeBlock, SegmentationBlock

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(SegmentationBlock(256, 128, n_upsamples=count) for count in range(4))
            self.merge = MergeBlock("add")
            self.dropout = nn.Dropout2d(0.2)
            self.head = SegmentationHead(128, num_classes, kernel_size=1)
            initialize_decoder(self.blocks)
            initialize_head(self.head)

        def forward(self, maps: list[Tensor]) -> Tensor:
            merged = self.merge([block(feature) for block, feature in zip(self.blocks, maps, strict=True)])
            logits: Tensor = self.head(self.dropout(merged))
            return logits

    return AlignedPyramid(channels, Head())


def segmenter(channels: list[int], num_classes: int) -> nn.Module:
    """Segmenter's mask transformer (Strudel et al. 2021), width 256, two layers; logits at stride 16."""
    return MaskTransformer(channels[-1], num_classes)


DECODERS: dict[str, Callable[[list[int], int], nn.Module]] = {
    "fpn": fpn,
    "pspnet": pspnet,
    "deeplabv3plus": deeplabv3plus,
    "upernet": upernet,
    "segformer": segformer,
    "upernet512": upernet512,
    "dpt": dpt,
    "mask2former": mask2former,
    "setr_mla": MultiLevelAggregation,
    "fapn": fapn,
    "segmenter": segmenter,
}
"""By name, what builds the decoder from the widths of the four maps and the number of classes."""


def build_baseline(decoder: str, recipe: "Recipe", data: "Dataset") -> BaselineNetwork:
    """The recipe's network with another decoder, for the classes of the data, initialised from the recipe's seed.

    Raises:
        UserError: see :class:`BaselineNetwork`.
    """
    torch.manual_seed(recipe.seed)
    shared = ("backbone", "pretrained", "weights", "channels", "aux", "dropout", "mean", "std", "backbone_args")
    return BaselineNetwork(
        decoder,
        num_classes=len(data.info.classes),
        **{name: getattr(recipe.model, name) for name in shared},
    )
