"""Numbers that are not finite: a training ends at them or leaves their step out, and keeps the pictures to look at."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from cssformer.data import DatasetInfo
from cssformer.data.image_io import write_image
from cssformer.training.augmented import SHOWN, augmented_sheet
from cssformer.utils.atomic import atomic_write
from cssformer.utils.errors import UserError
from cssformer.utils.stop import Stop
from cssformer.utils.text import listed

NAMED = 4
"""Pictures that a sentence names."""
IN_A_ROW = 10
"""After so many steps in a row that were left out the training ends."""
PICTURES = "not_finite.npz"


class NonFinite(Callback):
    """Looks at the losses and the gradients before each optimiser step, and at all weights before they are saved.

    Where one is not finite, the pictures of the passes that gave it are written to ``not_finite.npz`` in the run
    folder, as the network got them: ``image`` (n, C, h, w), ``label`` (n, h, w), ``name`` (n); and as a sheet to
    ``not_finite.png``. Then the training ends with a UserError, or the step is left out: weights, moments and the
    statistics of BatchNorms stay as they were. All devices do the same.

    Args:
        run: the run folder.
        info: of the data.
        skip: leave such steps out, up to ``IN_A_ROW`` of them in a row.
        scaled: gradients may overflow, because their scale is looked for (float16), which leaves out steps by itself.
        stop: knows the step of the last checkpoint.
        console: where it is told.
    """

    def __init__(self, run: Path, info: DatasetInfo, skip: bool, scaled: bool, stop: Stop, console: Console) -> None:
        self.run, self.info, self.skip, self.scaled, self.stop, self.console = run, info, skip, scaled, stop, console
        self.losses: list[Tensor] = []
        self.batches: list[dict[str, Tensor]] = []
        self.buffers: list[Tensor] = []
        self.skipped = self.in_a_row = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        if self.skip and not self.batches:
            self.buffers = [buffer.clone() for buffer in pl_module.buffers()]
        self.batches.append(batch)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self.losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        losses = trainer.strategy.reduce(torch.stack(self.losses), reduce_op="mean").tolist()
        batches, self.losses, self.batches = self.batches, [], []
        bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)][:1]
        if not bad and (self.scaled or trainer.strategy.reduce_boolean_decision(_finite_gradients(pl_module))):
            self.in_a_row = 0
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        names = self._keep(trainer, batches, bad or list(range(len(batches))))
        what = (
            f"The loss at step {trainer.global_step + 1} ({names}) is {losses[bad[0]]}"
            if bad
            else (f"The gradient of step {trainer.global_step + 1} ({names}) is not finite")
        )
        if not self.skip:
            raise not_finite(what, trainer, ", or leave such steps out with training.non_finite skip")
        if self.in_a_row == IN_A_ROW:
            raise not_finite(f"{what}, as in the {IN_A_ROW - 1} steps before it,", trainer)
        # What has no gradient is no part of the optimiser's step.
        optimizer.zero_grad()
        for buffer, before in zip(pl_module.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        if trainer.is_global_zero:
            self.console.print(f"warning: {what}; the step is left out.", markup=False)

    def _keep(self, trainer: L.Trainer, batches: list[dict[str, Tensor]], passes: list[int]) -> str:
        """Write the pictures of these passes of a step, all devices together; names them, and the file."""

        def gathered(key: str) -> Any:
            parts = [batches[number][key] for number in passes]
            # NCCL and gloo take no int16.
            parts = [part if part.is_floating_point() or part.dtype == torch.uint8 else part.int() for part in parts]
            whole = [trainer.strategy.all_gather(part).reshape(-1, *part.shape[1:]) for part in parts]
            return torch.cat(whole).cpu().numpy()

        images, labels = gathered("image"), gathered("label")
        assert trainer.train_dataloader is not None
        stream, size = trainer.train_dataloader.dataset, len(images) // len(passes)
        first = (trainer.global_step * len(batches) + passes[0]) * size
        names = [stream.dataset[stream.source(first + item)].name for item in range(len(images))]
        told = f"of {listed(names[:NAMED], len(names))}"
        if trainer.is_global_zero:
            # A full disk is told by the next checkpoint.
            with suppress(UserError):
                with atomic_write(self.run / PICTURES) as path:
                    np.savez_compressed(path, image=images, label=labels, name=np.array(names))
                shown = np.where(np.isfinite(images[:SHOWN]), images[:SHOWN], 0).astype(images.dtype)
                sheet = augmented_sheet(shown.transpose(0, 2, 3, 1), labels[:SHOWN], self.info)
                write_image((self.run / PICTURES).with_suffix(".png"), sheet)
        return f"{told}, kept in {self.run / PICTURES}"

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _require_finite_weights(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        _require_finite_weights(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def not_finite(what: str, trainer: L.Trainer, otherwise: str = "") -> UserError:
    """The error that ends a training with numbers that overflowed."""
    own = next(callback for callback in trainer.callbacks if isinstance(callback, NonFinite))  # type: ignore[attr-defined]
    kept = f"the checkpoint of step {own.stop.step} stays" if own.stop.step else "there is no checkpoint yet"
    rate = max(group["initial_lr"] for group in trainer.optimizers[0].param_groups)
    return UserError(
        f"{what} with training.lr {rate:g}, so the training was stopped; {kept}; train anew into another --output with "
        "a lower training.lr, more training.warmup_steps, a training.clip, or training.precision 32 or bf16"
        f"{otherwise}."
    )


def _finite_gradients(module: L.LightningModule) -> bool:
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    own = [part for part in map(_own, gradients) if part.numel()]
    return not own or bool(torch.stack(torch._foreach_norm(own, math.inf)).isfinite().all())


def _require_finite_weights(trainer: L.Trainer) -> None:
    """Of what a checkpoint holds."""
    optimizer = trainer.optimizers[0].state.values()
    values = [value for state in (trainer.lightning_module.state_dict(), *optimizer) for value in state.values()]
    own = [_own(value) for value in values if isinstance(value, Tensor)]
    if not trainer.strategy.reduce_boolean_decision(all(bool(value.isfinite().all()) for value in own)):
        raise not_finite(f"The weights after step {trainer.global_step} are not finite", trainer)


def _own(value: Tensor) -> Tensor:
    """Of weights that are shared out each device sees its part."""
    return value.to_local() if isinstance(value, DTensor) else value
