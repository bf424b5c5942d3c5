"""The feature pyramid (paper section 3.1): any timm backbone with strides 4, 8, 16 and 32."""

from typing import Any

import torch
from torch import Tensor, nn

from cssformer.utils.errors import UserError
from cssformer.weights.backbone import create_body

STRIDES = (4, 8, 16, 32)


class Backbone(nn.Module):
    """Images to four feature maps, channels last.

    ``channels`` holds the four maps' widths, ``mean`` and ``std`` the normalisation that the network was built with.

    Args:
        name: a timm model name, for example ``swin_tiny_patch4_window7_224``.
        pretrained: load timm's own weights (from the Hugging Face hub).
        weights: a local weight file (``.safetensors``, or a ``.pth`` holding plain tensors) instead of the hub's.
        mean, std: what the weights expect their input, RGB in [0, 1], to be normalised with; None takes timm's values.
        **arguments: passed on to ``timm.create_model``.

    Raises:
        UserError: no such model, no such pyramid, or weights that cannot be had or do not fit.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

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
        body: Any = create_body(name, pretrained, weights, **arguments)
        reductions = body.feature_info.reduction()
        if not set(STRIDES) <= set(reductions):
            raise UserError(
                f"Backbone {name} has strides {reductions}; CSSFormer needs 4, 8, 16 and 32: choose another one."
            )
        self.body = body
        # Of several maps at one stride the last is the deepest.
        self.levels = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES)
        self.channels = [body.feature_info.channels()[level] for level in self.levels]
        self.channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
        self.mean = tuple(mean or body.pretrained_cfg["mean"])
        self.std = tuple(std or body.pretrained_cfg["std"])
        self.register_buffer("pixel_mean", torch.tensor(self.mean).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(self.std).view(3, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) RGB in [0, 1], H and W multiples of 32 -> maps (B, H/s, W/s, channels[i]), s = 4 to 32."""
        normalised = (images - self.pixel_mean) / self.pixel_std
        try:
            features = self.body(normalised.contiguous(memory_format=torch.channels_last))
        except AssertionError as error:
            # Of timm's, whose models of one size tell another one so.
            height, width = images.shape[2:]
            raise UserError(f"The backbone does not take pictures padded to {height}x{width}: {error}.") from error
        maps = [features[level] for level in self.levels]
        return maps if self.channels_last else [feature.permute(0, 2, 3, 1) for feature in maps]
