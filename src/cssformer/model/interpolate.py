"""Bilinear up-sampling, of maps inside the decoder and of class scores to the picture."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cssformer.utils.eager import values_only


def resize(feature: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """(B, h, w, C) -> (B, *size, C), bilinear."""
    on_cpu = feature.device.type == "cpu" and feature.dtype in (torch.float32, torch.bfloat16)
    if values_only() and on_cpu and feature.numel():
        from cssformer.accelerate.enlarging import enlarge

        return enlarge(feature, *size)
    return F.interpolate(feature.permute(0, 3, 1, 2), list(size), mode="bilinear").permute(0, 2, 3, 1)


def upsample(logits: Tensor, stride: int, size: torch.Size | tuple[int, int]) -> Tensor:
    """Logits (B, classes, h, w), one cell for stride x stride pixels -> (B, classes, *size): bilinear, then cropped."""
    height, width = (stride * side for side in logits.shape[2:])
    if logits.device.type == "cpu" and values_only():
        full = resize(logits.permute(0, 2, 3, 1), (height, width)).permute(0, 3, 1, 2)
    else:
        # Several times faster than channels last where a loss follows.
        full = F.interpolate(logits.contiguous(), (height, width), mode="bilinear")
    return full[..., : size[0], : size[1]]
