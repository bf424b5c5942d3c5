"""Which validation is the best one: its network is kept, and without a better one the training may end."""

import math
import textwrap
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from cssformer.data import DatasetInfo
from cssformer.data.channels import rgb_view
from cssformer.metrics.confusion import Scores, intersection_over_union, mean_of_present, percent
from cssformer.training.loggers import log_picture
from cssformer.training.module import SegmentationTask
from cssformer.training.non_finite import not_finite
from cssformer.training.recipe import BOUNDARY_IOU, MIOU, OF_CLASS
from cssformer.utils.console import counted
from cssformer.utils.errors import UserError
from cssformer.utils.options import nearest
from cssformer.visualize.drawing import colourise
from cssformer.weights.hub import load


def require_score(name: str, info: DatasetInfo) -> None:
    """Raise UserError if a recipe's ``training.best`` is no score of these classes."""
    known = [MIOU, BOUNDARY_IOU, *(OF_CLASS + each for each in info.classes)]
    if name not in known:
        near = nearest(name, known)
        raise UserError(
            f"training.best is {name!r}, which is no score; "
            + (f"the nearest one is {near[0]!r}." if near else f"give {MIOU}, {BOUNDARY_IOU} or {known[2]!r}.")
        )


class BestModel(Callback):
    """Scores validations (``mIoU``, a fraction), tells each class's IoU and writes the network of the best one so far.

    It comes before Average, which takes the averaged weights away at the same hook.

    Args:
        folder: for the network.
        info: the classes.
        score: which one decides, see :func:`require_score`.
        patience: after so many validations without a better one the training ends; None goes on.
        console: where it is told.
    """

    def __init__(self, folder: Path, info: DatasetInfo, score: str, patience: int | None, console: Console) -> None:
        self.folder, self.info, self.score, self.patience, self.console = folder, info, score, patience, console
        self.best = -math.inf
        self.since_best = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A run that had ended so is resumed.
        self._end_if_patience_is_over(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SegmentationTask)
        if not trainer.strategy.reduce_boolean_decision(pl_module.finite):
            raise not_finite(f"The class scores after step {trainer.global_step} are not finite", trainer)
        scores = pl_module.confusion.scores()
        miou = scores.miou
        pl_module.log("mIoU", torch.tensor(miou, dtype=torch.float32), prog_bar=True, logger=False, rank_zero_only=True)
        curves = {"mIoU": miou, **{f"IoU/{name}": iou for name, iou in zip(self.info.classes, scores.iou, strict=True)}}
        if pl_module.losses:
            losses = torch.stack(pl_module.losses)
            total = torch.stack([losses.sum(), torch.full_like(losses[0], len(losses))])
            summed, count = trainer.strategy.reduce(total, reduce_op="sum").tolist()
            curves["validation_loss"] = summed / count
        value = self._value(trainer, pl_module, scores)
        if self.score == BOUNDARY_IOU:
            curves[self.score] = value
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(curves, trainer.global_step)
            image, labels = (part.cpu().numpy() for part in pl_module.example)
            shown = rgb_view(image.transpose(1, 2, 0), self.info.channels)
            drawn = np.concatenate([shown, colourise(labels, self.info.palette)], axis=1)
            log_picture(trainer.loggers, drawn, trainer.global_step)
        # Without a labelled pixel there is no score, but the first network is the best one all the same.
        score = -1.0 if math.isnan(value) else value
        self.since_best += 1
        if score > self.best:
            self.best, self.since_best = score, 0
            if trainer.is_global_zero:
                pl_module.scored[0].save_pretrained(self.folder)
        self.table = [f"{name} {percent(iou)}" for name, iou in zip(self.info.classes, scores.iou, strict=True)]
        self.told = f"{self.score} {percent(value)} %, " + (
            f"the best is {percent(self.best if self.best >= 0 else math.nan)} %, "
            f"{counted(self.since_best, 'validation')} ago"
            if self.since_best
            else "the best so far"
        )

    def _value(self, trainer: L.Trainer, task: SegmentationTask, scores: Scores) -> float:
        if self.score == BOUNDARY_IOU:
            areas = trainer.strategy.reduce(task.boundary, reduce_op="sum").cpu().numpy()
            return float(mean_of_present(intersection_over_union(areas)))
        return scores.miou if self.score == MIOU else scores.iou[self.info.classes.index(self.score[len(OF_CLASS) :])]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            # Lines break between classes, not in them.
            entries = "  ".join(entry.replace(" ", "\u00a0") for entry in self.table)
            table = textwrap.fill(entries, 118, initial_indent="  ", subsequent_indent="  ").replace("\u00a0", " ")
            self.console.print(f"  {self.told}; IoU % of the classes:\n{table}", markup=False, highlight=False)
        self._end_if_patience_is_over(trainer)

    def _end_if_patience_is_over(self, trainer: L.Trainer) -> None:
        if self.patience is not None and self.since_best >= self.patience:
            trainer.should_stop = True
            if trainer.is_global_zero:
                self.console.print(
                    f"The training ends at step {trainer.global_step}: {counted(self.since_best, 'validation')} "
                    f"brought no better {self.score} (training.patience).",
                    markup=False,
                )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since_best": self.since_best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.since_best = state_dict["best"], state_dict["since_best"]
        try:
            if self.best > -math.inf:
                load(self.folder)
        except UserError as error:
            told = f"warning: the best network is lost; the next validation's takes its place. {error}"
            self.console.print(told, markup=False)
            self.best = -math.inf
