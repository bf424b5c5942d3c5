"""What a recipe does for rare classes: the loss weighted by what the training labels hold, crops, and words of it."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from cssformer.data import DatasetInfo
from cssformer.data.class_pixels import class_pixels, class_shares
from cssformer.data.dataset import Samples
from cssformer.data.multilabel import with_class
from cssformer.data.rare_classes import RareClasses
from cssformer.losses import SegmentationLoss, class_weights
from cssformer.training.module import Loss
from cssformer.training.recipe import OF_CLASS, Recipe
from cssformer.utils.errors import UserError
from cssformer.utils.text import listed

MOST_TOLD = 8
"""So many classes are named in a sentence."""


def wants_counts(recipe: Recipe) -> bool:
    """Whether the classes of the training labels must be counted, which reads them all."""
    return isinstance(recipe.loss.class_weights, str) or wants_draws(recipe)


def wants_draws(recipe: Recipe) -> bool:
    """Whether rare classes are drawn."""
    return bool(recipe.augment.rare_class_crops or recipe.augment.paste)


def training_pixels(train_data: Samples, verified: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """What :func:`class_pixels` gives for the training pictures, as ``verify_labels`` found it, if it was called.

    Raises:
        UserError: a label cannot be read or has an id outside the classes, or no pixel is labelled.
    """
    pixels = class_pixels(train_data) if verified is None else verified
    if not with_class(pixels).any():
        raise UserError("The training labels hold no labelled pixel, so there are no rare classes to count.")
    return pixels


def told_absent(verified: Mapping[str, NDArray[np.int64]], info: DatasetInfo, best: str) -> str | None:
    """A sentence on the classes that no training label holds, if there are any.

    Args:
        verified: of :func:`cssformer.data.class_pixels.verify_labels`.
        best: the recipe's ``training.best``.

    Raises:
        UserError: it is the score of a class that no validation label holds.
    """
    absent = {
        split: [name for name, total in zip(info.classes, with_class(pixels).sum(axis=0), strict=True) if not total]
        for split, pixels in verified.items()
    }
    if best in (OF_CLASS + name for name in absent["val"]):
        raise UserError(f"training.best is {best!r}, but no validation label holds that class; give another.")
    missing = absent["train"]
    named = listed(missing[:MOST_TOLD], len(missing))
    return f"warning: no training label holds {named}, which cannot be learned." if missing else None


def build_loss(recipe: Recipe, info: DatasetInfo, pixels: NDArray[np.integer] | None) -> SegmentationLoss:
    """The recipe's loss.

    Args:
        recipe: its ``loss`` and ``training.auxiliary_weight``.
        info: the classes.
        pixels: of :func:`cssformer.data.class_pixels.class_pixels`, where the recipe :func:`wants_counts`.

    Raises:
        UserError: the recipe lists other than one weight a class, or none above 0.
    """
    weighting = recipe.loss.class_weights
    if isinstance(weighting, str):
        assert pixels is not None
        weights = class_weights(pixels, weighting)
    elif weighting is not None:
        if len(weighting) != len(info.classes):
            raise UserError(
                f"The recipe's loss.class_weights has {len(weighting)} numbers, but there are {len(info.classes)} "
                f"classes: {', '.join(info.classes)}."
            )
        if not any(weighting):
            raise UserError("The recipe's loss.class_weights are all 0; one at least must be above 0.")
        weights = torch.tensor(weighting)
    else:
        weights = None
    options = {**dataclasses.asdict(recipe.loss), "class_weights": weights, "multilabel": info.multilabel}
    return SegmentationLoss(**options, auxiliary_weight=recipe.training.auxiliary_weight)


def told_counts(pixels: NDArray[np.integer], info: DatasetInfo) -> str:
    """Each class's share of the training pixels, and the number of pictures that hold it."""
    shares, pictures = 100 * class_shares(pixels), (with_class(pixels) > 0).sum(axis=0)
    parts = zip(info.classes, shares, pictures, strict=True)
    named = ", ".join(f"{name} {share:.2f} % in {count}" for name, share, count in parts)
    return f"classes of the {len(pixels)} training pictures: {named}"


def told(loss: Loss, rare: RareClasses | None, info: DatasetInfo) -> Iterator[str]:
    """Sentences on what is weighted and what is drawn."""
    if isinstance(loss, SegmentationLoss) and loss.class_weights is not None:
        pairs = zip(info.classes, loss.class_weights.tolist(), strict=True)
        yield "class weights: " + ", ".join(f"{name} {weight:.3g}" for name, weight in pairs)
    if rare is not None:
        often = np.argsort(-rare.chances, kind="stable")[:MOST_TOLD]
        named = [f"{info.classes[index]} {100 * rare.chances[index]:.1f} %" for index in often]
        yield f"rare classes are drawn by inverse frequency: {listed(named, len(rare.chances))}"
