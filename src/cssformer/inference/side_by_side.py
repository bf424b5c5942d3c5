"""Small pictures side by side: on a CPU each has one thread of its own, and large ones have all threads.

Threads that share a small picture wait for each other, and for whoever reads or writes a file on one of their cores.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from cssformer.inference.views import Options, seen_sizes
from cssformer.model import SegmentationNetwork
from cssformer.utils.device import device_of
from cssformer.utils.memory import total_memory
from cssformer.utils.parallel import AHEAD_BYTES, behind
from cssformer.utils.sharing import sharing_weights

SMALL = 2**19
"""Pixels, in the size that the network sees, of what one thread predicts."""

THREAD_BYTES = 2**29
"""What the paper's network takes for so many pixels on Swin-T, about; all threads may take half of the memory."""

Network = TypeVar("Network", bound=nn.Module)
Item = TypeVar("Item")
Result = TypeVar("Result")


def predicted(
    model: Network,
    look: Callable[[Network, Item], Result],
    items: Iterable[Item],
    shape: Callable[[Item], tuple[int, int, int] | None],
    held: int,
    options: Mapping[str, Any],
) -> Iterator[tuple[Item, Result]]:
    """Each item, in order, with ``look(network, item)``.

    What is small is one thread's, however many there are and whatever comes before and after it, because the number of
    threads changes the last bits of a network's answer.

    Args:
        model: side by side if it is a network of the product on a CPU.
        look: predicts; the network is the model, or a copy for one thread, because modules may keep what they compute.
        items: made one by one, by this thread.
        shape: (pictures, H, W) of an item, or None for what is to be done by this thread.
        held: bytes that a result has for each pixel, about.
        options: see :class:`cssformer.inference.views.Options`.
    """
    if not (isinstance(model, SegmentationNetwork) and device_of(model).type == "cpu"):
        yield from ((item, look(model, item)) for item in items)
        return
    looks, of_thread, threads = Options(**options), threading.local(), torch.get_num_threads()

    def seen(item: Item) -> float:
        if (of_item := shape(item)) is None:
            return math.inf
        count, height, width = of_item
        sizes = seen_sizes(height, width, looks.scales, looks.short_side)
        return count * max(down * across for down, across in [(height, width), *sizes])

    def aside(item: Item) -> tuple[Item, tuple[Result] | None]:
        if seen(item) > SMALL:
            return item, None
        if not hasattr(of_thread, "network"):
            torch.set_num_threads(1)
            of_thread.network = sharing_weights(model)
        return item, (look(of_thread.network, item),)

    def size(item: Item) -> int:
        # Before what is not small, all else is done and out of its way.
        return AHEAD_BYTES + 1 if (each := seen(item)) > SMALL else int(each) * held

    room = max(1, total_memory(device_of(model)) // 2 // THREAD_BYTES)
    try:
        for item, found in behind(aside, items, size, min(threads, room)):
            yield item, found[0] if found else look(model, item)
    finally:
        # Else the one of these threads would be the number of all that begin later.
        torch.set_num_threads(threads)
