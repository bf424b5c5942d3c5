"""From a recipe to a run folder: data, network, Lightning's trainer, the score."""

import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from timm.layers import convert_sync_batchnorm
from torch import Tensor
from torch.utils.data import DataLoader

from cssformer.data import verify_labels
from cssformer.data.sampler import ResumableBatchSampler
from cssformer.data.stream import TrainingStream, ValidationSet
from cssformer.data.transforms import Augment
from cssformer.metrics import Evaluation, evaluate, write_report
from cssformer.metrics.report import SCORES
from cssformer.model import CSSFormer, SegmentationNetwork
from cssformer.model.hub import RUN_MODEL, load
from cssformer.training.callbacks import (
    BestModel,
    Progress,
    ProgressBar,
    ResumePoint,
)
from cssformer.training.datasets import Dataset, datasets
from cssformer.training.finetune import start_from, starting_point
from cssformer.training.module import SegmentationTask
from cssformer.training.recipe import RECIPE, Recipe
from cssformer.training.run_folder import (
    LAST,
    METRICS,
    AtomicCheckpointIO,
    alone,
    read_checkpoint,
    require_same_network,
)
from cssformer.training.stop import GRACE_SECONDS, Interrupted, Stop, obey_parent_alone, signals_later
from cssformer.utils.console import plain_console
from cssformer.utils.device import best_device
from cssformer.utils.errors import UserError

CHILD_SECONDS = 10.0
"""How long the process of another device may take to end."""


def train(
    recipe: Recipe,
    resume: bool = False,
    console: Console | None = None,
    build: Callable[[Recipe, Dataset], SegmentationNetwork] | None = None,
) -> Evaluation | None:
    """Train by the recipe and leave a run folder.

    The folder holds ``recipe.yaml`` (resolved), ``model/`` (the best validated weights, for ``from_pretrained``),
    ``checkpoints/``, ``metrics.csv``, TensorBoard events, and the report of the validation split: scores, per-class
    table, pictures.

    Args:
        recipe: what to do; ``recipe.output`` is the run folder.
        resume: continue an interrupted run. It ends with the weights of the uninterrupted one, on the CPU bit for bit.
        console: where progress goes; the terminal by default.
        build: makes the network for the recipe and the training data; :func:`build_model` by default.

    Returns:
        The evaluation of the best weights on the validation split; None in all processes but the first where
        several devices train.

    Raises:
        UserError: the recipe asks for what cannot be, or files are missing, wrong or not writable.
        RunInUse: another process trains into the run folder.
        Interrupted: someone asked to stop; call again with ``resume``.
    """
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    stop = Stop()
    try:
        with stop.listening(), alone(Path(recipe.output)) if first else nullcontext():
            try:
                return _train(recipe.located(), resume, first, console or plain_console(), build or build_model, stop)
            except UserError:
                if not first:
                    # The first process, if it has met the same, tells it and ends this one.
                    time.sleep(2 * CHILD_SECONDS)
                raise
    except Interrupted:
        if first:
            raise
        return None


def _train(
    recipe: Recipe,
    resume: bool,
    first: bool,
    console: Console,
    build: Callable[[Recipe, Dataset], SegmentationNetwork],
    stop: Stop,
) -> Evaluation | None:
    run = Path(recipe.output)
    checkpoint = read_checkpoint(run, resume)
    start = int(checkpoint["global_step"]) if checkpoint else 0
    if first and recipe.data is not None and not checkpoint:
        verify_labels(recipe.data)
    train_data, val_data = datasets(recipe)
    weights: dict[str, Tensor] | None = None
    if recipe.model.init is not None and not checkpoint:
        recipe, weights = starting_point(recipe, recipe.model.init)
    model = build(recipe, train_data)
    if checkpoint:
        require_same_network(checkpoint, model, run)
    if weights is not None:
        told = start_from(model, weights)
        if first:
            console.print(f"Started from {recipe.model.init}: {told}")
    if checkpoint:
        _require_validated(run, start, recipe.training.steps)
        if first:
            console.print(f"Continuing from step {start} to step {recipe.training.steps}.", markup=False)
    if first:
        recipe.save(run / RECIPE)
    try:
        if start < recipe.training.steps:
            # What tells that a run is finished: it may have been, of fewer steps.
            (run / SCORES).unlink(missing_ok=True)
            with _full_memory_told(recipe), _quiet_lightning():
                _fit(recipe, model, train_data, val_data, start, console, stop)
        if not first:
            return None
        model.load_state_dict(load(run / RUN_MODEL)[1])
    except OSError as error:
        raise UserError(f"Cannot write the run folder {run}: {error.strerror or error}.") from error
    except UserError as error:
        # A loader's process hands its traceback over as the message; the sentence stands at its end.
        raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from None
    # Lightning leaves the model on the CPU.
    with _full_memory_told(recipe):
        evaluation = evaluate(model.to(best_device()), val_data, **model.inference)
    write_report(evaluation, val_data, run)
    return evaluation


def _require_validated(run: Path, start: int, steps: int) -> None:
    if start >= steps and not (run / RUN_MODEL).is_dir():
        raise UserError(
            f"The run in {run} has done {start} steps and was never validated; give more --training.steps than {start}."
        )


def build_model(recipe: Recipe, data: Dataset) -> CSSFormer:
    """The network of the recipe for the classes of the data, initialised from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    arguments = {name: value for name, value in vars(recipe.model).items() if name != "init"}
    try:
        return CSSFormer(
            num_classes=len(data.info.classes),
            inference=recipe.inference(),
            classes=data.info.classes,
            colours=data.info.colours,
            **arguments,
        )
    except ValueError as error:
        raise UserError(f"The recipe's model cannot be built: {error}.") from error


@contextmanager
def _full_memory_told(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The GPU's memory is full; start again with a training.device_batch below {recipe.training.device_batch} "
            "(an optimiser step still sees training.batch_size pictures) or a smaller augment.crop, or with "
            "evaluation.mode slide if whole pictures are too large to be scored."
        ) from error


def _fit(
    recipe: Recipe,
    model: SegmentationNetwork,
    train_data: Dataset,
    val_data: Dataset,
    start: int,
    console: Console,
    stop: Stop,
) -> None:
    training, run = recipe.training, Path(recipe.output)
    resume_point = ResumePoint(run / LAST, start, training.validate_every, stop)
    progress = Progress(run / METRICS, start, training.steps, training.batch_size, training.log_every, console)
    callbacks: list[Callback] = [progress, BestModel(run / RUN_MODEL), resume_point]
    if training.ema is not None:
        callbacks.append(EMAWeightAveraging(decay=training.ema))
    if console.is_terminal:
        callbacks.append(ProgressBar(leave=True))
    try:
        trainer = L.Trainer(
            accelerator="auto",
            devices=training.devices,
            num_nodes=training.nodes,
            precision={"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[training.precision],  # type: ignore[arg-type]
            max_steps=training.steps,
            max_epochs=-1,
            min_epochs=0,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            gradient_clip_val=training.clip,
            logger=TensorBoardLogger(run, name="", version="tensorboard"),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            enable_progress_bar=console.is_terminal,
            enable_model_summary=False,
            use_distributed_sampler=False,
            log_every_n_steps=training.log_every,
        )
    except MisconfigurationException as error:
        raise UserError(
            f"training.devices {training.devices} cannot be had: {' '.join(str(error).split()).rstrip('.')}."
        ) from error
    device_batch, accumulate = split_batch(training.batch_size, training.device_batch, trainer.world_size)
    trainer.accumulate_grad_batches = accumulate
    trainer.val_check_interval = training.validate_every * accumulate
    total = training.steps * accumulate
    stream = TrainingStream(
        train_data, Augment(**vars(recipe.augment)), recipe.seed, training.steps * training.batch_size
    )
    batches = ResumableBatchSampler(total, device_batch, start * accumulate, trainer.global_rank, trainer.world_size)
    loader = partial(
        _Loader,
        num_workers=training.workers,
        persistent_workers=training.workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=obey_parent_alone,
    )
    model = synchronise_batch_norm(model, trainer.strategy.root_device, trainer.world_size)
    if len(val_data) < trainer.world_size:
        raise UserError(
            f"The data has fewer validation pictures ({len(val_data)}) than there are devices ({trainer.world_size}); "
            f"give --training.devices {len(val_data)} or prepare more for validation."
        )
    own = range(trainer.global_rank, len(val_data), trainer.world_size)
    with _devices_together(trainer, stop), stop.patience():
        trainer.fit(
            SegmentationTask(model, recipe),
            loader(stream, batch_sampler=batches),
            loader(ValidationSet(val_data), sampler=own),
            ckpt_path=run / LAST if start else None,
            weights_only=True,
        )


class _Loader(DataLoader[Any]):
    """Begins its processes so that they obey this one alone."""

    def __iter__(self) -> Any:
        with signals_later():
            return super().__iter__()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's advice is about its own defaults; what concerns the user is said by Progress."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


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
