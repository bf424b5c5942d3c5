"""Labels of whole pictures: in one look, in overlapping windows, at several scales, with mirror images."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cssformer.errors import UserError
from cssformer.evaluation.upsampling import STRIDE, Segmentation, View, segment

Mode = Literal["whole", "slide"]

SMALLEST = 32
"""Height and width in pixels that the network needs; smaller pictures get their border repeated."""

WINDOWS_AT_ONCE = 4
"""Windows of a sliding row that go through the network as one batch."""


def predict(
    model: nn.Module,
    image: Tensor,
    *,
    mode: Mode = "whole",
    crop: int | tuple[int, int] = 512,
    stride: int | tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    short_side: int | None = None,
    confidence: bool = False,
    precision: torch.dtype = torch.float32,
) -> Segmentation:
    """Label every pixel of a picture, or of pictures of one size, at the pictures' own size.

    Whole-picture inference runs the network once per view. Sliding-window inference runs it on overlapping windows and
    averages the logits where windows overlap. It keeps only the class scores, at stride 4, of the windows' current row,
    so its memory grows with the picture's width and not with its height; the picture itself may stay in main memory as
    uint8, only windows go to the model's device. Windows begin at multiples of 4 pixels, so that their cells coincide.
    Several views (scales, mirror images) are averaged as probabilities.

    Args:
        model: anything with ``coarse(images) -> (B, C, ceil(H / 4), ceil(W / 4))`` logits, such as ``CSSFormer``.
        image: RGB (3, H, W) or (B, 3, H, W), uint8 or floats from 0 to 1, on any device.
        mode: "whole" or "slide".
        crop: height and width of the window in pixels (one number: square).
        stride: from window to window, in pixels; 2/3 of the crop if None. Rounded down to a multiple of 4.
        scales: factors of the picture's size, one view each.
        flip: add the mirror image of each view.
        short_side: first resize so that the shorter side has this many pixels.
        confidence: return the probability of the class chosen too.
        precision: ``torch.bfloat16`` or ``torch.float16`` run the network under autocast.

    Returns:
        labels (H, W) or (B, H, W), and confidence of the same shape or None; on the model's device.

    Raises:
        UserError: the stride is not between 4 and the crop, or a scale or the short side is not positive.
        ValueError: the image is not RGB.
    """
    if image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise ValueError(f"image must be (3, H, W) or (B, 3, H, W), not {tuple(image.shape)}.")
    if not scales or min(scales) <= 0:
        raise UserError(f"The scales must be one or more positive numbers, not {list(scales)}.")
    if short_side is not None and short_side < 1:
        raise UserError(f"The short side must have at least one pixel, not {short_side}.")
    window = _pair(crop)
    step = (window[0] * 2 // 3, window[1] * 2 // 3) if stride is None else _pair(stride)
    if mode == "slide" and not all(STRIDE <= s <= c for s, c in zip(step, window, strict=True)):
        raise UserError(f"The stride {step} must lie between {STRIDE} and the crop {window}, else windows leave gaps.")
    height, width = image.shape[-2:]
    fit = short_side / min(height, width) if short_side else 1.0
    network = _Network(model, precision)
    trained = model.training
    model.eval()
    try:
        with torch.inference_mode():
            pictures = image if image.ndim == 4 else image[None]
            if mode == "whole":
                pictures = network.load(pictures)
            views = []
            for scale in scales:
                scaled = _resize(pictures, round(height * scale * fit), round(width * scale * fit))
                size = (scaled.shape[2], scaled.shape[3])
                for mirrored in (False, True) if flip else (False,):
                    seen = scaled.flip(3) if mirrored else scaled
                    blocks = iter([network(seen)]) if mode == "whole" else _slide(network, seen, window, step)
                    views.append(View(blocks, size, mirrored))
            result = segment(views, (height, width), confidence)
    finally:
        model.train(trained)
    if image.ndim == 4:
        return result
    return Segmentation(result.labels[0], None if result.confidence is None else result.confidence[0])


def window_offsets(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis: multiples of 4, the last one reaching the end (by up to 3 pixels too far)."""
    last = max(0, -(-(size - window) // STRIDE) * STRIDE)
    return [*range(0, last, stride // STRIDE * STRIDE), last]


class _Network:
    """The model's coarse logits in float32, computed on its device in the precision asked for."""

    def __init__(self, model: nn.Module, precision: torch.dtype) -> None:
        self.coarse: Any = model.coarse
        self.device = next(model.parameters()).device
        self.precision = precision

    def __call__(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        large_enough = F.pad(images, (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height)), mode="replicate")
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            coarse = self.coarse(large_enough)
        return coarse[..., : -(-height // STRIDE), : -(-width // STRIDE)].float()

    def load(self, images: Tensor) -> Tensor:
        """Images as floats from 0 to 1 on the model's device."""
        images = images.to(self.device)
        return images if images.is_floating_point() else images.float() / 255


def _slide(network: _Network, images: Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> Iterator[Tensor]:
    """Coarse logits (B, C, n, w) averaged over the windows, in blocks of rows that no later window touches."""
    height, width = images.shape[2:]
    window = (min(crop[0], height), min(crop[1], width))
    tops, lefts = window_offsets(height, window[0], stride[0]), window_offsets(width, window[1], stride[1])
    down, across = _looks(height, window[0], tops), _looks(width, window[1], lefts)
    begun: Tensor | None = None
    for top, below in zip(tops, [*tops[1:], len(down) * STRIDE], strict=True):
        first, end = top // STRIDE, below // STRIDE
        total = _window_row(network, images, top, lefts, window, len(across))[:, :, : len(down) - first]
        if begun is not None:
            total[:, :, : begun.shape[2]] += begun
        looks = down[first:end, None] * across
        yield total[:, :, : end - first] / looks.to(total.device)
        begun = total[:, :, end - first :]


def _window_row(
    network: _Network, images: Tensor, top: int, lefts: list[int], window: tuple[int, int], cells: int
) -> Tensor:
    """Coarse logits of the windows beginning at ``top``, added up where they overlap: (B, C, n, cells)."""
    total: Tensor | None = None
    for first in range(0, len(lefts), WINDOWS_AT_ONCE):
        group = lefts[first : first + WINDOWS_AT_ONCE]
        logits = network(torch.cat([_cut(network, images, top, left, window) for left in group]))
        if total is None:
            total = logits.new_zeros(images.shape[0], *logits.shape[1:3], cells)
        for left, part in zip(group, logits.chunk(len(group)), strict=True):
            target = total[..., left // STRIDE :][..., : part.shape[3]]
            target += part[..., : target.shape[3]]
    assert total is not None
    return total


def _cut(network: _Network, images: Tensor, top: int, left: int, window: tuple[int, int]) -> Tensor:
    """The window of the images, its border pixels repeated where it reaches beyond them."""
    part = network.load(images[:, :, top : top + window[0], left : left + window[1]])
    return F.pad(part, (0, window[1] - part.shape[3], 0, window[0] - part.shape[2]), mode="replicate")


def _looks(size: int, window: int, offsets: list[int]) -> Tensor:
    """How many windows see each coarse cell along an axis."""
    looks = torch.zeros(-(-size // STRIDE))
    for offset in offsets:
        looks[offset // STRIDE : -(-(offset + window) // STRIDE)] += 1
    return looks


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, with anti-aliasing; on the CPU uint8 images stay uint8, other devices know floats only."""
    if (height, width) == images.shape[2:]:
        return images
    if images.dtype == torch.uint8 and images.device.type != "cpu":
        images = images.float() / 255
    return F.interpolate(images, size=(max(1, height), max(1, width)), mode="bilinear", antialias=True)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
