"""Starting from a trained network instead of the backbone's pretrained weights: fine-tuning, also for other classes."""

import dataclasses
from typing import Any

from timm.models._manipulate import adapt_input_conv
from torch import Tensor

from cssformer.data.channels import Channels
from cssformer.model import SegmentationNetwork
from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError
from cssformer.utils.options import written
from cssformer.weights.hub import CLASS_LAYERS, load, metadata_of

NORMALISATION = ("backbone.pixel_mean", "backbone.pixel_std")


def starting_point(
    recipe: Recipe, source: str, channels: Channels | None = None
) -> tuple[Recipe, dict[str, Any], dict[str, Tensor]]:
    """The recipe with the input normalisation of the network to start from, and that network's config and weights.

    The recipe asks for no weights of the backbone any more, since it gets those.

    Args:
        recipe: what is to be trained.
        source: a run or model folder, a bundled model or a Hugging Face model id.
        channels: of the data; a network of another number of channels or type of values gives no normalisation.

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
    model = recipe.model.untrained()
    taken = metadata_of(saved).channels
    values, own_values = (each.values if each else "uint8" for each in (taken, channels))
    if (config.get("in_channels", 3), values) == (len(channels or "RGB"), own_values):
        model.mean, model.std = model.mean or config.get("mean"), model.std or config.get("std")
    else:
        weights = {name: value for name, value in weights.items() if name not in NORMALISATION}
    return dataclasses.replace(recipe, model=model), saved, weights


def start_from(model: SegmentationNetwork, weights: dict[str, Tensor], held: list[str] | None = None) -> str:
    """Load the weights whose names and shapes the model has; returns a sentence that tells what begins anew.

    Args:
        model: with the names of its classes in its metadata.
        weights: of another network.
        held: that network's classes. A class of the same name takes over what was learnt of it, at whatever place.
            Where either has no names, class layers of another number of classes begin anew.
    """
    own, classes = model.state_dict(), model.metadata.classes
    for name, value in weights.items():
        if name in own and value.ndim == 4 and value.shape[1] == 3 and own[name].shape[1] != 3:
            # The first layer, of photographs.
            weights = {**weights, name: adapt_input_conv(own[name].shape[1], value)}
    new = [] if held is None or classes is None else [name for name in classes if name not in held]
    if held is not None and classes is not None and held != list(classes):
        rows = [(number, held.index(name)) for number, name in enumerate(classes) if name in held]
        for layer in [name for name in weights.keys() & own.keys() if name.startswith(CLASS_LAYERS)]:
            mixed = own[layer].clone()
            if rows and mixed.shape[1:] == weights[layer].shape[1:]:
                mixed[[to for to, _ in rows]] = weights[layer][[at for _, at in rows]].to(mixed.dtype)
            weights = {**weights, layer: mixed}
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    anew = [name for name in own if name not in fitting] + [f"the class {name}" for name in new]
    names = ", ".join(anew[:4]) + (", ..." if len(anew) > 4 else "")
    rest = f"; anew begin: {names}" if anew else ""
    return f"{len(fitting)} of {len(own)} weights were taken over{rest}."
