"""Depthwise convolutions of a backbone in float32 where a CPU trains in bfloat16."""

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn


def keep_depthwise_float32(backbone: nn.Module) -> None:
    """From now on autocast on CPUs leaves the backbone's larger or strided depthwise convolutions in float32.

    oneDNN differentiates those of bfloat16 in two to ten times float32's time (docs/performance.md#training). Weights,
    their names and what other devices compute stay.
    """
    for layer in backbone.modules():
        if (kind := _IN_FLOAT32.get(type(layer))) is None:
            continue
        assert isinstance(layer, nn.Conv2d)
        if 1 < layer.in_channels == layer.groups and (max(layer.kernel_size) > 3 or max(layer.stride) > 1):
            layer.__class__ = kind


class _InFloat32(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            output: Tensor = super().forward(input)
            return output
        with torch.autocast("cpu", enabled=False):
            output = super().forward(input.float())
        return output


class _Conv2d(_InFloat32, nn.Conv2d):
    pass


class _Conv2dSame(_InFloat32, Conv2dSame):
    """timm's, which pads by itself as TensorFlow does."""


_IN_FLOAT32: dict[type[nn.Module], type[nn.Conv2d]] = {nn.Conv2d: _Conv2d, Conv2dSame: _Conv2dSame}
