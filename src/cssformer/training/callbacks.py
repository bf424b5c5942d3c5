"""What happens beside the steps: the checkpoint to resume from, the metrics file, words about progress."""

import csv
import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, RichProgressBar
from rich.console import Console

from cssformer.metrics.confusion import percent
from cssformer.training.loggers import run_ids
from cssformer.training.module import SegmentationTask
from cssformer.training.non_finite import NonFinite
from cssformer.utils.atomic import atomic_csv
from cssformer.utils.errors import UserError
from cssformer.utils.stop import Interrupted, Stop

PATIENCE_SECONDS = 60.0
"""A first row of the metrics that comes later is announced."""


class ResumePoint(Checkpoint):
    """Keeps ``last.ckpt``: at every validation, and when asked to stop.

    A stop waits for the end of the optimiser step, and of the validation that follows it if one is due, so that
    the continued run repeats and skips nothing. As one of Lightning's checkpoints it comes after all other callbacks,
    whose state it keeps.
    """

    def __init__(self, path: Path, validate_every: int, stop: Stop, data: str, network: str) -> None:
        self.path = path
        self.validate_every = validate_every
        self.stop = stop
        self.data = data
        self.network = network

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, SegmentationTask)
        checkpoint["data"] = self.data
        checkpoint["network"] = self.network
        checkpoint["logged"] = run_ids(trainer.loggers)
        checkpoint["backbone_licence"] = pl_module.model.metadata.backbone_licence

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Of a run that was finished and is to take more steps, or has taken its steps in other passes.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        progress["is_last_batch"] = False
        passes = checkpoint["global_step"] * trainer.accumulate_grad_batches
        for counts in (progress["total"], progress["current"]):
            more = passes - counts["ready"]
            counts.update({name: count + more for name, count in counts.items()})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stop.ready()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if (trainer.fit_loop.epoch_loop.batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.global_step == trainer.max_steps:
            # Lightning validates before an early stop, so that the last step is always scored.
            trainer.should_stop = True
        elif self._asked(trainer) and trainer.global_step % self.validate_every:
            self._save(trainer)
            raise Interrupted(self.stop.number, self.stop.step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)
        if self._asked(trainer):
            raise Interrupted(self.stop.number, self.stop.step)

    def _asked(self, trainer: L.Trainer) -> bool:
        """Every device must stop at the same step."""
        return trainer.strategy.reduce_boolean_decision(self.stop.number is not None, all=False)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.stop.step = trainer.global_step


class ProgressBar(RichProgressBar):
    """Lightning's bar without what has no meaning in a run that is one long epoch."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "train"

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}


class Progress(Callback):
    """Writes ``metrics.csv`` (step, loss, lr, images_per_second, mIoU, skipped) and a line for each row.

    With ``training.non_finite: skip`` a row tells how many steps were left out so far. A terminal has a bar instead of
    lines.
    """

    FIELDS = ("step", "loss", "lr", "images_per_second", "mIoU", "skipped")

    def __init__(
        self,
        path: Path,
        start: int,
        steps: int,
        batch_size: int,
        every: int,
        non_finite: NonFinite,
        console: Console,
    ) -> None:
        self.path, self.non_finite = path, non_finite
        self.steps, self.batch_size, self.every = steps, batch_size, every
        self.console = console
        self.losses: list[torch.Tensor] = []
        self.rows = _read_rows(path, start)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since, self.step_since = time.monotonic(), trainer.global_step
        self.passes = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self._tell_duration(trainer)
        # Lightning has divided the loss, for the gradients of one step to be summed.
        self.losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        step = trainer.global_step
        if step == self.step_since or step % self.every:
            return
        loss = self._mean_loss(trainer)
        speed = (step - self.step_since) * self.batch_size / (time.monotonic() - self.since)
        lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        self.losses, self.since, self.step_since = [], time.monotonic(), step
        pl_module.log_dict({"loss": loss, "images/s": speed}, prog_bar=True, logger=False, rank_zero_only=True)
        curves = {"loss": loss, "lr": lr, "images_per_second": speed}
        if self.non_finite.skip:
            curves["skipped"] = self.non_finite.skipped
        for logger in trainer.loggers:
            logger.log_metrics(curves, step)
        self._write(trainer, {"step": step, **curves})
        left = timedelta(seconds=round((self.steps - step) * self.batch_size / speed))
        if not self.console.is_terminal and trainer.is_global_zero:
            skipped = f"  {self.non_finite.skipped} skipped" if self.non_finite.skipped else ""
            self.console.print(f"step {step}/{self.steps}  loss {loss:.3f}  {speed:.1f} images/s  {left} left{skipped}")

    def _tell_duration(self, trainer: L.Trainer) -> None:
        """By the second pass, the first one being slower, where the first row would come late."""
        self.passes += 1
        if self.passes == 1:
            self.first_pass = time.monotonic()
        elif self.passes == 2:
            step = (time.monotonic() - self.first_pass) * trainer.accumulate_grad_batches
            total = step * (self.steps - trainer.global_step)
            if step * min(self.every, self.steps) > PATIENCE_SECONDS and trainer.is_global_zero:
                together = timedelta(seconds=math.ceil(total))
                self.console.print(
                    f"About {step:.1f} seconds a step, {together} in all; fewer training.steps, a smaller "
                    "training.batch_size or augment.crop take less."
                )

    def _mean_loss(self, trainer: L.Trainer) -> float:
        """Over the passes since the last row and over all devices, without those of steps that were left out."""
        losses: torch.Tensor = trainer.strategy.reduce(torch.stack(self.losses), reduce_op="mean")
        return losses[losses.isfinite()].mean().item()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        miou = trainer.callback_metrics["mIoU"].item()
        self._write(trainer, {"step": trainer.global_step, "mIoU": miou})
        if trainer.is_global_zero:
            self.console.print(f"step {trainer.global_step}/{self.steps}  mIoU {percent(miou)} %")
        # The validation's seconds are not the training's.
        self.since += time.monotonic() - self.validation_since

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validation_since = time.monotonic()

    def _write(self, trainer: L.Trainer, row: dict[str, float]) -> None:
        if not trainer.is_global_zero:
            return
        self.rows.append({key: str(value) if key == "step" else f"{value:.6g}" for key, value in row.items()})
        with atomic_csv(self.path) as file:
            writer = csv.DictWriter(file, self.FIELDS)
            writer.writeheader()
            writer.writerows(self.rows)


def _read_rows(path: Path, start: int) -> list[dict[str, str]]:
    """The rows of an interrupted run up to the step it resumes from; raises UserError if they cannot be read."""
    if not start or not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if int(row["step"]) <= start]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged, a table of the run's metrics; mend or remove it.") from error
