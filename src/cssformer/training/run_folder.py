"""The run folder: who may write to it, the checkpoint that a run continues from, the best weights."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from filelock import FileLock, Timeout

from cssformer.model import SegmentationNetwork
from cssformer.model.hub import RUN_CHECKPOINTS, RUN_MODEL
from cssformer.utils.errors import UserError

LAST, BEST, METRICS = f"{RUN_CHECKPOINTS}/last.ckpt", f"{RUN_CHECKPOINTS}/best.ckpt", "metrics.csv"
LOCK = ".lock"
"""Held by the process that trains into the run folder."""


class RunInUse(UserError):
    """Another process trains into this run folder."""


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Keep other processes out of the run folder, made if needed; if nothing is written to it, it is removed again."""
    lock, made = FileLock(run / LOCK), [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise RunInUse(f"Another process trains into {run}; wait for it, or give another --output.") from error
    except OSError as error:
        raise UserError(f"Cannot write the run folder {run}: {error.strerror or error}.") from error
    try:
        yield
    finally:
        # What another process made meanwhile stays.
        with suppress(OSError):
            if made and os.listdir(run) == [LOCK]:
                (run / LOCK).unlink()
                for folder in made:
                    folder.rmdir()
        lock.release()


def in_use(run: Path) -> bool:
    """Whether a process trains into the run folder."""
    if not (run / LOCK).exists():
        return False
    try:
        with FileLock(run / LOCK).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:
        # Somebody else's folder, where nothing can be locked.
        return False


def read_checkpoint(run: Path, resume: bool) -> dict[str, Any] | None:
    """What the run continues from; None for a new one.

    A run without checkpoint holds nothing to lose, so it may be started again. (The processes of other devices come
    here when the first one has written the recipe already.)
    """
    last = run / LAST
    if not resume:
        if last.exists():
            raise UserError(f"{run} holds a run already; continue it with --resume, or give another --output.")
        return None
    if not last.exists():
        raise UserError(f"There is no run to resume in {run}: {last} is missing; start it again without --resume.")
    try:
        checkpoint: dict[str, Any] = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        raise UserError(f"The checkpoint {last} cannot be read; it is damaged, so start the run again.") from error
    return checkpoint


def require_same_network(checkpoint: dict[str, Any], model: SegmentationNetwork, run: Path) -> None:
    held = {name.removeprefix("model."): value.shape for name, value in checkpoint["state_dict"].items()}
    bias = "head.classify.bias"
    if bias in held and held[bias] != (model.num_classes,):
        raise UserError(
            f"The run in {run} was begun with {held[bias][0]} classes, but its data has {model.num_classes} now; "
            "train anew into another --output."
        )
    if held != {name: value.shape for name, value in model.state_dict().items()}:
        raise UserError(f"The run in {run} was begun with another network; continue it as it was begun.")


def keep_best(model: SegmentationNetwork, run: Path) -> None:
    """Load the best validated weights into the model and write them to the run's ``model`` folder."""
    checkpoint = torch.load(run / BEST, map_location="cpu", weights_only=True)
    weights = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    own = model.state_dict()
    model.load_state_dict({name: weights[name] for name in own})
    model.eval().save_pretrained(run / RUN_MODEL)
