"""Processes that ``torchrun`` or SLURM's ``srun`` started together, each of which does its share of the work."""

import atexit
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from cssformer.utils.errors import UserError

Item = TypeVar("Item")

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Of the step, not of the job: a batch script that runs without srun is one process, however many tasks its job has.
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID", "SLURM_STEP_ID")
FIRST_PORT, PORTS, STEPS = 20000, 12000, 16
"""A step's processes meet at one of so many ports from the first on, below those that systems give away; so many steps
of a job have ports that differ from each other and from those of the next job's steps."""


def rank() -> int:
    """The number of this process among those started together, from 0."""
    return _numbers()[0]


def local_rank() -> int:
    """The number of this process among those on this machine, from 0."""
    return _numbers()[2]


def share(items: Sequence[Item]) -> Sequence[Item]:
    """The items that are this process's to do: each is one process's."""
    first, count, _ = _numbers()
    return items[first::count]


def of_first(make: Callable[[], Item]) -> Item:
    """What process 0 makes, for all.

    Raises:
        UserError: a process has ended.
    """
    first, count, _ = _numbers()
    if count == 1:
        return make()
    with _ends_told():
        group = _group()
        made: list[Any] = [make() if first == 0 else None]
        _distributed().broadcast_object_list(made, src=0, group=group)
    return made[0]


def agree(value: str, refusal: str) -> None:
    """Wait until all processes are here with the same value.

    Raises:
        UserError: the refusal, where they have several values; or a process has ended.
    """
    count = _numbers()[1]
    values: list[Any] = [value] * count
    if count > 1:
        with _ends_told():
            _distributed().all_gather_object(values, value, group=_group())
    if len(set(values)) > 1:
        raise UserError(refusal)


def gather(value: Item) -> list[Item]:
    """For process 0 what each process gives, in their order, once all have; for the others their own alone.

    Raises:
        UserError: a process has ended.
    """
    first, count, _ = _numbers()
    if count == 1:
        return [value]
    values: list[Any] | None = [None] * count if first == 0 else None
    with _ends_told():
        _distributed().gather_object(value, values, group=_group())
    return [value] if values is None else values


def _numbers() -> tuple[int, int, int]:
    """Rank, number of processes, and rank on this machine."""
    for names in (TORCHRUN, SRUN):
        if all(name in os.environ for name in names):
            return int(os.environ[names[0]]), int(os.environ[names[1]]), int(os.environ[names[2]])
    return 0, 1, 0


def first_machine(nodes: str) -> str:
    """Of a list of machines as SLURM writes it, such as ``node[003-004,7],other1``."""
    return re.sub(r"\[(\w+).*", r"\1", nodes.split(",")[0])


@contextmanager
def _ends_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError("Another of the processes started together has ended; its own message says why.") from error


def _distributed() -> Any:
    """PyTorch's distributed package, which takes a while to import."""
    import torch.distributed

    return torch.distributed


@cache
def _group() -> Any:
    distributed = _distributed()
    if not distributed.is_initialized():
        place = "env://"
        if not all(name in os.environ for name in TORCHRUN):
            host = first_machine(os.environ["SLURM_STEP_NODELIST"])
            job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ["SLURM_STEP_ID"])
            place = f"tcp://{host}:{FIRST_PORT + (STEPS * job + step) % PORTS}"
        first, count, _ = _numbers()
        distributed.init_process_group("gloo", place, rank=first, world_size=count)
        atexit.register(_leave)
    # Shares take unequal time: who is ready first waits, however long.
    return distributed.new_group(backend="gloo", timeout=timedelta(days=30))


def _leave() -> None:
    """Close the connections: their threads, left alone at the interpreter's end, may abort a process that succeeded."""
    if _distributed().is_initialized():
        _distributed().destroy_process_group()
