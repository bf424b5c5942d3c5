"""What a training reports of itself, and that it learns."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from cssformer.model.hub import load
from cssformer.training import train as runs
from cssformer.training.module import SegmentationTask
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.training.run_folder import LAST, read_checkpoint
from cssformer.utils.errors import UserError

# ConvNeXt has no BatchNorm, so a batch may be split without another result.
NO_BATCH_NORM = ModelConfig(
    backbone="convnext_atto",
    backbone_args={"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16]},
    channels=16,
    heads=2,
    points=2,
    dropout=0.0,
)


def recipe(output: Path, **training: Any) -> Recipe:
    values = {"steps": 3, "batch_size": 4, "warmup_steps": 0, "log_every": 1, "validate_every": 2, "workers": 0}
    return Recipe(
        output=str(output),
        model=NO_BATCH_NORM,
        scenes=ScenesConfig(count=8, val_count=2, size=(32, 32)),
        augment=AugmentConfig(crop=(32, 32), scale=(1.0, 1.33)),
        training=TrainingConfig(**{**values, **training}),
    )


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def quiet() -> Console:
    return Console(file=io.StringIO(), width=1000)


def test_the_reported_loss_does_not_depend_on_how_a_batch_is_split(tmp_path: Path) -> None:
    losses = []
    for size in (4, 2, 1):
        asked = recipe(tmp_path / str(size), steps=1, lr=0.0, device_batch=size)
        # The first two scenes hold no ignored pixels, so that the mean of means is the mean.
        asked.scenes.count = 2
        runs.train(asked, console=quiet())
        losses.append(float(rows(tmp_path / str(size))[0]["loss"]))
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)


@pytest.mark.parametrize(("value", "at"), [(float("nan"), 4), (float("inf"), 2), (float("-inf"), 5)])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_loss_that_is_not_finite_ends_the_training_before_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, at: int, ema: float | None
) -> None:
    step = SegmentationTask.training_step

    def overflow(self: SegmentationTask, batch: Any, index: int) -> torch.Tensor:
        loss = step(self, batch, index)
        return loss * value if self.global_step + 1 == at else loss

    monkeypatch.setattr(SegmentationTask, "training_step", overflow)
    asked = recipe(tmp_path, steps=6, log_every=10, device_batch=2, lr=0.5, ema=ema)
    kept = (at - 1) // 2 * 2
    told = f"checkpoint of step {kept} stays" if kept else "no checkpoint yet"
    with pytest.raises(UserError, match=rf"loss at step {at} is -?(nan|inf) with training\.lr 0\.5, .*{told}.*lower"):
        runs.train(asked, console=quiet())
    assert (tmp_path / LAST).exists() == (tmp_path / "model").exists() == bool(kept)
    if kept:
        assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == kept
        weights = [*read_checkpoint(tmp_path, True)["state_dict"].values(), *load(tmp_path)[1].values()]
        assert all(value.isfinite().all() for value in weights)


def test_weights_that_the_last_step_spoils_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = SegmentationTask.training_step

    def steep(self: SegmentationTask, batch: Any, index: int) -> torch.Tensor:
        # The loss is finite, its gradient is not.
        return step(self, batch, index) + (self.model.head.classify.weight.sum() * 0).sqrt()

    monkeypatch.setattr(SegmentationTask, "training_step", steep)
    with pytest.raises(UserError, match=r"weights after step 1 are not finite with training\.lr 0\.006"):
        runs.train(recipe(tmp_path, steps=1), console=quiet())
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_validation_of_logits_that_are_not_finite_is_no_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(module: nn.Module, inputs: Any, outputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
        return None if module.training else [value / 0 for value in outputs]

    build = runs.build_model

    def broken(*arguments: Any) -> nn.Module:
        model = build(*arguments)
        model.backbone.register_forward_hook(overflow)
        return model

    with pytest.raises(UserError, match="class scores after step 2 are not finite.*no checkpoint yet"):
        runs.train(recipe(tmp_path), console=quiet(), build=broken)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_four_pictures_are_learnt_by_heart(tmp_path: Path) -> None:
    asked = recipe(tmp_path, steps=60, lr=6e-3, log_every=10, validate_every=60)
    asked.scenes = ScenesConfig(count=4, val_count=1, size=(32, 32))
    asked.augment = AugmentConfig(crop=(32, 32), scale=(1.0, 1.0), flip=0.0, photometric=False)
    runs.train(asked, console=quiet())
    losses = [float(row["loss"]) for row in rows(tmp_path) if row["loss"]]
    # Measured: 2.5 in the first ten steps, 0.13 in the last ones.
    assert losses[0] > 1 and losses[-1] < 0.4
