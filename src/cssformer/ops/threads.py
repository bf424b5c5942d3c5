"""Kernels on many threads at one time: on torch's own OpenMP threads, or on Python's where those cannot be had.

OpenMP's threads spin for a while after each of torch's operations. Threads of another pool would share the cores with
them, and the sampling kernels took up to 1.4 times as long (docs/performance.md).
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_WORTH_A_THREAD = 1 << 16  # numbers read; below this, waking a thread costs more than it saves

_Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _openmp() -> Any:
    """GNU OpenMP's entry point in the runtime that torch has loaded, which others offer too; None if there is none."""
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    parallel.argtypes = (_Region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel


_parallel = _openmp()
_threads = ThreadPoolExecutor(os.cpu_count(), "sampling")
_has_run = False


def _renew() -> None:
    """In a forked child neither kind of thread is there any more, and OpenMP would wait for its own for ever.

    So would torch, which has begun them where a network has run; it is left with one, as in processes that load data.
    """
    global _parallel, _threads
    _parallel = None
    _threads = ThreadPoolExecutor(os.cpu_count(), "sampling")
    if _has_run:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def run(
    kernel: Callable[..., None], tasks: int, work: int, *arguments: Any, scratch: Callable[[], tuple[Any, ...]] = tuple
) -> None:
    """``kernel(*arguments, *scratch(), first, last)`` over all tasks, on as many threads as torch uses.

    Args:
        kernel: releases the GIL, and writes for each task what it writes for no other.
        tasks: how many there are; a call does those from ``first`` to ``last``, excluded.
        work: how many numbers are read for all tasks together.
        *arguments: passed on.
        scratch: makes what a thread needs for itself.
    """
    global _has_run
    _has_run = True
    # All of torch's or one: OpenMP ends what a smaller team leaves over, and torch would have to start it again.
    threads = torch.get_num_threads() if tasks > 1 and work > _WORTH_A_THREAD else 1
    pieces = min(tasks, 4 * threads) if threads > 1 else 1
    # next() on one iterator is atomic under the GIL: whoever is free takes the next piece.
    ranges = iter([(tasks * i // pieces, tasks * (i + 1) // pieces) for i in range(pieces)])

    def take() -> None:
        own = scratch()
        for first, last in ranges:
            kernel(*arguments, *own, first, last)

    # Compiled here, if it is not yet: OpenMP's threads may have small stacks.
    kernel(*arguments, *scratch(), 0, 0)
    together(take, threads)


def together(function: Callable[[], None], threads: int) -> None:
    """Call ``function`` on each of ``threads`` threads, this one among them, and return when all have.

    A busy or dead pool calls it less often: the callers are to share out the work among those who come.
    """
    if threads == 1:
        function()
    elif _parallel is None:
        helpers = [_threads.submit(function) for _ in range(threads - 1)]
        try:
            function()
        finally:
            for helper in helpers:
                if not helper.cancel():
                    helper.result()
    else:
        errors: list[BaseException] = []

        def call(_: int | None) -> None:
            try:
                function()
            except BaseException as error:  # nothing may pass through C
                errors.append(error)

        _parallel(_Region(call), None, threads, 0)
        if errors:
            raise errors[0]
