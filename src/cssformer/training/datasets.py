"""The data that a recipe names."""

import dataclasses
import hashlib

from cssformer.data import SegmentationFolder, SyntheticScenes
from cssformer.data.channels import Channels
from cssformer.data.dataset import Samples
from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError

Dataset = SyntheticScenes | SegmentationFolder


def datasets(recipe: Recipe) -> tuple[Dataset, Dataset]:
    """The training and the validation split that the recipe names.

    Raises:
        UserError: no such folder.
    """
    if recipe.data is not None:
        return SegmentationFolder(recipe.data, "train"), SegmentationFolder(recipe.data, "val")
    scenes = recipe.scenes
    # Held-out scenes come from another seed.
    return SyntheticScenes(scenes.count, scenes.size, recipe.seed), SyntheticScenes(
        scenes.val_count, scenes.size, 1_000_000 + recipe.seed
    )


def for_channels(recipe: Recipe, channels: Channels | None) -> Recipe:
    """The recipe whose network takes the pictures of the data, normalised as the recipe says or by what was measured.

    Raises:
        UserError: the recipe asks for another number of channels, or gives statistics of another number.
    """
    count, model = 3 if channels is None else len(channels), recipe.model
    if model.in_channels not in (3, count):
        raise UserError(
            f"The recipe's model.in_channels is {model.in_channels}, but the pictures of {recipe.data or 'the scenes'} "
            f"have {count} channels; leave it out."
        )
    mean, std = model.mean, model.std
    if channels is not None:
        mean = mean or [value / channels.unit for value in channels.mean]
        # A channel may have one value alone.
        std = std or [(value or 1.0) / channels.unit for value in channels.std]
    for name, given in (("mean", mean), ("std", std)):
        if given is not None and len(given) != count:
            raise UserError(f"The recipe's model.{name} must have {count} values, one a channel, not {len(given)}.")
    return dataclasses.replace(recipe, model=dataclasses.replace(model, in_channels=count, mean=mean, std=std))


def fingerprint(*splits: Samples) -> str:
    """A digest of the classes of prepared folders and of the names and sizes of their files, wherever they lie."""
    hasher = hashlib.sha256()
    for data in splits:
        if isinstance(data, SegmentationFolder):
            kind = ("multilabel",) if data.info.multilabel else ()
            hasher.update(repr((data.info.classes, data.info.ignore, *kind)).encode())
            for name in data.names:
                files = [data.images[name], *([data.labels[name]] if data.labels else [])]
                hasher.update(repr([(path.name, path.stat().st_size) for path in files]).encode())
    return hasher.hexdigest()
