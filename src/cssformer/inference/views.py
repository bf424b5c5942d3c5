"""Labels of whole pictures: in one look, in overlapping windows, at several scales, with mirror images."""

import math
import operator
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cssformer.data.transforms import resize
from cssformer.inference.labels import STRIDE, Block, Segmentation, View, assembled, resampling, segment
from cssformer.utils.device import device_of
from cssformer.utils.errors import UserError

Mode = Literal["whole", "slide"]

Precision = Literal["32", "bf16", "16"]

AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}
"""The precisions that are lower than that of the weights."""

SMALLEST = 32
"""Height and width in pixels that the network needs; smaller pictures get their border repeated."""

SLACK = 0.25
"""How far floats may lie outside of 0 to 1: resizing overshoots by less, normalised pictures by more."""

WINDOWS_AT_ONCE = 4
"""Windows of a sliding row that go through the network as one batch."""

BAND_WINDOWS = 8
"""Sliding goes down in bands at most so many windows wide; windows at the seams are seen from both sides."""

ROWS_RESIZED_AT_ONCE = 64
"""Rows of a window's resized picture made at one time."""


class NotFinite(UserError):
    """The values of a picture, or the network's class scores, are not finite numbers."""


@contextmanager
def telling_of(*names: str) -> Iterator[None]:
    """Say of which pictures it is that something is not finite."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(f"{', '.join(names)}: {error}") from error


@dataclass(frozen=True)
class Options:
    """How pictures are looked at.

    Attributes:
        mode: "whole" or "slide".
        crop: height and width of the window in pixels (one number: square).
        stride: from window to window, in pixels; 2/3 of the crop if None. Rounded down to a multiple of 4.
        scales: factors of the picture's size, one view each.
        flip: add the mirror image of each view.
        short_side: first resize so that the shorter side has this many pixels.
        precision: "bf16" or "16" run the network under autocast to bfloat16 or float16.
        threshold: of a multi-label network, which calls a pixel all classes of at least this probability; 0.5 if None.

    Raises:
        UserError: an unknown mode or precision, a crop without pixels, a stride not between 4 and the crop, a scale or
            short side that is not positive, or a threshold that is not between 0 and 1.
    """

    mode: Mode = "whole"
    crop: int | tuple[int, int] = 512
    stride: int | tuple[int, int] | None = None
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    short_side: int | None = None
    precision: Precision = "32"
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise UserError(f"The mode is {' or '.join(get_args(Mode))}, not {self.mode!r}.")
        if self.precision not in get_args(Precision):
            raise UserError(f"The precision is {' or '.join(get_args(Precision))}, not {self.precision!r}.")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise UserError(f"The scales must be one or more positive numbers, not {list(self.scales)}.")
        if self.short_side is not None and self.short_side < 1:
            raise UserError(f"The short side must have at least one pixel, not {self.short_side}.")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UserError(f"The threshold must lie between 0 and 1; it is {self.threshold}.")
        window, step = self.window
        if min(window) < 1:
            raise UserError(f"The crop must have at least one pixel each way, not {self.crop}.")
        if self.mode == "slide" and not all(STRIDE <= s <= c for s, c in zip(step, window, strict=True)):
            raise UserError(
                f"The stride {step} must lie between {STRIDE} and the crop {window}, else windows leave gaps."
            )

    @property
    def window(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of the window, and its steps down and across."""
        height, width = _pair(self.crop)
        return (height, width), (height * 2 // 3, width * 2 // 3) if self.stride is None else _pair(self.stride)


def predict(
    model: nn.Module,
    image: Tensor,
    *,
    confidence: bool = False,
    top_k: int = 1,
    entropy: bool = False,
    **options: Any,
) -> Segmentation:
    """Label every pixel of a picture, or of pictures of one size, at the pictures' own size.

    Whole-picture inference runs the network once per view. Sliding-window inference runs it on overlapping windows and
    averages the logits where windows overlap. It goes from top to bottom in bands of up to 8 windows and keeps only the
    class scores, at stride 4, of the windows' current row, so beside picture and labels its memory depends on the
    window, the number of classes and that of the views, not on the picture's size. The picture may stay in main memory
    as uint8: windows are cut out of it, resized for their view and brought to the model's device one by one. They
    begin at multiples of 4 pixels, so that their cells coincide. Several views (scales, mirror images) are averaged as
    probabilities.

    Args:
        model: anything whose ``forward_logits(images)`` gives logits (B, C, ceil(H / 4), ceil(W / 4)), such as
            ``CSSFormer``.
        image: (C, H, W) or (B, C, H, W), uint8, or floats as the network takes them (RGB from 0 to 1), on any device.
        confidence, top_k, entropy: what to return beside labels; see :func:`cssformer.inference.labels.segment`.
        **options: of :class:`Options`.

    Returns:
        labels (H, W) or (B, H, W), and what was asked for beside them, all on the model's device.

    Raises:
        UserError: as :class:`Options`, there are not ``top_k`` classes, or a threshold is given for a network
            of one class a pixel.
        NotFinite: the picture or the network's scores are not finite.
        ValueError: the image has other dimensions or channels.

    Warns:
        The network takes photographs, and the image has floats that are not from 0 to 1.
    """
    looks = Options(**options)
    channels = getattr(getattr(model, "metadata", None), "channels", None)
    count = len(channels or "RGB")
    if image.ndim not in (3, 4) or image.shape[-3] != count:
        raise ValueError(f"image must be ({count}, H, W) or (B, {count}, H, W), not {tuple(image.shape)}.")
    if image.is_floating_point() and channels is None:
        low, high = image.aminmax()
        if low < -SLACK or high > 1 + SLACK:
            warnings.warn(
                f"The image has values from {low:.3g} to {high:.3g}, but floats must run from 0 to 1 (the network "
                "normalises them itself); give uint8 from 0 to 255, or divide.",
                stacklevel=2,
            )
    pictures = image if image.ndim == 4 else image[None]
    wanted: dict[str, Any] = {"confidence": confidence, "top_k": top_k, "entropy": entropy}
    with evaluating(model), torch.inference_mode():
        result = assembled(predict_blocks(model, pictures, looks, **wanted), *pictures.shape[2:])
    if image.ndim == 4:
        return result
    return Segmentation._make(None if each is None else each[0] for each in result)


class Pictures(Protocol):
    """Pictures (B, C, H, W) as :func:`predict` takes them: a tensor, or what makes one of the part asked for."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, part: tuple[slice, slice, slice, slice], /) -> Tensor: ...


def predict_blocks(
    model: nn.Module, pictures: Pictures, options: Options, begin: tuple[int, int] = (0, 0), **wanted: Any
) -> Iterator[Block]:
    """What :func:`predict` finds, part by part: down one band of columns after the other.

    It is called in inference mode, with a model in evaluation mode.

    Args:
        begin: row and column of the first pixel of a block; this one and those after it are wanted, which are what they
            are with all before them.
        **wanted: confidence, top_k and entropy.
    """
    height, width = pictures.shape[2:]
    sizes = seen_sizes(height, width, options.scales, options.short_side)
    mirrorings = (False, True) if options.flip else (False,)
    network, (window, step) = _Network(model, options.precision), options.window
    wanted["threshold"] = used_threshold(model, options.threshold)
    if options.mode == "whole":
        yield from segment(_whole_views(network, pictures[:, :, :, :], sizes, mirrorings), **wanted)
        return
    count = -(-max(across for _, across in sizes) // (BAND_WINDOWS * window[1]))
    for left, right in pairwise(width * band // count for band in range(count + 1)):
        if left < begin[1]:
            continue
        top = begin[0] if left == begin[1] else 0
        views = []
        for size in sizes:
            for mirrored in mirrorings:
                blocks = partial(_slide, _Scaled(network, pictures, size, mirrored), window, step)
                views.append(View(blocks, size, (height, width), network.device, mirrored, left, right, top))
        yield from segment(views, **wanted)


def used_threshold(model: Any, threshold: float | None) -> float | None:
    """The threshold that a multi-label network is used with, None for one of one class a pixel.

    Raises:
        UserError: a threshold is given for one of these.
    """
    if getattr(getattr(model, "metadata", None), "multilabel", False):
        return 0.5 if threshold is None else threshold
    if threshold is not None:
        raise UserError("A threshold is for multi-label networks; this one gives each pixel the most probable class.")
    return None


def seen_sizes(height: int, width: int, scales: Sequence[float], short_side: int | None) -> list[tuple[int, int]]:
    """Heights and widths in which the network sees a picture, whole or in windows: one for each scale."""
    fit = short_side / min(height, width) if short_side else 1.0
    return [(max(1, round(height * scale * fit)), max(1, round(width * scale * fit))) for scale in scales]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; then each part is in the mode it was in, frozen ones too."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def window_offsets(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis: multiples of 4, the last one reaching the end (by up to 3 pixels too far)."""
    last = max(0, -(-(size - window) // STRIDE) * STRIDE)
    return [*range(0, last, stride // STRIDE * STRIDE), last]


def as_input(images: Tensor) -> Tensor:
    """Images of any shape as the network takes them: floats as they are, uint8 from 0 to 1."""
    return images if images.is_floating_point() else images.float().div_(255)


class _Network:
    """The model's coarse logits in float32, computed on its device in the precision asked for."""

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        self.forward_logits: Any = model.forward_logits
        self.device = device_of(model)
        self.precision = precision

    def __call__(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if height < SMALLEST or width < SMALLEST:
            images = F.pad(images, (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height)), mode="replicate")
        lower = AUTOCAST.get(self.precision)
        with torch.autocast(self.device.type, lower, enabled=lower is not None):
            coarse = self.forward_logits(images)
        if not coarse.sum(dtype=torch.float32).isfinite():
            # Else the last class would be called the most probable.
            if not images.isfinite().all():
                raise NotFinite("The picture has values that are not finite numbers; give it without them.")
            if self.precision == "16":
                raise NotFinite("The network's values exceed float16, which ends at 65504; take precision bf16 or 32.")
            raise NotFinite("The network's class scores are not finite numbers; look at its weights, or train it anew.")
        return coarse[..., : -(-height // STRIDE), : -(-width // STRIDE)].float()

    def load(self, images: Tensor) -> Tensor:
        """Images as floats on the model's device."""
        return as_input(images.to(self.device))


def _whole_views(
    network: _Network, images: Tensor, sizes: Sequence[tuple[int, int]], mirrorings: Sequence[bool]
) -> list[View]:
    output_size = (images.shape[2], images.shape[3])
    images = network.load(images)
    views = []
    for size in sizes:
        scaled = images
        if size != output_size:
            scaled = resize(images, size)
        for mirrored in mirrorings:
            coarse = network(scaled.flip(3) if mirrored else scaled)
            views.append(View(partial(_columns, coarse), size, output_size, network.device, mirrored))
    return views


def _columns(coarse: Tensor, first: int, last: int, row: int) -> Iterator[Tensor]:
    yield coarse[:, :, row:, first:last]


class _Scaled:
    """Pictures (B, C, h, w) at another size, perhaps mirrored, of which only the windows asked for are made."""

    def __init__(self, network: _Network, images: Pictures, size: tuple[int, int], mirrored: bool) -> None:
        self.network, self.images, self.size, self.mirrored = network, images, size, mirrored

    def window(self, top: int, left: int, window: tuple[int, int]) -> Tensor:
        """Floats from 0 to 1 on the network's device; border pixels are repeated where the window reaches beyond."""
        height, width = self.size
        bottom, right = min(top + window[0], height), min(left + window[1], width)
        if self.mirrored:
            part = self._part(top, bottom, width - right, width - left).flip(3)
        else:
            part = self._part(top, bottom, left, right)
        return F.pad(part, (0, window[1] - part.shape[3], 0, window[0] - part.shape[2]), mode="replicate")

    def _part(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        height, width = self.images.shape[2:]
        if self.size == (height, width):
            return self.network.load(self.images[:, :, top:bottom, left:right])
        x, across = resampling(width / self.size[1], width, left, right)
        parts = []
        for first in range(top, bottom, ROWS_RESIZED_AT_ONCE):
            y, down = resampling(height / self.size[0], height, first, min(first + ROWS_RESIZED_AT_ONCE, bottom))
            source = self.network.load(self.images[:, :, y : y + down.shape[1], x : x + across.shape[1]])
            parts.append(down.to(source) @ source @ across.T.to(source))
        return torch.cat(parts, dim=2)


def _slide(
    scaled: _Scaled, crop: tuple[int, int], stride: tuple[int, int], first: int, last: int, begin: int
) -> Iterator[Tensor]:
    """Coarse logits (B, C, n, last - first) averaged over the windows, in blocks of rows that no later window touches.

    Args:
        scaled: the pictures.
        crop, stride: of the window, in pixels.
        first, last: the columns of coarse cells wanted.
        begin: the first row of coarse cells wanted.
    """
    height, width = scaled.size
    window = (min(crop[0], height), min(crop[1], width))
    tops, lefts = window_offsets(height, window[0], stride[0]), window_offsets(width, window[1], stride[1])
    down, across = _looks(height, window[0], tops), _looks(width, window[1], lefts)[first:last]
    lefts = [left for left in lefts if left // STRIDE < last and -(-(left + window[1]) // STRIDE) > first]
    begun: Tensor | None = None
    for top, below in zip(tops, [*tops[1:], len(down) * STRIDE], strict=True):
        row, end = top // STRIDE, below // STRIDE
        if -(-(top + window[0]) // STRIDE) <= begin:
            continue
        total = _window_row(scaled, top, lefts, window, first, last)[:, :, : len(down) - row]
        if begun is not None:
            total[:, :, : begun.shape[2]] += begun
        begun = total[:, :, end - row :]
        if end > begin:
            row, total = max(row, begin), total[:, :, max(0, begin - row) : end - row]
            yield total / (down[row:end, None] * across).to(total.device)


def _window_row(scaled: _Scaled, top: int, lefts: list[int], window: tuple[int, int], first: int, last: int) -> Tensor:
    """Coarse logits of the windows beginning at ``top``, added up where they overlap: (B, C, n, last - first)."""
    total: Tensor | None = None
    for number in range(0, len(lefts), WINDOWS_AT_ONCE):
        group = lefts[number : number + WINDOWS_AT_ONCE]
        logits = scaled.network(torch.cat([scaled.window(top, left, window) for left in group]))
        if total is None:
            total = logits.new_zeros(scaled.images.shape[0], *logits.shape[1:3], last - first)
        for left, part in zip(group, logits.chunk(len(group)), strict=True):
            place = left // STRIDE - first
            inside = part[..., max(0, -place) :]
            target = total[..., max(0, place) :][..., : inside.shape[3]]
            target += inside[..., : target.shape[3]]
    assert total is not None
    return total


def _looks(size: int, window: int, offsets: list[int]) -> Tensor:
    """How many windows see each coarse cell along an axis."""
    looks = torch.zeros(-(-size // STRIDE))
    for offset in offsets:
        looks[offset // STRIDE : -(-(offset + window) // STRIDE)] += 1
    return looks


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (value, value) if isinstance(value, int) else map(operator.index, value)
    except (TypeError, ValueError):
        raise UserError(f"A crop or stride is a number of pixels, or height and width, not {value!r}.") from None
    return height, width
