"""From class scores at stride 4 to a label per pixel, without ever holding the scores of all pixels.

The network's answer is one vector of class scores per cell of 4×4 pixels; a pixel's scores are the bilinear
interpolation between the four nearest cells, exactly as ``F.interpolate(coarse, scale_factor=4, mode="bilinear")``
(``align_corners=False``) cropped to the picture. Several views of one picture (scales, mirror images) are interpolated
onto the same pixels and their probabilities averaged. All of it goes strip by strip from the top to the bottom.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cssformer.inference import kernels

STRIDE = 4
"""Pixels of the network's input per coarse cell, along each axis."""

STRIP_ELEMENTS = 2**22
"""Scores held at one time, in elements per copy: 16 MiB of float32."""

KERNEL_ROWS = 64
"""Rows that one call of a kernel labels at most; shares out the work among threads."""


class Segmentation(NamedTuple):
    """Class indices (B, H, W) int32 and, if asked for, the probability (B, H, W) float32 of the class chosen."""

    labels: Tensor
    confidence: Tensor | None


class Taps(NamedTuple):
    """Where output pixels lie between cells along one axis: two neighbours and the weight of the second, each (n,)."""

    low: Tensor
    high: Tensor
    weight: Tensor

    def between(self, first: int, last: int) -> "Taps":
        return Taps(*(part[first:last] for part in self))

    def to(self, device: torch.device) -> "Taps":
        return Taps(*(part.to(device) for part in self))

    def arrays(self) -> kernels.Axis:
        return self.low.numpy(), self.high.numpy(), self.weight.numpy()


def taps(cells: int, size: int, output: int) -> Taps:
    """Where ``output`` pixels stretched over an input of ``size`` pixels lie on the ``cells`` that cover it."""
    position = ((torch.arange(output, dtype=torch.float64) + 0.5) * (size / output / STRIDE) - 0.5).clamp(0, cells - 1)
    low = position.long()
    high = (low + 1).clamp(max=cells - 1)
    return Taps(low, high, (position - low).float())


class View:
    """The class scores of one view of a picture, coming in blocks of rows from the top to the bottom.

    Args:
        blocks: gives, for the first column of cells and the one behind the last, tensors (B, C, n, last - first) that
            together have these columns' rows of the whole coarse map.
        size: height and width of the view in pixels, as the network saw it.
        output_size: height and width of the whole output.
        mirrored: the view is the picture's mirror image, left to right.
        left, right: the columns of the output wanted from the view; all by default.
    """

    def __init__(
        self,
        blocks: Callable[[int, int], Iterator[Tensor]],
        size: tuple[int, int],
        output_size: tuple[int, int],
        mirrored: bool = False,
        left: int = 0,
        right: int | None = None,
    ) -> None:
        columns = taps(-(-size[1] // STRIDE), size[1], output_size[1])
        if mirrored:
            columns = Taps(*(part.flip(0) for part in columns))
        columns = columns.between(left, output_size[1] if right is None else right)
        first, last = int(columns.low.min()), int(columns.high.max()) + 1
        self.blocks = blocks(first, last)
        self.top = 0
        self.held = self._next()
        device = self.held.device
        self.columns = Taps(columns.low - first, columns.high - first, columns.weight).to(device)
        self.rows = taps(-(-size[0] // STRIDE), size[0], output_size[0]).to(device)

    def advance(self, top: int, bottom: int) -> tuple[Tensor, Taps]:
        """The coarse rows that output rows top..bottom-1 need, (B, C, n, w), and where the output rows lie on them."""
        rows = self.rows.between(top, bottom)
        first, last = int(rows.low[0]), int(rows.high[-1])
        while self.top + self.held.shape[2] <= last:
            kept = self.held[:, :, max(first - self.top, 0) :]
            self.top += self.held.shape[2] - kept.shape[2]
            self.held = torch.cat([kept, self._next()], dim=2)
        return self.held, Taps(rows.low - self.top, rows.high - self.top, rows.weight)

    def _next(self) -> Tensor:
        return next(self.blocks).float().contiguous()

    def scores(self, top: int, bottom: int) -> Tensor:
        """Interpolated class scores of output rows top..bottom-1: (B, C, bottom - top, W)."""
        held, rows = self.advance(top, bottom)
        first, last = int(rows.low[0]), int(rows.high[-1])
        # Columns first, while there are few rows: picking them is the slow half.
        narrow = held[:, :, first : last + 1].contiguous()
        across = (*narrow.shape[:3], self.columns.low.shape[0])
        left, right = (narrow.gather(3, index.expand(across)) for index in (self.columns.low, self.columns.high))
        wide = left.lerp_(right, self.columns.weight)
        down = (*wide.shape[:2], rows.low.shape[0], wide.shape[3])
        upper, lower = (wide.gather(2, (index - first)[:, None].expand(down)) for index in (rows.low, rows.high))
        return upper.lerp_(lower, rows.weight[:, None])


def segment(views: Sequence[View], confidence: bool = False) -> Segmentation:
    """Label every pixel of the views' columns with the class that is most probable on average over the views.

    Args:
        views: each with scores (B, C, ...) of the same columns of the same pictures; several are averaged as
            probabilities.
        confidence: return the probability of the class chosen too.
    """
    height, width = len(views[0].rows.low), len(views[0].columns.low)
    batch, device = views[0].held.shape[0], views[0].held.device
    labels = torch.empty(batch, height, width, dtype=torch.int32, device=device)
    best = torch.empty(batch, height, width, device=device) if confidence else None
    if device.type == "cpu":
        segment_on_threads(views, labels, best)
    else:
        segment_in_strips(views, labels, best)
    return Segmentation(labels, None if best is None else best.div_(len(views)))


def segment_in_strips(views: Sequence[View], labels: Tensor, best: Tensor | None) -> None:
    """Write the labels, and their summed probabilities if ``best`` is given, both (B, H, W): on any device."""
    batch, height, width = labels.shape
    strip = max(1, STRIP_ELEMENTS // (batch * views[0].held.shape[1] * width))
    for top in range(0, height, strip):
        bottom = min(top + strip, height)
        scores = views[0].scores(top, bottom)
        if best is None and len(views) == 1:
            labels[:, top:bottom] = scores.argmax(1)
            continue
        total = scores.softmax(1)
        for view in views[1:]:
            total += view.scores(top, bottom).softmax(1)
        highest, labels[:, top:bottom] = total.max(1)
        if best is not None:
            best[:, top:bottom] = highest


def segment_on_threads(views: Sequence[View], labels: Tensor, best: Tensor | None) -> None:
    """The same on the CPU, compiled, on as many threads as torch uses."""
    batch, height, width = labels.shape
    threads = torch.get_num_threads()
    piece = KERNEL_ROWS
    if best is not None or len(views) > 1:
        piece = max(1, min(piece, STRIP_ELEMENTS // (views[0].held.shape[1] * width)))
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, height, piece * threads):
            last = min(first + piece * threads, height)
            ready = [(*view.advance(first, last), view.columns) for view in views]
            work = []
            for index in range(batch):
                for top in range(first, last, piece):
                    target = (index, slice(top, min(top + piece, last)))
                    best_part = None if best is None else best[target].numpy()
                    work.append(
                        pool.submit(_segment_piece, ready, index, top - first, labels[target].numpy(), best_part)
                    )
            for done in work:
                done.result()


def _segment_piece(
    views: Sequence[tuple[Tensor, Taps, Taps]],
    index: int,
    top: int,
    labels: NDArray[np.int32],
    best: NDArray[np.float32] | None,
) -> None:
    """Rows from ``top`` of picture ``index``, as many as ``labels`` has; views are scores, rows and columns."""
    parts = [
        (held[index].numpy(), rows.between(top, top + len(labels)).arrays(), columns.arrays())
        for held, rows, columns in views
    ]
    if best is None and len(views) == 1:
        kernels.label_pixels(*parts[0], labels)
        return
    total = np.zeros((len(parts[0][0]), *labels.shape), np.float32)
    for part in parts:
        kernels.add_probabilities(*part, total)
    kernels.most_probable(total, labels, np.empty(labels.shape, np.float32) if best is None else best)


def segment_coarse(
    coarse: Tensor, input_size: tuple[int, int], output_size: tuple[int, int] | None = None, confidence: bool = False
) -> Segmentation:
    """Labels of ``output_size`` from the network's class scores at stride 4.

    With ``output_size`` equal to ``input_size`` the labels are those of
    ``F.interpolate(coarse, scale_factor=4, mode="bilinear")[..., :H, :W].argmax(1)``, up to ties in floating point.

    Args:
        coarse: (B, C, ceil(H / 4), ceil(W / 4)) logits, any float type.
        input_size: H and W of the picture the network saw.
        output_size: height and width wanted; the input's if None.
        confidence: return the probability of the class chosen too.

    Raises:
        ValueError: the coarse map does not belong to an input of this size.
    """
    expected = tuple(-(-side // STRIDE) for side in input_size)
    if coarse.ndim != 4 or coarse.shape[2:] != expected:
        raise ValueError(f"coarse must be (B, C, {expected[0]}, {expected[1]}), not {tuple(coarse.shape)}.")
    view = View(lambda first, last: iter([coarse[..., first:last]]), input_size, output_size or input_size)
    return segment([view], confidence)
