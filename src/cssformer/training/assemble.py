"""What a recipe is trained with: network, loss, crops and the pictures to validate."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from cssformer.backbones import add_lora, first_licence, trunk
from cssformer.data.class_pixels import verify_labels
from cssformer.data.custom import CustomAugment
from cssformer.data.dataset_info import DatasetInfo, raw_ids
from cssformer.data.rare_classes import RareClasses
from cssformer.data.stream import TrainingStream
from cssformer.data.transforms import Augment
from cssformer.model import CSSFormer, Metadata, SegmentationNetwork
from cssformer.training.best import require_score
from cssformer.training.datasets import Dataset, datasets, fingerprint, for_channels
from cssformer.training.finetune import start_from, starting_point
from cssformer.training.module import Loss, SegmentationTask
from cssformer.training.rare_classes import (
    build_loss,
    told,
    told_absent,
    told_counts,
    training_pixels,
    wants_counts,
    wants_draws,
)
from cssformer.training.recipe import Recipe
from cssformer.training.sharded import ShardedTask
from cssformer.utils.errors import UserError

LARGE = 1024
"""From so many channels on the decoder's size is told before it is built, which takes long."""

Build = Callable[[Recipe, Dataset], SegmentationNetwork]


@dataclass
class Assembly:
    """What is trained (with its recipe and loss), on what, and what it is validated on."""

    task: SegmentationTask
    stream: TrainingStream
    val_data: Dataset


def assemble(
    recipe: Recipe,
    console: Console,
    checkpoint: dict[str, Any] | None = None,
    build: Build | None = None,
    verify: bool = True,
    loss: Loss | None = None,
) -> Assembly:
    """Read the data and build the network, with the weights that it begins with.

    Args:
        recipe: what to train.
        console: where it is told what was found.
        checkpoint: of the run that is gone on with, whose weights are not loaded here.
        build: makes the network for the recipe and the training data; :func:`build_model` by default.
        verify: read every label first.
        loss: in place of the recipe's.

    Raises:
        UserError: the recipe asks for what cannot be, files are missing or wrong, or are not those of the checkpoint.
    """
    train_data, val_data = datasets(recipe)
    info, channels = train_data.info, train_data.info.channels
    verified = verify_labels(recipe.data) if verify and recipe.data is not None else {}
    if verified and (warning := told_absent(verified, info, recipe.training.best)):
        console.print(warning, markup=False)
    if checkpoint and checkpoint.get("data") != fingerprint(train_data, val_data):
        raise UserError(
            f"The data in {recipe.data} are not those that the run in {recipe.output} was begun with: classes, names "
            f"or sizes of files differ; give theirs with --data, or go on with --model.init {recipe.output} in another "
            "--output."
        )
    require_score(recipe.training.best, info)
    saved: dict[str, Any] = {}
    weights: dict[str, Tensor] | None = None
    if recipe.model.init is not None and not checkpoint:
        recipe, saved, weights = starting_point(recipe, recipe.model.init, channels)
    recipe = for_channels(recipe, channels)
    if channels is not None:
        console.print(
            f"The pictures have {channels}: model.in_channels is {len(channels)}, model.mean and model.std are those "
            "of dataset.yaml unless given. augment.photometric varies brightness and contrast alone; augment.grey and "
            "augment.jpeg are left out.",
            markup=False,
        )
    _tell_size(recipe, len(info.classes), console)
    # A checkpoint holds the backbone's weights: where they first came from need not be there any more.
    bare = dataclasses.replace(recipe, model=recipe.model.untrained())
    model = (build or build_model)(bare if checkpoint else recipe, train_data)
    if origin := getattr(trunk(model.backbone), "origin", None):
        console.print(f"{origin}.", markup=False)
    asked = recipe.model
    licence = first_licence(asked.backbone, asked.pretrained, asked.weights) or saved.get("backbone_licence")
    model.metadata = _metadata(recipe, info, checkpoint.get("backbone_licence") if checkpoint else licence)
    # Not only when the first network is to be saved.
    model.saved_config()
    if weights is not None:
        # A class's score among others that exclude it is not its own probability.
        alike = saved.get("multilabel", False) == info.multilabel
        taken = start_from(model, weights, saved.get("classes") if alike else [])
        console.print(f"Started from {recipe.model.init}: {taken}")
        if saved["architecture"] != type(model).__name__:
            console.print(
                f"warning: {recipe.model.init} is of the class {saved['architecture']}, this network of "
                f"{type(model).__name__}: weights of the same name may mean something else."
            )
    training = recipe.training
    if training.lora is not None:
        add_lora(trunk(model.backbone), training.lora)
    pixels = training_pixels(train_data, verified.get("train")) if wants_counts(recipe) else None
    if pixels is not None:
        console.print(told_counts(pixels, info), markup=False)
    if loss is None:
        loss = build_loss(recipe, info, pixels)
    elif isinstance(loss, nn.Module) and any(parameter.requires_grad for parameter in loss.parameters()):
        raise UserError("The loss has parameters of its own, which would not learn; give one without, or freeze them.")
    rare = RareClasses(pixels) if pixels is not None and wants_draws(recipe) else None
    for sentence in told(loss, rare, info):
        console.print(sentence)
    if training.thaw_after >= training.steps:
        console.print(
            f"warning: training.thaw_after {training.thaw_after} is not below training.steps {training.steps}, so the "
            "backbone learns nothing."
        )
    task = ShardedTask if training.strategy == "fsdp" else SegmentationTask
    return Assembly(task(model, recipe, loss), _stream(recipe, train_data, rare), val_data)


def _metadata(recipe: Recipe, info: DatasetInfo, licence: str | None) -> Metadata:
    try:
        ids = tuple(raw_ids(info.classes, info.mapping).tolist())
    except UserError:  # the masks had colours
        ids = None
    return Metadata(info.classes, info.colours, ids, recipe.inference(), licence, info.channels, info.multilabel)


def _stream(recipe: Recipe, data: Dataset, rare: RareClasses | None) -> TrainingStream:
    """The crops of the whole run."""
    info, training = data.info, recipe.training
    custom = CustomAugment.load(recipe.augment.custom, info) if recipe.augment.custom else None
    own = {"custom": custom, "channels": info.channels, "multilabel": info.multilabel}
    augment = Augment(**{**vars(recipe.augment), **own})
    return TrainingStream(data, augment, recipe.seed, training.steps * training.batch_size, rare)


def _tell_size(recipe: Recipe, classes: int, console: Console) -> None:
    if recipe.model.channels < LARGE:
        return
    with torch.device("meta"):
        model = recipe.model.untrained().build(classes)
    count = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"model.channels {recipe.model.channels} makes a network of {count / 1e6:,.0f} million parameters, with "
        f"gradients and moments {16 * count / 2**30:,.1f} GiB; building it takes a while."
    )


def build_model(recipe: Recipe, data: Dataset) -> CSSFormer:
    """The network of the recipe for the classes of the data, initialised from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return recipe.model.build(len(data.info.classes))
