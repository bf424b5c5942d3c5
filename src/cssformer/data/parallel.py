"""The same work on many files, over all cores, with a progress bar."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item], title: str) -> list[Result]:
    """Return ``[work(item) for item in items]``; the error of the first item that fails stops the rest.

    Threads suffice, because decoding, encoding and hashing release Python's lock.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        futures = [threads.submit(work, item) for item in items]
        try:
            return [future.result() for future in progress.track(futures, description=title)]
        finally:
            for future in futures:
                future.cancel()
