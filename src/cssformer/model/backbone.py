"""The feature pyramid (paper section 3.1): any timm backbone with strides 4, 8, 16 and 32, or a plain ViT."""

from typing import Any

import torch
from torch import Tensor, nn

from cssformer.backbones import create_body
from cssformer.utils.errors import UserError

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
            raise UserError(f"Backbone {name} has strides {reductions}; CSSFormer needs 4, 8, 16 and 32: take another.")
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
        normalised, (height, width) = (images - self.pixel_mean) / self.pixel_std, images.shape[2:]
        try:
            features = self.body(normalised.contiguous(memory_format=torch.channels_last))
            maps = [features[i] if self.channels_last else features[i].permute(0, 2, 3, 1) for i in self.levels]
            assert all((s * m.shape[1], s * m.shape[2]) == (height, width) for s, m in zip(STRIDES, maps, strict=True))
        except (AssertionError, RuntimeError) as error:
            fixed = isinstance(error, AssertionError) or self.body.pretrained_cfg.get("fixed_input_size")
            if not fixed or isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(
                f"The backbone takes no pictures padded to {height}x{width} ({error or 'maps'})."
            ) from error
        return maps
