"""From a recipe to a run folder: data, network, Lightning's trainer, the score."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor

from cssformer.backbones import add_lora, first_licence, merged, trunk
from cssformer.data.class_pixels import verify_labels
from cssformer.data.custom import CustomAugment
from cssformer.data.dataset import SPLITS, raw_ids
from cssformer.data.rare_classes import RareClasses
from cssformer.data.stream import TrainingStream
from cssformer.data.transforms import Augment
from cssformer.inference.predictor import accelerated
from cssformer.metrics import Evaluation, evaluate, write_report
from cssformer.metrics.report import SCORES
from cssformer.model import CSSFormer, Metadata, SegmentationNetwork
from cssformer.training.best import require_score
from cssformer.training.datasets import Dataset, datasets, fingerprint, for_channels
from cssformer.training.finetune import start_from, starting_point
from cssformer.training.fit import CHILD_SECONDS, fit, quiet_lightning
from cssformer.training.loggers import make_loggers
from cssformer.training.rare_classes import build_loss, counted, told_absent, told_counts, wants_counts, wants_draws
from cssformer.training.recipe import RECIPE, Recipe
from cssformer.training.run_folder import (
    alone,
    read_checkpoint,
    require_same_network,
)
from cssformer.training.score import about
from cssformer.utils.console import plain_console
from cssformer.utils.device import best_device
from cssformer.utils.errors import UserError
from cssformer.utils.stop import Interrupted, Stop
from cssformer.weights.hub import RUN_MODEL, load


def train(
    recipe: Recipe,
    resume: bool = False,
    console: Console | None = None,
    build: Callable[[Recipe, Dataset], SegmentationNetwork] | None = None,
) -> Evaluation | None:
    """Train by the recipe and leave a run folder.

    The folder holds ``recipe.yaml`` (resolved), ``model/`` (the best validated weights, for ``from_pretrained``),
    ``checkpoints/``, ``metrics.csv``, ``augmented.png`` (the first pictures as the network sees them), TensorBoard
    events, and the report of the validation split: scores, per-class table, pictures.

    Args:
        recipe: what to do; ``recipe.output`` is the run folder.
        resume: continue an interrupted run. It ends with the weights of the uninterrupted one, on the CPU bit for bit.
        console: where progress goes; the terminal by default.
        build: makes the network for the recipe and the training data; :func:`build_model` by default.

    Returns:
        The evaluation of the best weights on the validation split; None if the run to resume is finished already,
        and in all processes but the first where several devices train.

    Raises:
        UserError: the recipe asks for what cannot be, files are missing, wrong or not writable, or another process
            trains into the run folder.
        Interrupted: someone asked to stop; call again with ``resume``.
    """
    _require_apart(Path(recipe.output), recipe.data)
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    stop, console = Stop(), console or plain_console()
    try:
        with stop.listening(), alone(Path(recipe.output)) if first else nullcontext():
            # Whoever calls this has random numbers of their own.
            devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
            try:
                with torch.random.fork_rng(devices):
                    return _train(recipe.located(), resume, first, console, build or build_model, stop)
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
    start = stop.step = int(checkpoint["global_step"]) if checkpoint else 0
    if start >= recipe.training.steps and (run / SCORES).is_file():
        if first:
            console.print(
                f"The run in {run} is finished, with {start} steps; to go on, give --resume --training.steps and a "
                f"number above {start}.",
                markup=False,
            )
        return None
    loggers = make_loggers(recipe, start, checkpoint.get("logged", {}) if checkpoint else {})
    train_data, val_data = datasets(recipe)
    info = train_data.info
    verified = verify_labels(recipe.data) if first and recipe.data is not None and not checkpoint else {}
    if verified and (warning := told_absent(verified, info, recipe.training.best)):
        console.print(warning, markup=False)
    if checkpoint and checkpoint.get("data") != fingerprint(train_data, val_data):
        raise UserError(
            f"The data in {recipe.data} are not those that the run in {run} was begun with: classes, names or sizes of "
            f"files differ; give theirs with --data, or go on with --model.init {run} in another --output."
        )
    channels = train_data.info.channels
    saved: dict[str, Any] = {}
    weights: dict[str, Tensor] | None = None
    if recipe.model.init is not None and not checkpoint:
        recipe, saved, weights = starting_point(recipe, recipe.model.init, len(channels or "RGB"))
    recipe = for_channels(recipe, channels)
    if first and channels is not None:
        console.print(
            f"The pictures have {channels}: model.in_channels is {len(channels)}, model.mean and model.std are those "
            "of dataset.yaml unless given. augment.photometric varies brightness and contrast alone; augment.grey and "
            "augment.jpeg are left out.",
            markup=False,
        )
    # A checkpoint holds the backbone's weights: where they first came from need not be there any more.
    bare = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, pretrained=False, weights=None))
    model = build(bare if checkpoint else recipe, train_data)
    if first and (origin := getattr(trunk(model.backbone), "origin", None)):
        console.print(f"{origin}.", markup=False)
    try:
        ids = tuple(raw_ids(info.classes, info.mapping).tolist())
    except UserError:  # the masks had colours
        ids = None
    require_score(recipe.training.best, info)
    pixels = counted(train_data, verified.get("train")) if wants_counts(recipe) else None
    loss = build_loss(recipe, info, pixels)
    if first and pixels is not None:
        console.print(told_counts(pixels, info), markup=False)
    rare = RareClasses(pixels) if pixels is not None and wants_draws(recipe) else None
    custom = CustomAugment.load(recipe.augment.custom, info) if recipe.augment.custom else None
    augment = Augment(**{**vars(recipe.augment), "custom": custom, "channels": channels})
    stream = TrainingStream(train_data, augment, recipe.seed, recipe.training.steps * recipe.training.batch_size, rare)
    asked = recipe.model
    licence = first_licence(asked.backbone, asked.pretrained, asked.weights) or saved.get("backbone_licence")
    if checkpoint:
        licence = checkpoint.get("backbone_licence")
    model.metadata = Metadata(info.classes, info.colours, ids, recipe.inference(), licence, channels)
    # Not only when the first network is to be saved.
    model.saved_config()
    if weights is not None:
        told = start_from(model, weights, saved.get("classes"))
        if first:
            console.print(f"Started from {recipe.model.init}: {told}")
    if recipe.training.lora is not None:
        add_lora(trunk(model.backbone), recipe.training.lora)
    if checkpoint:
        require_same_network(checkpoint, model, run)
        steps = recipe.training.steps
        _require_validated(run, start, steps)
        if first:
            if (before := Recipe.load(run / RECIPE).training.steps) != steps:
                console.print(f"training.steps {before} -> {steps}: the learning rate falls to 0 at step {steps} now.")
            console.print(f"Continuing from step {start} to step {steps}.", markup=False)
    if first:
        recipe.save(run / RECIPE)
    try:
        if start < recipe.training.steps:
            # What tells that a run is finished: it may have been, of fewer steps.
            (run / SCORES).unlink(missing_ok=True)
            with _full_memory_told(recipe), quiet_lightning(recipe.training.matmul_precision):
                fit(recipe, model, loss, stream, val_data, start, loggers, console, stop)
        if not first:
            return None
        model = merged(model)
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


def _require_apart(run: Path, data: str | None) -> None:
    if data is not None and run.resolve() in (Path(data).resolve() / part for part in ("", *SPLITS)):
        raise UserError(f"The run folder {run} is the folder of the data, or a split of it; give another --output.")


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
        return CSSFormer(num_classes=len(data.info.classes), **arguments)
    except ValueError as error:
        raise UserError(f"The recipe's model cannot be built: {error}.") from error


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
