"""Depthwise convolutions of a backbone in float32 where a CPU trains in bfloat16."""

import torch
from torch import Tensor, nn


def keep_depthwise_float32(backbone: nn.Module) -> None:
    """From now on autocast on CPUs leaves the backbone's larger or strided depthwise convolutions in float32.

    oneDNN differentiates those of bfloat16 in two to ten times float32's time (docs/performance.md#training). Weights,
    their names and what other devices compute stay.
    """
    for layer in backbone.modules():
        if not (isinstance(layer, nn.Conv2d) and 1 < layer.in_channels == layer.groups):
            continue
        if max(layer.kernel_size) > 3 or max(layer.stride) > 1:
            # Of timm's kinds too, which pad by themselves.
            layer.__class__ = type("InFloat32", (_InFloat32, type(layer)), {})


class _InFloat32(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            output: Tensor = super().forward(input)
            return output
        with torch.autocast("cpu", enabled=False):
            output = super().forward(input.float())
        return output
