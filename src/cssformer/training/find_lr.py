"""A learning rate to begin with: the range test (Smith, "Cyclical Learning Rates for Training Neural Networks", 2017).

The rate rises from step to step. Where the loss is least it is nearly too high; a tenth of it is taken, as fastai does.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from cssformer.data.sampler import ResumableBatchSampler
from cssformer.training.assemble import assemble
from cssformer.training.estimate import fitting_batch
from cssformer.training.fit import PRECISIONS, accelerator, quiet_lightning, split_batch
from cssformer.training.optim import make_optimizer
from cssformer.training.recipe import Recipe
from cssformer.utils.console import plain_console
from cssformer.utils.errors import UserError

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 100
SMOOTHING = 0.9
"""Of the losses' moving average."""
WORSE = 2.0
"""At so many times the least loss the test ends."""
ROWS = 12


@dataclass(frozen=True)
class RangeTest:
    """The smoothed ``losses`` at rising learning ``rates``."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def suggested(self) -> float:
        """A tenth of the rate at which the loss is least, with one digit."""
        return float(f"{self.rates[int(np.argmin(self.losses))] / 10:.0e}")

    def table(self) -> list[tuple[str, str]]:
        """Rates and losses for people, with a heading."""
        shown = np.linspace(0, len(self.rates) - 1, min(ROWS, len(self.rates))).round().astype(int)
        return [("learning rate", "loss"), *((f"{self.rates[row]:.1e}", f"{self.losses[row]:.3f}") for row in shown)]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**dataclasses.asdict(self), "suggested": self.suggested}


def find_lr(recipe: Recipe) -> RangeTest:
    """Train the recipe's network for at most a hundred steps at rising rates, on one device, and keep nothing of it.

    Raises:
        UserError: as :func:`cssformer.training.train.train`, or the loss is not finite from the first step on.
    """
    longer = dataclasses.replace(
        recipe.located(), training=dataclasses.replace(recipe.training, steps=STEPS, thaw_after=0)
    )
    assembly = assemble(longer, plain_console())
    task, training = assembly.task, dataclasses.replace(recipe.training, lr=1.0)
    with quiet_lightning(training.matmul_precision):
        fabric = L.Fabric(accelerator=accelerator(), devices=1, precision=PRECISIONS[training.precision])
        most = training.device_batch
        at_once = fitting_batch(task, fabric.device) if most == "auto" else most
        size, passes = split_batch(training.batch_size, at_once, 1)
        batches = ResumableBatchSampler(STEPS * passes, size, 0, 0, 1)
        loader = DataLoader(assembly.stream, batch_sampler=batches, num_workers=training.workers)
        task, optimizer = fabric.setup(task, make_optimizer(task.model, training))
        factors = [group["lr"] for group in optimizer.param_groups]
        rates: list[float] = []
        losses: list[float] = []
        average = total = 0.0
        for number, batch in enumerate(fabric.setup_dataloaders(loader), start=1):
            with fabric.autocast():
                loss = task.training_step(batch, number)
            fabric.backward(loss / passes)
            total += loss.item() / passes
            if number % passes:
                continue
            step = len(rates) + 1
            average = SMOOTHING * average + (1 - SMOOTHING) * total
            smooth, total = average / (1 - SMOOTHING**step), 0.0
            if not math.isfinite(smooth) or (losses and smooth > WORSE * min(losses)):
                break
            rates.append(LOWEST * (HIGHEST / LOWEST) ** ((step - 1) / (STEPS - 1)))
            losses.append(smooth)
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = rates[-1] * factor
            if training.clip is not None:
                fabric.clip_gradients(task, optimizer, max_norm=training.clip)
            optimizer.step()
            optimizer.zero_grad()
    if not losses:
        raise UserError("The loss of the first step is not finite, so no learning rate can be told from it.")
    return RangeTest(tuple(rates), tuple(losses))
