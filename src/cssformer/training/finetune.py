"""Starting from a trained network instead of the backbone's pretrained weights: fine-tuning, also for other classes."""

import dataclasses

from torch import Tensor

from cssformer.model import SegmentationNetwork
from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError
from cssformer.utils.options import written
from cssformer.weights.hub import load


def starting_point(recipe: Recipe, source: str) -> tuple[Recipe, dict[str, Tensor]]:
    """The recipe with the input normalisation of the network to start from, and that network's weights.

    The recipe asks for no weights of the backbone any more, since it gets those.

    Args:
        recipe: what is to be trained.
        source: a model folder, a run folder or a model id of the Hugging Face hub.

    Raises:
        UserError: there is no such network, or its weights mean something else.
    """
    saved, weights = load(source)
    config = saved["network"]
    asked, held = recipe.model.backbone, str(config.get("backbone"))
    # What follows the full stop only tells which of timm's weights were meant.
    if asked.partition(".")[0] != held.partition(".")[0]:
        raise UserError(
            f"The network in {source} (model.init) has the backbone {held}, the recipe's model.backbone is {asked}; "
            "make them equal, best by giving that network's own recipe.yaml as --config."
        )
    asked_for = dataclasses.asdict(recipe.model)
    # Where shapes stay the same, weights of another kind would be taken over without a word.
    for key in ("heads", "points", "mean", "std", "backbone_args"):
        own, other = asked_for[key], config.get(key)
        own, other = (list(value) if isinstance(value, tuple) else value for value in (own, other))
        if key in config and own is not None and own != other:
            raise UserError(
                f"The network in {source} (model.init) has {key} {other}, the recipe's model.{key} is {own}, for which "
                f"its weights mean something else; give --model.{key} {written(other)}, or start from another network."
            )
    model = dataclasses.replace(
        recipe.model,
        pretrained=False,
        weights=None,
        mean=recipe.model.mean or config.get("mean"),
        std=recipe.model.std or config.get("std"),
    )
    return dataclasses.replace(recipe, model=model), weights


def start_from(model: SegmentationNetwork, weights: dict[str, Tensor]) -> str:
    """Load the weights whose names and shapes the model has; returns a sentence that tells what begins anew.

    Class layers are among these where the number of classes differs.
    """
    own = model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    anew = [name for name in own if name not in fitting]
    names = ", ".join(anew[:4]) + (", ..." if len(anew) > 4 else "")
    return f"{len(fitting)} of {len(own)} weights were taken over; anew begin: {names or 'none'}."
