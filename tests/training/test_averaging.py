"""The average of the weights that is scored and kept."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from cssformer import CSSFormer
from cssformer.training.module import SegmentationTask
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.training.train import train
from cssformer.utils.errors import UserError

STEPS = 6
SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4, "img_size": 64}


class States(lightning.Callback):
    """The network after each step."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: SegmentationTask, *_: Any) -> None:
        self.states.append({name: value.clone() for name, value in pl_module.model.state_dict().items()})


def kept(folder: Path, model: dict[str, Any], **training: Any) -> tuple[dict[str, torch.Tensor], States]:
    states = States()
    recipe = Recipe(
        output=str(folder),
        model=ModelConfig(channels=16, heads=2, points=1, **model),
        scenes=ScenesConfig(count=4, val_count=1, size=(64, 64)),
        augment=AugmentConfig(crop=(64, 64)),
        training=TrainingConfig(
            steps=STEPS, batch_size=2, lr=0.01, warmup_steps=0, validate_every=STEPS, workers=0, **training
        ),
    )
    train(recipe, console=Console(file=io.StringIO()), callbacks=[states])
    return load_file(folder / "model" / "model.safetensors"), states


@pytest.mark.parametrize("options", [{"swa_after": 2}, {"swa_after": 0}, {"swa_after": 99}, {"ema": 0.9}])
def test_the_average_is_the_slow_one(tmp_path: Path, options: dict[str, Any]) -> None:
    found, states = kept(tmp_path, {"backbone": "test_resnet"}, **options)
    for name, value in found.items():
        after = np.stack([state[name].double().numpy() for state in states.states])
        if "num_batches" in name:
            expected = after[-1]
        elif "ema" in options:
            expected = after[0]
            for later in after[1:]:
                expected = 0.9 * expected + 0.1 * later
        else:
            # Of weights and of statistics; up to that step the last ones.
            expected = after[min(options["swa_after"], STEPS - 1) :].mean(axis=0)
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_is_no_weight_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.9 times 5 and 0.1 times 5 are less than 5 in float32, and were cut to 4."""
    scored: list[dict[str, torch.Tensor]] = []
    forward = SegmentationTask.forward_logits

    def recorded(self: SegmentationTask, images: torch.Tensor) -> torch.Tensor:
        scored.append({name: value.clone() for name, value in self.model.named_buffers()})
        return forward(self, images)

    monkeypatch.setattr(SegmentationTask, "forward_logits", recorded)
    model = {"backbone": "swin_tiny_patch4_window7_224", "backbone_args": SWIN}
    kept(tmp_path, model, ema=0.9)
    plain = dict(CSSFormer.from_pretrained(tmp_path).named_buffers())
    assert any("relative_position_index" in name for name in plain)
    for name, value in plain.items():
        assert torch.equal(scored[-1][name], value), name


def test_two_averages_are_refused() -> None:
    both = Recipe(training=dataclasses.replace(TrainingConfig(), ema=0.9, swa_after=3))
    with pytest.raises(UserError, match="two averages; leave one of them out"):
        both.require_sound()
