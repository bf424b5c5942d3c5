"""What a run that is resumed goes on by: its own recipe, and what of it may change."""

import dataclasses
from pathlib import Path
from typing import Any

from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError
from cssformer.utils.options import written

CHANGEABLE = ("steps", "patience", "lr", "warmup_steps", "power", "batch_size", "device_batch", "non_finite")
"""Keys of ``training`` that a run may be continued with other values of."""


def resumed(begun: Recipe, asked_for: Recipe) -> Recipe:
    """The recipe that a run was begun with, to be continued with what may change of the one that is asked for.

    Raises:
        UserError: the run's data are not there, or other options than it was begun with are given.
    """
    recipe = dataclasses.replace(begun, output=asked_for.output)
    before, asked = (_flat(dataclasses.asdict(each.located())) for each in (recipe, asked_for))
    free = {"data", *(f"training.{name}" for name in CHANGEABLE)}
    if recipe.model.init is not None:
        # Without effect beside it, so that the run's own recipe asks for none.
        free |= {"model.pretrained", "model.weights"}
    # What was left to the data was written into the run's own.
    left = {"model.in_channels": 3, "model.mean": None, "model.std": None}
    free |= {key for key, value in left.items() if asked[key] == value}
    changed = [key for key in asked if asked[key] != before.get(key) and key not in free]
    if changed:
        raise UserError(
            f"--resume goes on by the run's own recipe, whose {changed[0]} is {written(before.get(changed[0]))}; "
            f"of a run's options only --data and --training.{', '.join(CHANGEABLE)} may change."
        )
    if asked_for.data is not None and not Path(asked_for.data).is_dir():
        raise UserError(f"There is no folder {asked_for.data}, the data of the run; tell their place with --data.")
    changes = {name: getattr(asked_for.training, name) for name in CHANGEABLE}
    if asked_for.training.device_batch == "auto":
        # The run keeps what was found when it was begun.
        del changes["device_batch"]
    return dataclasses.replace(recipe, data=asked_for.data, training=dataclasses.replace(recipe.training, **changes))


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys with their sections, as options are written."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, dict) and key != "backbone_args"
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat
