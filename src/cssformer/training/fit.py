"""The steps of a training, by Lightning: loaders, devices, callbacks, and what may go wrong with them."""

import dataclasses
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from timm.layers import convert_sync_batchnorm
from torch.utils.data import DataLoader

from cssformer.data.sampler import ResumableBatchSampler
from cssformer.data.stream import ValidationSet
from cssformer.model import SegmentationNetwork
from cssformer.training.assemble import Assembly
from cssformer.training.augmented import AugmentedSheet
from cssformer.training.averaging import Average
from cssformer.training.best import BestModel
from cssformer.training.callbacks import Progress, ProgressBar, ResumePoint
from cssformer.training.datasets import fingerprint
from cssformer.training.estimate import require_memory
from cssformer.training.non_finite import NonFinite
from cssformer.training.recipe import TrainingConfig
from cssformer.training.run_folder import LAST, METRICS, AtomicCheckpointIO
from cssformer.training.watch import Watch
from cssformer.utils.console import quiet
from cssformer.utils.device import best_device, device_name
from cssformer.utils.errors import UserError
from cssformer.utils.stop import GRACE_SECONDS, Interrupted, Stop, obey_parent_alone, signals_later
from cssformer.weights.run_files import RUN_MODEL

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
"""Lightning's names of the recipe's."""
CHILD_SECONDS = 10.0
"""How long the process of another device may take to end."""


def fit(
    assembly: Assembly,
    start: int,
    loggers: Sequence[Logger],
    callbacks: Iterable[Callback],
    console: Console,
    stop: Stop,
) -> None:
    """Take the steps from ``start`` on and leave checkpoints, metrics and the best model in the run folder."""
    task, stream, val_data = assembly.task, assembly.stream, assembly.val_data
    recipe, training = task.recipe, task.recipe.training
    together = _callbacks(assembly, start, callbacks, console, stop)
    trainer = _trainer(training, loggers, together, console.is_terminal)
    assert isinstance(training.device_batch, int)
    device_batch, accumulate = split_batch(training.batch_size, training.device_batch, trainer.world_size)
    trainer.accumulate_grad_batches = accumulate
    trainer.val_check_interval = training.validate_every * accumulate
    total = training.steps * accumulate
    batches = ResumableBatchSampler(total, device_batch, start * accumulate, trainer.global_rank, trainer.world_size)
    loader = partial(
        _Loader,
        num_workers=training.workers,
        persistent_workers=training.workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=obey_parent_alone,
    )
    task.model = synchronise_batch_norm(task.model, trainer.strategy.root_device, trainer.world_size)
    if len(val_data) < trainer.world_size:
        raise UserError(
            f"The data has fewer validation pictures ({len(val_data)}) than there are devices ({trainer.world_size}); "
            f"give --training.devices {len(val_data)} or prepare more for validation."
        )
    if trainer.is_global_zero:
        _tell_plan(assembly, trainer, device_batch, console)
        parts = trainer.num_devices if training.strategy == "fsdp" else 1
        require_memory(task, trainer.strategy.root_device, device_batch, parts)
    if start == 0:
        # MLflow refuses parameters that change, such as the steps of a run that is gone on with.
        for logger in loggers:
            logger.log_hyperparams(dataclasses.asdict(recipe))
    own = range(trainer.global_rank, len(val_data), trainer.world_size)
    with _told(training.workers), _devices_together(trainer, stop), stop.patience():
        trainer.fit(
            task,
            loader(stream, batch_sampler=batches),
            loader(ValidationSet(val_data), sampler=own),
            ckpt_path=Path(recipe.output) / LAST if start else None,
            weights_only=True,
        )


def _callbacks(
    assembly: Assembly, start: int, given: Iterable[Callback], console: Console, stop: Stop
) -> list[Callback]:
    """All that happens beside the steps, in this order."""
    recipe, stream = assembly.task.recipe, assembly.stream
    training, run, info = recipe.training, Path(recipe.output), stream.dataset.info
    data, network = fingerprint(stream.dataset, assembly.val_data), type(assembly.task.plain).__name__
    resume_point = ResumePoint(run / LAST, training.validate_every, stop, data, network)
    non_finite = NonFinite(run, info, training.non_finite == "skip", training.precision == "16", stop, console)
    progress = Progress(
        run / METRICS, start, training.steps, training.batch_size, training.log_every, non_finite, console
    )
    best = BestModel(run / RUN_MODEL, info, training.best, training.patience, console)
    # Those that are given see the averaged weights in validations, as BestModel does.
    together: list[Callback] = [progress, Watch(progress), non_finite, best, *given, resume_point]
    if start == 0:
        together.append(AugmentedSheet(run, info))
    if training.averages:
        together.append(Average(training, non_finite))
    if console.is_terminal:
        together.append(ProgressBar(leave=True))
    return together


def _trainer(
    training: TrainingConfig, loggers: Sequence[Logger], callbacks: list[Callback], terminal: bool
) -> L.Trainer:
    """Lightning's trainer of a run that is one long epoch.

    Raises:
        UserError: there are no such devices.
    """
    processes = max(8, os.cpu_count() or 1)
    if isinstance(training.devices, int) and training.devices > processes and best_device() == "cpu":
        raise UserError(
            f"training.devices is {training.devices}; without a GPU this machine takes at most {processes}."
        )
    try:
        return L.Trainer(
            accelerator=accelerator(),
            devices=training.devices,
            strategy=strategy(training.strategy),
            num_nodes=training.nodes,
            precision=PRECISIONS[training.precision],
            max_steps=training.steps,
            max_epochs=-1,
            min_epochs=0,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            gradient_clip_val=training.clip,
            logger=list(loggers),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            enable_progress_bar=terminal,
            enable_model_summary=False,
            use_distributed_sampler=False,
            log_every_n_steps=training.log_every,
        )
    except MisconfigurationException as error:
        raise UserError(
            f"training.devices {training.devices} cannot be had: {' '.join(str(error).split()).rstrip('.')}."
        ) from error


def _tell_plan(assembly: Assembly, trainer: L.Trainer, device_batch: int, console: Console) -> None:
    """Say what is trained, on what, and for how long."""
    model, recipe, stream, val_data = assembly.task.model, assembly.task.recipe, assembly.stream, assembly.val_data
    training = recipe.training
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    device = device_name(trainer.strategy.root_device.type)
    console.print(f"{type(model).__name__} on {recipe.model.backbone}, {millions:.1f} million parameters")
    side = recipe.augment.short_side
    resized = f", all resized to {side} pixels on the shorter side" if side else ""
    pictures = f"{len(stream.dataset)} pictures, {len(val_data)} to validate{resized}"
    console.print(f"{recipe.data or 'generated scenes'}: {pictures}")
    console.print(
        f"{training.steps} steps of {training.batch_size} pictures, {device_batch} at a time on each of "
        f"{trainer.world_size} x {device}; logged every {training.log_every}, validated every "
        f"{min(training.validate_every, training.steps)}"
    )


class _Loader(DataLoader[Any]):
    """Begins its processes so that they obey this one alone."""

    def __iter__(self) -> Any:
        with signals_later():
            return super().__iter__()


def strategy(name: str) -> str | ModelParallelStrategy:
    """Lightning's name of how devices train together, or its own such object."""
    # By default Lightning shares each layer's products out too.
    return ModelParallelStrategy(save_distributed_checkpoint=False) if name == "fsdp" else name


def accelerator() -> str:
    """Lightning's name of the devices to train on.

    Apple's GPUs cannot differentiate the sampling before PyTorch 2.10.
    """
    return "cpu" if torch.backends.mps.is_available() and torch.__version__ < "2.10" else "auto"


@contextmanager
def _told(workers: int) -> Iterator[None]:
    """Say in a sentence what may befall the processes that load pictures."""
    failures = {
        ("shared memory", "Bus error"): "The shared memory (/dev/shm) is too small for the processes that load "
        "pictures; give --training.workers 0 or more of it (docker run --shm-size 8g).",
        ("Too many open files", "ancdata", "_workers_status"): f"{workers} processes that load pictures open more "
        "files than is allowed; raise the limit (ulimit -n 4096) or give --training.workers 0.",
        ("DataLoader worker",): "A process that loads pictures was killed; if not by you, the memory was full: give "
        "fewer --training.workers.",
    }
    try:
        yield
    except (OSError, RuntimeError, AttributeError) as error:
        for words, sentence in failures.items():
            if any(word in str(error) for word in words):
                raise UserError(sentence) from error
        raise


@contextmanager
def quiet_lightning(precision: str) -> Iterator[None]:
    """Lightning's advice is about its own defaults; what concerns the user is said by Progress.

    GPUs multiply float32 with ``precision``, of ``torch.set_float32_matmul_precision``. All is put back at the end.
    """
    own = torch.get_float32_matmul_precision()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision(precision)
    try:
        with quiet("lightning.pytorch", "lightning.fabric"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        torch.set_float32_matmul_precision(own)


@contextmanager
def _devices_together(trainer: L.Trainer, stop: Stop) -> Iterator[None]:
    """End the processes of the other devices, which Lightning began, when this one ends before they do."""

    def take_children() -> list[subprocess.Popen[bytes]]:
        # Lightning would answer their end by killing this process.
        children = getattr(trainer.strategy.launcher, "procs", [])
        taken = list(children)
        children.clear()
        return taken

    def give_up() -> None:
        for child in take_children():
            child.kill()
        if trainer.is_global_zero:
            print(f"Stopped after {GRACE_SECONDS:g} s of waiting for the other devices.", file=sys.stderr)
        os._exit(Interrupted(stop.number).code)

    if trainer.world_size > 1:
        stop.give_up = give_up
    try:
        yield
    except BaseException:
        children = take_children()
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(CHILD_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
        raise


def synchronise_batch_norm(model: SegmentationNetwork, device: torch.device, world: int) -> SegmentationNetwork:
    """Let the BatchNorm layers of a backbone share their statistics where several GPUs train; changed in place.

    By timm's conversion: PyTorch's, which Lightning uses, drops the activation that some of timm's layers hold.
    """
    return convert_sync_batchnorm(model) if world > 1 and device.type == "cuda" else model


def split_batch(total: int, most: int, world: int) -> tuple[int, int]:
    """The declared batch as (pictures per device and pass, passes per optimiser step)."""
    if total % world:
        raise UserError(
            f"training.batch_size {total} cannot be shared by {world} devices; make it a multiple of {world}."
        )
    per_device = total // world
    device_batch = max(size for size in range(1, min(most, per_device) + 1) if per_device % size == 0)
    return device_batch, per_device // device_batch
