"""What goes wrong in a training without stopping it, said while it runs."""

import math
from statistics import fmean
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from cssformer.training.callbacks import Progress
from cssformer.training.module import SegmentationTask

ROWS = 10
"""Rows of the metrics after which the loss should have fallen."""


class Watch(Callback):
    """Warns, of each thing once, of gradients that are all zero, a loss that does not fall and one class everywhere.

    Args:
        progress: comes before this among the callbacks; its rows are looked at when they are written.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.told: set[str] = set()
        self.alike = 0

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if trainer.global_step % self.progress.every:
            return
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        if not gradients or not torch.stack(torch._foreach_norm(gradients)).any():
            assert isinstance(pl_module, SegmentationTask)
            reason = (
                "there is one class alone, and what is not the object must be a class too"
                if pl_module.model.num_classes == 1 and not pl_module.metadata.multilabel
                else "perhaps all labels of its crops are ignored, or the loss has a weight of 0"
            )
            self._warn(
                trainer,
                "gradients",
                f"all gradients of step {trainer.global_step + 1} are zero, so nothing is learned from it; {reason}",
            )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step % self.progress.every:
            return
        losses = [float(row["loss"]) for row in self.progress.rows if row.get("loss")]
        late = fmean(losses[-ROWS // 2 :]) if len(losses) >= ROWS else -math.inf
        if losses and late >= losses[0]:
            rate = max(group["initial_lr"] for group in trainer.optimizers[0].param_groups)
            self._warn(
                trainer,
                "loss",
                f"the loss has not fallen: {losses[0]:.3f} at first, {late:.3f} at step {trainer.global_step}; perhaps "
                f"training.lr {rate:g} is too high or too low, or the labels are not those of the pictures",
            )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SegmentationTask)
        matrix = pl_module.confusion.reduce()
        called: str | int | None = None
        if pl_module.metadata.multilabel:
            called = "no class" if matrix[:, 1].any() and not matrix[:, :, 1].any() else None
        else:
            predicted, true = matrix.sum(dim=0).nonzero(), matrix.sum(dim=1).nonzero()
            if len(predicted) == 1 and len(true) > 1:
                names, index = pl_module.metadata.classes, int(predicted[0])
                called = names[index] if names else index
        self.alike = 0 if called is None else self.alike + 1
        # Many trainings begin so.
        if self.alike > 1 or (self.alike and trainer.global_step == trainer.max_steps):
            self._warn(
                trainer,
                "class",
                f"every pixel of the validation after step {trainer.global_step} is called {called}; perhaps "
                "training.lr is too high, "
                + (
                    "or the other classes are too rare without loss.class_weights"
                    if pl_module.recipe.loss.class_weights is None
                    else "or training.steps are too few"
                ),
            )

    def _warn(self, trainer: L.Trainer, what: str, sentence: str) -> None:
        if what not in self.told and trainer.is_global_zero:
            self.progress.console.print(f"warning: {sentence}.", markup=False)
        self.told.add(what)
