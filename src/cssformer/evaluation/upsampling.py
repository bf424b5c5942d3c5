"""From class scores at stride 4 to a label per pixel, without ever holding the scores of all pixels.

The network's answer is one vector of class scores per cell of 4×4 pixels; a pixel's scores are the bilinear
interpolation between the four nearest cells, exactly as ``F.interpolate(coarse, scale_factor=4, mode="bilinear")``
(``align_corners=False``) cropped to the picture. Several views of one picture (scales, mirror images) are interpolated
onto the same pixels and their probabilities averaged. All of it goes strip by strip from the top to the bottom.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

STRIDE = 4
"""Pixels of the network's input per coarse cell, along each axis."""

STRIP_ELEMENTS = 2**22
"""Scores held at one time, in elements per copy: 16 MiB of float32."""

KERNEL_ROWS = 64
"""Rows that one call of the kernel labels; it holds no scores, so this only shares out the work."""


class Segmentation(NamedTuple):
    """Class indices (B, H, W) int32 and, if asked for, the probability (B, H, W) float32 of the class chosen."""

    labels: Tensor
    confidence: Tensor | None


class Samples(NamedTuple):
    """Where output pixels lie between cells along one axis: two neighbours and the weight of the second, each (n,)."""

    low: Tensor
    high: Tensor
    weight: Tensor

    def between(self, first: int, last: int) -> "Samples":
        return Samples(*(part[first:last] for part in self))


def samples(cells: int, size: int, output: int, device: torch.device) -> Samples:
    """Where ``output`` pixels stretched over an input of ``size`` pixels lie on the ``cells`` that cover it."""
    position = ((torch.arange(output, dtype=torch.float64) + 0.5) * (size / output / STRIDE) - 0.5).clamp(0, cells - 1)
    low = position.long()
    high = (low + 1).clamp(max=cells - 1)
    return Samples(low.to(device), high.to(device), (position - low).float().to(device))


class View:
    """The class scores of one view of a picture, coming in blocks of rows from the top to the bottom.

    Args:
        blocks: tensors (B, C, n, w) that together have the rows of the whole coarse map.
        size: height and width of the view in pixels, as the network saw it.
        mirrored: the view is the picture's mirror image, left to right.
    """

    def __init__(self, blocks: Iterator[Tensor], size: tuple[int, int], mirrored: bool = False) -> None:
        self.blocks = blocks
        self.mirrored = mirrored
        self.height, self.width = size
        self.cells = (-(-self.height // STRIDE), -(-self.width // STRIDE))
        self.top = 0
        self.held = self._next()

    def place(self, output_size: tuple[int, int]) -> None:
        """Set the size (H, W) of the output on which the rows of this view will be sampled."""
        device = self.held.device
        self.rows = samples(self.cells[0], self.height, output_size[0], device)
        columns = samples(self.cells[1], self.width, output_size[1], device)
        self.columns = Samples(*(part.flip(0) for part in columns)) if self.mirrored else columns

    def advance(self, top: int, bottom: int) -> tuple[Tensor, Samples]:
        """The coarse rows that output rows top..bottom-1 need, (B, C, n, w), and where the output rows lie on them."""
        rows = self.rows.between(top, bottom)
        first, last = int(rows.low[0]), int(rows.high[-1])
        while self.top + self.held.shape[2] <= last:
            kept = self.held[:, :, max(first - self.top, 0) :]
            self.top += self.held.shape[2] - kept.shape[2]
            self.held = torch.cat([kept, self._next()], dim=2)
        return self.held, Samples(rows.low - self.top, rows.high - self.top, rows.weight)

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


def segment(views: Sequence[View], output_size: tuple[int, int], confidence: bool = False) -> Segmentation:
    """Label every pixel of the output with the class that is most probable on average over the views.

    Args:
        views: each with scores (B, C, ...) of the same pictures; several are averaged as probabilities.
        output_size: height and width of the output in pixels.
        confidence: return the probability of the class chosen too.
    """
    height, width = output_size
    for view in views:
        view.place(output_size)
    batch, classes = views[0].held.shape[:2]
    device = views[0].held.device
    labels = torch.empty(batch, height, width, dtype=torch.int32, device=device)
    if len(views) == 1 and not confidence and device.type == "cpu":
        _segment_on_threads(views[0], labels)
        return Segmentation(labels, None)

    top_probability = torch.empty(batch, height, width, device=device) if confidence else None
    strip = max(1, STRIP_ELEMENTS // (batch * classes * width))
    for top in range(0, height, strip):
        bottom = min(top + strip, height)
        if len(views) == 1 and not confidence:
            chosen = views[0].scores(top, bottom).argmax(1)
        else:
            probability = views[0].scores(top, bottom).softmax(1)
            for view in views[1:]:
                probability += view.scores(top, bottom).softmax(1)
            best, chosen = probability.max(1)
            if top_probability is not None:
                top_probability[:, top:bottom] = best / len(views)
        labels[:, top:bottom] = chosen
    return Segmentation(labels, top_probability)


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
    return segment([View(iter([coarse]), input_size)], output_size or input_size, confidence)


def labels_from_coarse(
    coarse: Tensor, input_size: tuple[int, int], output_size: tuple[int, int] | None = None
) -> Tensor:
    """The labels (B, H, W) int32 of :func:`segment_coarse` alone."""
    return segment_coarse(coarse, input_size, output_size).labels


def _segment_on_threads(view: View, labels: Tensor) -> None:
    """Write the labels (B, H, W) of a single view on the CPU, on as many threads as torch uses."""
    height, threads = labels.shape[1], torch.get_num_threads()
    columns = _arrays(view.columns)
    # Plain threads around a kernel that releases the GIL: numba's own either crash when two threads call them or
    # bring a second OpenMP pool that fights torch's for the cores.
    with ThreadPoolExecutor(threads) as pool:
        together = KERNEL_ROWS * threads
        for first in range(0, height, together):
            last = min(first + together, height)
            held, rows = view.advance(first, last)
            work = [
                pool.submit(_label, scores.numpy(), _arrays(rows.between(top, top + KERNEL_ROWS)), columns, rows_out)
                for scores, chosen in zip(held, labels[:, first:last], strict=True)
                for top, rows_out in zip(
                    range(0, last - first, KERNEL_ROWS),
                    (part.numpy() for part in chosen.split(KERNEL_ROWS)),
                    strict=True,
                )
            ]
            for piece in work:
                piece.result()


def _arrays(at: Samples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return at.low.numpy(), at.high.numpy(), at.weight.numpy()


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _label(
    scores: np.ndarray,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    columns: tuple[np.ndarray, np.ndarray, np.ndarray],
    labels: np.ndarray,
) -> None:
    """Write the class of the highest interpolated score.

    ``scores`` is (C, n, w) float32, ``rows`` and ``columns`` are :class:`Samples`, ``labels`` is int32 with a column
    per sampled column and a row per sampled row.

    Interpolation averages four cells with positive weights, so where the four agree on the best class the pixel has
    it too. Only pixels between cells that disagree, few in a real prediction, look at the other classes.
    """
    low_row, high_row, row_weight = rows
    low_column, high_column, column_weight = columns
    classes, _, width = scores.shape
    first, last = low_row[0], high_row[-1]
    winner = np.empty((last - first + 1, width), dtype=np.int32)
    for row in range(first, last + 1):
        best, chosen = scores[0, row].copy(), winner[row - first]
        chosen[:] = 0
        for index in range(1, classes):
            candidate = scores[index, row]
            for x in range(width):
                better = candidate[x] > best[x]
                best[x] = candidate[x] if better else best[x]
                chosen[x] = index if better else chosen[x]

    for y in range(len(low_row)):
        upper, lower, down = low_row[y], high_row[y], row_weight[y]
        undecided = np.empty(labels.shape[1], dtype=np.int64)
        count = 0
        for x in range(labels.shape[1]):
            left, right = low_column[x], high_column[x]
            agreed = winner[upper - first, left]
            if (
                agreed == winner[upper - first, right]
                and agreed == winner[lower - first, left]
                and agreed == winner[lower - first, right]
            ):
                labels[y, x] = agreed
            else:
                undecided[count] = x
                count += 1
        if count == 0:
            continue
        left_of, right_of = low_column[undecided[:count]], high_column[undecided[:count]]
        across = column_weight[undecided[:count]]
        best = np.full(count, -np.inf, dtype=np.float32)
        chosen = np.zeros(count, dtype=np.int32)
        for index in range(classes):
            above, below = scores[index, upper], scores[index, lower]
            for i in range(count):
                at_left = above[left_of[i]] + down * (below[left_of[i]] - above[left_of[i]])
                at_right = above[right_of[i]] + down * (below[right_of[i]] - above[right_of[i]])
                value = at_left + across[i] * (at_right - at_left)
                better = value > best[i]
                best[i] = value if better else best[i]
                chosen[i] = index if better else chosen[i]
        for i in range(count):
            labels[y, undecided[i]] = chosen[i]
