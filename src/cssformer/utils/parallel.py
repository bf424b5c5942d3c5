"""The same work on many files, over all cores."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from cssformer.utils.console import progress

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD_BYTES = 2**29
"""What :func:`ahead` and :func:`behind` may hold."""


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item], title: str) -> list[Result]:
    """Return ``[work(item) for item in items]``; the error of the first item that fails stops the rest.

    Threads suffice, because decoding, encoding and hashing release Python's lock.
    """
    return list(progress(title, behind(work, items, lambda item: 0), len(items)))


def ahead(
    work: Callable[[int], Result], count: int, size: Callable[[Result], int], threads: int | None = None
) -> Iterator[Result]:
    """``work(0)``, ``work(1)``, ... in order, done ahead by threads; few of them where results are large.

    Args:
        work: see :func:`in_parallel`.
        count: how often.
        size: bytes that a result holds.
        threads: one per core if None; 0 does the work when it is asked for.
    """
    if threads == 0:
        yield from map(work, range(count))
        return
    threads = os.cpu_count() or 1 if threads is None else threads
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque()
        begun = 0
        try:
            for _ in range(count):
                if not pending:
                    pending.append(pool.submit(work, begun))
                    begun += 1
                result = pending.popleft().result()
                # The next results are likely as large as the largest of this one and those done after it.
                done = [each.result() for each in pending if each.done() and not each.exception()]
                room = max(1, min(2 * threads, AHEAD_BYTES // max(1, *map(size, (result, *done)))))
                while begun < count and len(pending) < room:
                    pending.append(pool.submit(work, begun))
                    begun += 1
                yield result
        finally:
            for future in pending:
                future.cancel()


def behind(
    work: Callable[[Item], Result], items: Iterable[Item], size: Callable[[Item], int], threads: int | None = None
) -> Iterator[Result]:
    """``work(item)`` for each item in order, done by threads while this one makes the next items.

    Args:
        work: see :func:`in_parallel`.
        items: made one by one; few of them wait where they are large.
        size: bytes that an item holds; none is made before one of more than ``AHEAD_BYTES`` has been handed out.
        threads: one per core if None.
    """
    threads = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[tuple[Future[Result], int]] = deque()
        try:
            for item in items:
                pending.append((pool.submit(work, item), size(item)))
                del item
                while pending and (len(pending) > 2 * threads or sum(held for _, held in pending) > AHEAD_BYTES):
                    yield pending.popleft()[0].result()
            while pending:
                yield pending.popleft()[0].result()
        finally:
            for future, _ in pending:
                future.cancel()
