"""Batches in an order that depends on the seed and the step alone, on any number of devices."""

from collections.abc import Iterator

from torch.utils.data import Sampler


class ResumableBatchSampler(Sampler[list[int]]):
    """The batches of one device for a whole run; batch n of all devices together holds the next ``world·size`` items.

    Args:
        total: batches of the whole run (optimiser steps times accumulation).
        size: items of a batch on this device.
        start: batches already done, when a run is resumed; they are skipped but still count in ``len``.
        rank, world: this device's number, and how many there are.
    """

    def __init__(self, total: int, size: int, start: int = 0, rank: int = 0, world: int = 1) -> None:
        self.total, self.size, self.start, self.rank, self.world = total, size, start, rank, world

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.start, self.total):
            first = (batch * self.world + self.rank) * self.size
            yield list(range(first, first + self.size))
