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
        in_channels: of the images; timm's pretrained first convolution, for RGB, is repeated or summed for others.
        mean, std: of each channel, by which the input is normalised; None takes timm's for RGB, again and again.
        **arguments: passed on to ``timm.create_model``.

    Raises:
        UserError: no such model, no such pyramid, or weights that cannot be had or do not fit.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        weights: str | None = None,
        in_channels: int = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        body: Any = create_body(name, pretrained, weights, in_chans=in_channels, **arguments)
        reductions = body.feature_info.reduction()
        if not set(STRIDES) <= set(reductions):
            raise UserError(f"Backbone {name} has strides {reductions}; CSSFormer needs 4, 8, 16 and 32: take another.")
        self.body = body
        # Of several maps at one stride the last is the deepest.
        self.levels = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES)
        self.channels = [body.feature_info.channels()[level] for level in self.levels]
        self.channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
        self.mean = tuple(mean or (tuple(body.pretrained_cfg["mean"]) * in_channels)[:in_channels])
        self.std = tuple(std or (tuple(body.pretrained_cfg["std"]) * in_channels)[:in_channels])
        self.pixel_mean = nn.Buffer(torch.tensor(self.mean).view(in_channels, 1, 1))
        self.pixel_std = nn.Buffer(torch.tensor(self.std).view(in_channels, 1, 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W), H and W multiples of 32 -> maps (B, H/s, W/s, channels[i]), s = 4 to 32."""
        if images.shape[1] != len(self.mean):
            raise ValueError(f"images must have {len(self.mean)} channels, not the shape {tuple(images.shape)}")
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
