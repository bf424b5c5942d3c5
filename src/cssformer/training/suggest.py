"""The recipe that data and machine ask for, with what it takes, and why, before anything is trained."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cssformer.metrics.profile import multiply_adds
from cssformer.training.estimate import GIB, fitting, needs
from cssformer.training.module import SegmentationTask
from cssformer.training.presets import SOONER, DataFacts, choose_preset
from cssformer.training.recipe import Recipe
from cssformer.utils.device import best_device, device_name
from cssformer.utils.memory import total_memory


@dataclass(frozen=True)
class Cost:
    """What training by a recipe takes.

    Attributes:
        parameters: of the network.
        crop_bytes: that each crop of a pass keeps for its gradients, see
            :func:`cssformer.training.estimate.kept_bytes`.
        crop_multiply_adds: of the forward pass of a crop; training takes about three times as many.
        fitting: crops at a time that fit the device, at most the recipe's batch.
    """

    parameters: int
    crop_bytes: float
    crop_multiply_adds: int
    fitting: int


def cost_of(recipe: Recipe, classes: int, device: str) -> Cost:
    """Counted on the network with random weights."""
    model = recipe.model.untrained().build(classes)
    counts = multiply_adds(model, recipe.augment.crop)
    del counts["interpolation"]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    task = SegmentationTask(model, recipe)
    needed = needs(task)
    at_once = fitting(needed, torch.device(device), recipe.training.batch_size)
    return Cost(parameters, needed[1], sum(counts.values()), at_once)


@dataclass(frozen=True)
class Suggestion:
    """A preset for a prepared folder on a device, why it is taken, and what it costs."""

    data: Path
    facts: DataFacts
    device: str
    name: str
    reason: str
    recipe: Recipe
    cost: Cost

    @property
    def command(self) -> str:
        """What trains by it."""
        training = self.recipe.training
        asked = training.device_batch
        fewer = isinstance(asked, int) and self.cost.fitting < min(asked, training.batch_size)
        batch = f" --training.device_batch {self.cost.fitting}" if fewer else ""
        return f"cssformer train --data {shlex.quote(str(self.data))} --config {self.name}{batch}"

    def sentences(self) -> list[str]:
        """For people, with the command at the end."""
        training, (height, width), cost = self.recipe.training, self.recipe.augment.crop, self.cost
        device = torch.device(self.device)
        seen = training.steps * training.batch_size / max(1, self.facts.pictures)
        return [
            f"{self.data}: {self.facts}",
            f"this machine: {device_name(self.device)} with {total_memory(device) / GIB:,.0f} GiB",
            f"{self.name} is suggested, for {self.reason}",
            f"its network on {self.recipe.model.backbone}: {cost.parameters / 1e6:,.1f} million parameters",
            f"each crop of {height}x{width} keeps {cost.crop_bytes / GIB:,.2f} GiB, so {cost.fitting} of a step's "
            f"{training.batch_size} fit at a time, and takes 3 x {cost.crop_multiply_adds / 1e9:,.0f} billion "
            "multiply-adds",
            f"{training.steps} steps see each picture {seen:,.0f} times",
            *([SOONER] if self.name == "cpu" else []),
            self.command,
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        told = {"facts": asdict(self.facts), "device": self.device, "config": self.name, "reason": self.reason}
        return {**told, "cost": asdict(self.cost), "command": self.command}


def suggest(data: Path) -> Suggestion:
    """Read the training labels of a prepared folder, as training does, and choose a preset.

    Raises:
        UserError: the folder is no prepared one, or a label or the head of a picture cannot be read.
    """
    facts, device = DataFacts.of(data), best_device()
    name, reason = choose_preset(facts, device)
    recipe = Recipe.load(name)
    return Suggestion(data, facts, device, name, reason, recipe, cost_of(recipe, facts.classes, device))
