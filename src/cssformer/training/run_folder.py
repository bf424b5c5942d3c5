"""The run folder: who may write to it, the checkpoint that a run continues from."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cssformer.model import SegmentationNetwork
from cssformer.training.optim import parameter_groups
from cssformer.training.recipe import TrainingConfig
from cssformer.utils.atomic import TEMPORARY, atomic_write
from cssformer.utils.digest import digest
from cssformer.utils.errors import UserError
from cssformer.weights.run_files import RUN_CHECKPOINTS, RUN_MODEL

LAST, METRICS = f"{RUN_CHECKPOINTS}/last.ckpt", "metrics.csv"
DIGEST = "sha256"
LOCK = ".lock"
"""Held by the process that trains into the run folder."""


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Keep other processes out of the run folder, made if needed; if nothing is written to it, it is removed again."""
    lock, made = FileLock(run / LOCK), [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(f"Another process trains into {run}; wait for it, or give another --output.") from error
    except OSError as error:
        raise UserError(f"Cannot write the run folder {run}: {error.strerror or error}.") from error
    # Nobody else writes weights here, so those under a temporary name are of processes that were killed.
    for held in (RUN_CHECKPOINTS, RUN_MODEL):
        for left in (run / held).glob(f"{TEMPORARY}*"):
            with suppress(OSError):
                left.unlink()
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
    if not last.is_file():
        raise UserError(f"The checkpoint {last} is no file; start the run again into another --output.")
    try:
        checkpoint = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
        whole = checkpoint.pop(DIGEST) == digest(checkpoint)
    except OSError as error:
        raise UserError(f"Cannot read the checkpoint {last}: {error.strerror or error}.") from error
    except Exception:
        # Damaged bytes are read as anything, so anything may go wrong.
        whole = False
    if not whole:
        raise UserError(
            f"The checkpoint {last} is damaged, was changed, or is of another version of this program; start the run "
            "again into another --output."
        )
    return dict(checkpoint)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there, with a digest of what they hold."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        # By way of memory, because torch tells a full disk by the name of a line of its own.
        buffer = io.BytesIO()
        torch.save({**checkpoint, DIGEST: digest(checkpoint)}, buffer)
        with atomic_write(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())


def require_same_network(
    checkpoint: dict[str, Any], model: SegmentationNetwork, training: TrainingConfig, run: Path
) -> None:
    """Raise UserError if what a checkpoint holds is of another network, or of an optimiser with other groups."""
    weights = checkpoint["state_dict"].items()
    # The rest is of a loss that was given.
    held = {name.removeprefix("model."): value.shape for name, value in weights if name.startswith("model.")}
    bias = "head.classify.bias"
    if bias in held and held[bias] != (model.num_classes,):
        raise UserError(
            f"The run in {run} was begun with {held[bias][0]} classes, but its data has {model.num_classes} now; "
            "train anew into another --output."
        )
    if held != {name: value.shape for name, value in model.state_dict().items()}:
        raise UserError(f"The run in {run} was begun with another network; continue it as it was begun.")
    own = type(model).__name__
    # Weights of a subclass may have the same names and shapes.
    if (begun := checkpoint.get("network", own)) != own:
        raise UserError(
            f"The run in {run} was begun with the class {begun}, not {own}; continue it from Python, by the same "
            "build of cssformer.train."
        )
    groups, before = parameter_groups(model, training), checkpoint["optimizer_states"][0]["param_groups"]
    if [len(group["params"]) for group in before] != [len(group["params"]) for group in groups]:
        raise UserError(
            f"The run in {run} was begun by a version of this program that grouped the weights otherwise; start from "
            f"its network instead, with --model.init {run} and another --output."
        )
