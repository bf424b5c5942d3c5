"""The feature pyramid (paper section 3.1): any timm backbone with strides 4, 8, 16 and 32."""

import difflib
import logging
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Conv2dSame, use_fused_attn
from timm.models import load_state_dict
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from cssformer.accelerate.linear import use_onednn
from cssformer.utils.eager import values_only
from cssformer.utils.errors import UserError

STRIDES = (4, 8, 16, 32)


class Backbone(nn.Module):
    """Images to four feature maps, channels last.

    ``channels`` holds the four maps' widths, ``mean`` and ``std`` the normalisation in use.

    Args:
        name: a timm model name, for example ``swin_tiny_patch4_window7_224``.
        pretrained: load timm's own weights (from the Hugging Face hub).
        weights: a local weight file (``.safetensors``, or a ``.pth`` holding plain tensors) instead of the hub's.
        mean, std: what the weights expect their input, RGB in [0, 1], to be normalised with; None takes timm's values.
        **arguments: passed on to ``timm.create_model``.

    Raises:
        UserError: no such model, no such pyramid, or weights that cannot be had or do not fit.
    """

    offset: Tensor
    scale: Tensor

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        weights: str | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self.pyramid = _create(name, pretrained, weights, arguments)
        use_onednn(self.pyramid)
        for part in self.pyramid.modules():
            if type(part) is SwinTransformerBlock:
                part.__class__ = _FullyMasked
            elif type(part) is WindowAttention:
                # As timm's other attentions: without gradients it takes a third of the time.
                part.fused_attn = use_fused_attn()  # type: ignore[misc]  # final for TorchScript only
            elif isinstance(part, nn.Conv2d) and part.groups == part.in_channels and max(part.stride) > 1:
                part.__class__ = _DEPTHWISE.get(type(part), type(part))
        # On a CPU depthwise convolutions take half as long.
        self.pyramid.to(memory_format=torch.channels_last)
        info, defaults = _described(self.pyramid)
        self.channels: list[int] = info.channels()
        self.channels_last = str(getattr(self.pyramid, "output_fmt", "NCHW")).endswith("NHWC")
        self.mean = tuple(mean or defaults["mean"])
        self.std = tuple(std or defaults["std"])
        self.register_buffer("offset", torch.tensor(self.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(self.std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of 32 -> maps (B, H/s, W/s, channels[i]), s = 4 to 32."""
        normalised = ((images - self.offset) * self.scale).contiguous(memory_format=torch.channels_last)
        features = self.pyramid(normalised)
        return features if self.channels_last else [feature.permute(0, 2, 3, 1) for feature in features]


class _FullyMasked(SwinTransformerBlock):
    """timm's block, in which what a token may not see weighs exactly nothing.

    timm adds -100 before the softmax. What is left, 1e-44, is a denormal number, which Intel's CPUs multiply slowly
    (docs/performance.md).
    """

    def get_attn_mask(self, *args: Any, **kwargs: Any) -> Tensor | None:
        mask: Tensor | None = super().get_attn_mask(*args, **kwargs)
        return None if mask is None else 100 * mask


class _Depthwise(nn.Conv2d):
    """A depthwise convolution with strides that a CPU trains in float32 under autocast too.

    oneDNN differentiates it many times slower in bfloat16 (docs/performance.md).
    """

    def forward(self, input: Tensor) -> Tensor:
        lowered = torch.is_autocast_enabled("cpu") and input.device.type == "cpu" and not values_only()
        if not lowered or self.weight.dtype != torch.float32:
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float()).to(torch.get_autocast_dtype("cpu"))


class _DepthwiseSame(_Depthwise, Conv2dSame):
    """The same with TensorFlow's padding."""


_DEPTHWISE: dict[type[nn.Module], type[_Depthwise]] = {nn.Conv2d: _Depthwise, Conv2dSame: _DepthwiseSame}


def _create(name: str, pretrained: bool, weights: str | None, arguments: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), cutoff=0.0)
        raise UserError(f"timm has no backbone named {name!r}; names alike: {', '.join(near)}.")
    if "swin" in name:
        arguments = {"strict_img_size": False, **arguments}
    # Only the hub's and the file's weights are of use here: timm's own words about dropped classifiers are noise.
    logging.getLogger("timm.models._builder").setLevel(logging.ERROR)
    try:
        reductions = _described(timm.create_model(name, features_only=True, **arguments))[0].reduction()
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UserError(f"Backbone {name} cannot be built as a feature pyramid with {arguments}: {error}.") from error
    if not set(STRIDES) <= set(reductions):
        raise UserError(
            f"Backbone {name} has strides {reductions}; CSSFormer needs 4, 8, 16 and 32: choose another one."
        )
    # Of several maps at one stride the last is the deepest.
    indices = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES)
    arguments = {"out_indices": indices, **arguments, "features_only": True}
    if weights is None:
        return _create_from_hub(name, pretrained, arguments)
    return _create_from_file(name, Path(weights), arguments)


def _described(pyramid: Any) -> tuple[Any, dict[str, Any]]:
    """What timm says of a feature extractor: its maps, and the defaults its weights were trained with."""
    return pyramid.feature_info, pyramid.pretrained_cfg


def _create_from_hub(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"The pretrained weights of {name} could not be had ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); give a local file as weights, or set pretrained to false."
        ) from error


def _create_from_file(name: str, path: Path, arguments: dict[str, Any]) -> nn.Module:
    if not path.is_file():
        raise UserError(f"There is no weight file {path} for backbone {name}.")
    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:
        # The loaders' own words advise to load pickles without a check.
        raise UserError(
            f"The weight file {path} cannot be read: it is damaged, or neither .safetensors nor a file of torch with "
            "nothing but tensors."
        ) from error
    try:
        known = {key.replace(".", "_") for key in state}
        overlay = {"state_dict": state}
        pyramid = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"The weight file {path} does not fit backbone {name}: {message[:300]}") from error
    # timm loads some feature extractors without asking that any name agrees.
    if known.isdisjoint(key.replace(".", "_") for key in pyramid.state_dict()):
        raise UserError(f"The weight file {path} holds no weight of backbone {name}.")
    return pyramid
