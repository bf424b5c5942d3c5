"""From a recipe to a run folder: data, network, Lightning's trainer, the score."""

import dataclasses
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from cssformer.data.dataset import SPLITS
from cssformer.inference.predictor import accelerated
from cssformer.metrics import Evaluation, evaluate, write_report
from cssformer.training.assemble import Build, assemble
from cssformer.training.estimate import fitting_batch
from cssformer.training.fit import CHILD_SECONDS, fit, quiet_lightning
from cssformer.training.loggers import finished, make_loggers
from cssformer.training.module import Loss
from cssformer.training.recipe import Recipe, TrainingConfig
from cssformer.training.resume import CHANGEABLE, resumed
from cssformer.training.run_folder import alone, read_checkpoint, require_same_network
from cssformer.training.score import about
from cssformer.utils.console import counted, plain_console
from cssformer.utils.device import best_device
from cssformer.utils.errors import UserError
from cssformer.utils.options import written
from cssformer.utils.stop import Interrupted, Stop
from cssformer.weights.hub import load
from cssformer.weights.run_files import RECIPE, RUN_MODEL, SCORES


def train(
    recipe: Recipe,
    resume: bool = False,
    console: Console | None = None,
    build: Build | None = None,
    callbacks: Iterable[Callback] = (),
    loggers: Iterable[Logger] | None = None,
    loss: Loss | None = None,
) -> Evaluation | None:
    """Train by the recipe and leave a run folder.

    The folder holds ``recipe.yaml`` (resolved), ``model/`` (the best validated weights, for ``from_pretrained``),
    ``checkpoints/``, ``metrics.csv``, ``augmented.png`` (the first pictures as the network sees them), TensorBoard
    events, and the report of the validation split: scores, per-class table, pictures.

    Args:
        recipe: what to do; ``recipe.output`` is the run folder.
        resume: continue an interrupted run. It ends with the weights of the uninterrupted one, on the CPU bit for bit.
        console: where progress goes; the terminal by default.
        build: makes the network for the recipe and the training data; by default
            :func:`cssformer.training.assemble.build_model`.
        callbacks: Lightning's, or of one's own, beside those of this package. Their ``pl_module`` has the network as
            ``model``, and ``trainer.callback_metrics`` has ``mIoU`` from ``on_validation_end`` on. Their state is
            resumed.
        loggers: Lightning's, in place of those that ``training.logger`` names.
        loss: in place of the recipe's (section ``loss`` and ``training.auxiliary_weight``), called with what the
            network gives in training mode, logits (B, C, H, W) or :class:`cssformer.model.SegmentationOutput` of two
            heads, and labels (B, H, W) int64, -100 where ignored; gives a scalar. One with weights that learn is
            refused, since they are not part of the network.

    Returns:
        The evaluation of the best weights on the validation split; None if the run to resume is finished already,
        and in all processes but the first where several devices train.

    Raises:
        UserError: the recipe asks for what cannot be, files are missing, wrong or not writable, or another process
            trains into the run folder.
        Interrupted: someone asked to stop; call again with ``resume``.
    """
    recipe.require_sound()
    _require_apart(Path(recipe.output), recipe.data)
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    stop = Stop()
    # Of several processes the first one speaks.
    console = (console or plain_console()) if first else Console(quiet=True)
    try:
        with stop.listening(), alone(Path(recipe.output)) if first else nullcontext():
            # Whoever calls this has random numbers of their own.
            devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
            try:
                with torch.random.fork_rng(devices):
                    return _train(recipe.located(), resume, first, console, build, callbacks, loggers, loss, stop)
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
    build: Build | None,
    callbacks: Iterable[Callback],
    loggers: Iterable[Logger] | None,
    loss: Loss | None,
    stop: Stop,
) -> Evaluation | None:
    run = Path(recipe.output)
    checkpoint = read_checkpoint(run, resume)
    begun = Recipe.load(run / RECIPE) if checkpoint else None
    if begun:
        recipe = resumed(begun, recipe)
    start = stop.step = int(checkpoint["global_step"]) if checkpoint else 0
    ended = checkpoint and _how_it_ended(checkpoint, recipe.training)
    if ended and (run / SCORES).is_file():
        console.print(f"The run in {run} {ended}.", markup=False)
        return None
    made = make_loggers(recipe, start, checkpoint.get("logged", {}) if checkpoint else {}) if loggers is None else []
    verify = first and not checkpoint
    assembly = assemble(recipe, console, checkpoint, build, verify, loss)
    task, recipe = assembly.task, assembly.task.recipe
    if checkpoint and begun:
        require_same_network(checkpoint, task.model, recipe.training, run)
        _require_validated(run, start, recipe.training.steps)
        _tell_changes(begun.training, recipe.training, start, console)
    if recipe.training.device_batch == "auto":
        most = begun.training.device_batch if begun else fitting_batch(task, torch.device(best_device()))
        recipe = task.recipe = dataclasses.replace(
            recipe, training=dataclasses.replace(recipe.training, device_batch=most)
        )
        console.print(f"training.device_batch auto: at most {most} at a time, by what one takes of the memory.")
    if first:
        recipe.save(run / RECIPE)
    try:
        if start < recipe.training.steps:
            # What tells that a run is finished: it may have been, of fewer steps.
            (run / SCORES).unlink(missing_ok=True)
            quiet = quiet_lightning(recipe.training.matmul_precision)
            with _full_memory_told(recipe), quiet, finished(made):
                fit(assembly, start, made if loggers is None else list(loggers), callbacks, console, stop)
        if not first:
            return None
        model, val_data = task.plain, assembly.val_data
        model.load_state_dict(load(run / RUN_MODEL)[1])
    except OSError as error:
        raise UserError(f"Cannot write the run folder {run}: {error.strerror or error}.") from error
    except UserError as error:
        # A loader's process hands its traceback over as the message; the sentence stands at its end.
        raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from None
    # Lightning leaves the model on the CPU.
    model = accelerated(model.to(best_device()))
    with _full_memory_told(recipe):
        evaluation = evaluate(model, val_data, **model.metadata.inference)
    evaluation = dataclasses.replace(evaluation, about=about(run, recipe.data))
    write_report(evaluation, val_data, run)
    return evaluation


def _tell_changes(begun: TrainingConfig, training: TrainingConfig, start: int, console: Console) -> None:
    """Say where a run goes on, and by which other options than it was begun with."""
    for name in CHANGEABLE:
        before, now = getattr(begun, name), getattr(training, name)
        if before != now and now != "auto":
            falls = f": the learning rate falls to 0 at step {training.steps} now" if name == "steps" else ""
            console.print(f"training.{name} {written(before)} -> {written(now)}{falls}.", markup=False)
    console.print(f"Continuing from step {start} to step {training.steps}.", markup=False)


def _require_apart(run: Path, data: str | None) -> None:
    if data is not None and run.resolve() in (Path(data).resolve() / part for part in ("", *SPLITS)):
        raise UserError(f"The run folder {run} is the folder of the data, or a split of it; give another --output.")


def _how_it_ended(checkpoint: dict[str, Any], training: TrainingConfig) -> str | None:
    """How the run of a checkpoint ended, and what makes it go on; None if it did not."""
    steps, waited = checkpoint["global_step"], checkpoint["callbacks"].get("BestModel", {}).get("since_best", 0)
    if steps >= training.steps:
        done = counted(steps, "step")
        return f"is finished, with {done}; to go on, give --resume --training.steps and a number above {steps}"
    if training.patience is not None and waited >= training.patience:
        return (
            f"ended after {counted(steps, 'step')}, as {counted(waited, 'validation')} brought no better score; to go "
            f"on, give --resume --training.patience and a number above {waited}"
        )
    return None


def _require_validated(run: Path, start: int, steps: int) -> None:
    if start >= steps and not (run / RUN_MODEL).is_dir():
        raise UserError(
            f"The run in {run} has done {start} steps and was never validated; give more --training.steps than {start}."
        )


@contextmanager
def _full_memory_told(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The GPU's memory is full; start again with a training.device_batch below {recipe.training.device_batch} "
            "(an optimiser step still sees training.batch_size pictures), a smaller augment.crop, or "
            "training.grad_checkpointing, or with evaluation.mode slide if whole pictures are too large to be scored."
        ) from error
