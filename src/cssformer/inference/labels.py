"""From class scores at stride 4 to a label per pixel, without ever holding the scores of all pixels.

The network's answer is one vector of class scores per cell of 4×4 pixels; a pixel's scores are the bilinear
interpolation between the four nearest cells, as ``F.interpolate(logits, scale_factor=4, mode="bilinear")`` cropped to
the picture. Several views of one picture (scales, mirror images) are interpolated onto the same pixels and their
probabilities averaged. It is done tile by tile, by two matrix products each.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cssformer.utils.errors import UserError

STRIDE = 4
"""Pixels of the network's input per cell, along each axis."""

CPU_TILE, GPU_TILE = 64, 256
"""Height and width of a tile in pixels: on a CPU its scores fit the cache, on a GPU there are few calls."""


class Segmentation(NamedTuple):
    """The class of each pixel and, if asked for, how certain it is.

    Attributes:
        labels: indices of the most probable classes, (B, H, W) int32; of a multi-label network bit fields, see
            :mod:`cssformer.data.multilabel`.
        confidence: their probabilities, (B, H, W) float32; of a multi-label network the probability of the least
            certain of its answers, which class is there and which is not.
        top_labels: the k most probable classes of each pixel, the first of them the label (not of a multi-label
            network), (B, k, H, W) int32.
        top_probabilities: of these, (B, k, H, W) float32.
        entropy: -Σ p ln p over all classes, (B, H, W) float32, from 0 to ln C; of a multi-label network the sum over
            its classes of -p ln p - (1 - p) ln (1 - p), up to C ln 2.
    """

    labels: Tensor
    confidence: Tensor | None
    top_labels: Tensor | None = None
    top_probabilities: Tensor | None = None
    entropy: Tensor | None = None


class Block(NamedTuple):
    """What is found in a part of a picture, whose upper left pixel is in this row and column."""

    top: int
    left: int
    found: Segmentation


def resampling(scale: float, size: int, first: int, last: int) -> tuple[int, Tensor]:
    """Weights by which outputs first..last-1 are made of inputs from the one returned on: (last - first, n) float64.

    They are those of :func:`cssformer.data.transforms.resize`: triangles as wide as an output pixel, or an
    input pixel if that is wider.

    Args:
        scale: inputs per output.
        size: how many inputs there are.
        first, last: the outputs wanted.
    """
    reach = max(scale, 1.0)
    centre = (torch.arange(first, last, dtype=torch.float64) + 0.5) * scale
    begin, end = max(0, int(centre[0] - reach)), min(size, int(centre[-1] + reach) + 1)
    distance = (torch.arange(begin, end) + 0.5 - centre[:, None]).abs() / reach
    weights = (1 - distance).clamp(min=0)
    return begin, weights / weights.sum(dim=1, keepdim=True)


class View:
    """The class scores of one view of a picture, coming in blocks of rows from the top to the bottom.

    Args:
        blocks: gives, for the first column of cells, the one behind the last and the first row, tensors
            (B, C, n, last - first) that together have these columns of the view's cells from that row on.
        size: height and width of the view in pixels, as the network saw it.
        output_size: height and width of the whole output.
        device: where the blocks are.
        mirrored: the view is the picture's mirror image, left to right.
        left, right: the columns of the output wanted from the view; all by default.
        top: the first row wanted.
    """

    def __init__(
        self,
        blocks: Callable[[int, int, int], Iterator[Tensor]],
        size: tuple[int, int],
        output_size: tuple[int, int],
        device: torch.device,
        mirrored: bool = False,
        left: int = 0,
        right: int | None = None,
        top: int = 0,
    ) -> None:
        right = output_size[1] if right is None else right
        self.left, self.right, self.rows, self.device = left, right, range(top, output_size[0]), device
        self.tile = CPU_TILE if device.type == "cpu" else GPU_TILE
        self.cells = -(-size[0] // STRIDE), -(-size[1] // STRIDE)
        self.scale = size[0] / output_size[0] / STRIDE, size[1] / output_size[1] / STRIDE
        columns = []
        for begin in range(left, right, self.tile):
            end = min(begin + self.tile, right)
            mirror_image = (output_size[1] - end, output_size[1] - begin)
            column, weights = self._weights(1, *(mirror_image if mirrored else (begin, end)))
            columns.append((column, (weights.flip(0) if mirrored else weights).T.contiguous()))
        first = min(column for column, _ in columns)
        self.columns = [(column - first, weights) for column, weights in columns]
        self.top, _ = self._weights(0, top, top + 1)
        self.blocks = blocks(first, max(column + weights.shape[0] for column, weights in columns), self.top)
        self.held = self._next()

    def strip(self, top: int, bottom: int) -> Callable[[int], Tensor]:
        """Gives the scores of output rows top..bottom-1 in the tile of an index: (B, C, bottom - top, tile)."""
        row, down = self._weights(0, top, bottom)
        end = row + down.shape[1]
        self.held, self.top = self.held[:, :, row - self.top :], row
        while self.top + self.held.shape[2] < end:
            self.held = torch.cat([self.held, self._next()], dim=2)
        rows = self.held[:, :, : end - row]

        def scores(index: int) -> Tensor:
            column, across = self.columns[index]
            return down @ rows[..., column : column + across.shape[0]] @ across

        return scores

    def _weights(self, axis: int, first: int, last: int) -> tuple[int, Tensor]:
        begin, weights = resampling(self.scale[axis], self.cells[axis], first, last)
        return begin, weights.to(self.device, torch.float32)

    def _next(self) -> Tensor:
        return next(self.blocks).float().contiguous()


def segment(
    views: Sequence[View],
    confidence: bool = False,
    top_k: int = 1,
    entropy: bool = False,
    threshold: float | None = None,
) -> Iterator[Block]:
    """Label every pixel of the views' rows and columns with the class that is most probable on average over the views.

    Args:
        views: each with scores (B, C, ...) of the same part of the same pictures; several are averaged as
            probabilities.
        confidence: give the probability of the class chosen too.
        top_k: give so many of the most probable classes of each pixel, with their probabilities, if more than one.
        entropy: give the entropy too.
        threshold: of a multi-label network: the label has all classes of at least this probability, sigmoid(score).

    Yields:
        Strips of rows, from the top to the bottom.

    Raises:
        UserError: there are not ``top_k`` classes.
    """
    first, tile, device = views[0], views[0].tile, views[0].device
    (batch, count), width = first.held.shape[:2], first.right - first.left
    if not 1 <= top_k <= count:
        raise UserError(f"Of {count} classes the top_k may be 1 to {count}, not {top_k}.")
    probabilities = partial(torch.softmax, dim=1) if threshold is None else torch.sigmoid

    @torch.inference_mode()
    def label(
        strips: Sequence[Callable[[int], Tensor]],
        ranked: Tensor,
        best: Tensor | None,
        found: Segmentation,
        index: int,
    ) -> None:
        area = (..., slice(index * tile, (index + 1) * tile))
        scores = strips[0](index)
        if best is None and found.entropy is None and len(strips) == 1 and threshold is None:
            found.labels[area] = _highest(scores)[1]
            return
        total = probabilities(scores)
        for strip in strips[1:]:
            total += probabilities(strip(index))
        if found.entropy is not None or threshold is not None:
            mean = total / len(strips)
        if found.entropy is not None:
            found.entropy[area] = torch.special.entr(mean).sum(1)
        if threshold is not None:
            _label_by_threshold(mean, threshold, found, area)
            if top_k == 1:
                return
        for rank in range(top_k):
            highest, chosen = _highest(total)
            ranked[:, rank][area] = chosen
            if best is not None:
                best[:, rank][area] = highest / len(strips)
            if rank + 1 < top_k:
                total.scatter_(1, chosen[:, None].long(), -1)

    # A tile is too small to be shared out, so each thread has tiles of its own; a GPU's stream belongs to this thread.
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        share_out = pool.map if device.type == "cpu" and threads > 1 else map
        for top in first.rows[::tile]:
            height = min(tile, first.rows.stop - top)
            ranked = torch.empty(batch, top_k, height, width, dtype=torch.int32, device=device)
            best = torch.empty(batch, top_k, height, width, device=device) if confidence or top_k > 1 else None
            spread = torch.empty(batch, height, width, device=device) if entropy else None
            labels, highest = ranked[:, 0], best[:, 0] if confidence and best is not None else None
            if threshold is not None:  # the most probable class is not the label
                labels, highest = torch.empty_like(labels), None if highest is None else torch.empty_like(highest)
            top_labels, top_probabilities = (ranked, best) if top_k > 1 else (None, None)
            found = Segmentation(labels, highest, top_labels, top_probabilities, spread)
            strips = [view.strip(top, top + height) for view in views]
            for _ in share_out(partial(label, strips, ranked, best, found), range(len(first.columns))):
                pass
            if share_out is not map:
                # Else the one of these would be the number of all threads that begin later.
                torch.set_num_threads(threads)
            yield Block(top, first.left, found)


def _label_by_threshold(mean: Tensor, threshold: float, found: Segmentation, area: tuple[Any, ...]) -> None:
    """Write to ``found`` what a multi-label network says of an area, from its probabilities ``mean`` (B, C, h, w).

    The entropy there already has the sum of -p ln p.
    """
    there = mean >= threshold
    bits = torch.arange(mean.shape[1], device=mean.device)[:, None, None]
    found.labels[area] = (there.int() << bits).sum(1)
    if found.confidence is not None:
        found.confidence[area] = torch.where(there, mean, 1 - mean).amin(1)
    if found.entropy is not None:
        found.entropy[area] += torch.special.entr(1 - mean).sum(1)


def _highest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The highest of scores (B, C, h, w) and the first class that has it, both (B, h, w)."""
    highest, last = scores.amax(1), scores.shape[1] - 1
    # Several times as fast as max(1). A comparison is vectorised where it gives floats.
    is_highest = torch.eq(scores, highest[:, None], out=torch.empty_like(scores))
    first = last - is_highest.mul_(torch.arange(last, -1, -1, device=scores.device)[:, None, None]).amax(1)
    return highest, first.int()


def assembled(blocks: Iterable[Block], height: int, width: int) -> Segmentation:
    """What blocks that together are a whole picture of this size hold."""
    whole: Segmentation | None = None
    for top, left, found in blocks:
        if whole is None:
            whole = Segmentation._make(
                None if each is None else each.new_empty(*each.shape[:-2], height, width) for each in found
            )
        for everywhere, here in zip(whole, found, strict=True):
            if everywhere is not None and here is not None:
                everywhere[..., top : top + here.shape[-2], left : left + here.shape[-1]] = here
    assert whole is not None
    return whole
