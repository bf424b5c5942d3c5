"""Numbers that are not finite end a training before they are saved, or their step is as if it had never been."""

import csv
import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from cssformer.data import Sample, SyntheticScenes
from cssformer.data.channels import Channels
from cssformer.data.stream import TrainingStream
from cssformer.data.transforms import Augment
from cssformer.training import assemble
from cssformer.training import train as runs
from cssformer.training.module import SegmentationTask
from cssformer.training.non_finite import IN_A_ROW
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.training.run_folder import LAST, read_checkpoint
from cssformer.utils.digest import digest
from cssformer.utils.errors import UserError
from cssformer.weights.hub import load

BATCH, BAD = 4, 5
"""Pictures of a step, and the one that is infinite."""
drawn = TrainingStream.__getitem__


def recipe(output: Path, **training: Any) -> Recipe:
    values = {"steps": 3, "batch_size": BATCH, "warmup_steps": 0, "log_every": 1, "validate_every": 2, "workers": 0}
    return Recipe(
        output=str(output),
        model=ModelConfig(backbone="test_resnet", channels=16, heads=2, points=2, dropout=0.0),
        scenes=ScenesConfig(count=8, val_count=2, size=(32, 32)),
        augment=AugmentConfig(crop=(32, 32), scale=(1.0, 1.33)),
        training=TrainingConfig(**{**values, **training}),
    )


def quiet() -> Console:
    return Console(file=io.StringIO(), width=1000)


@pytest.mark.parametrize(
    ("value", "at", "ema"), [(float("nan"), 4, None), (float("inf"), 2, 0.9), (float("-inf"), 5, 0.9)]
)
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
    with pytest.raises(
        UserError, match=rf"loss at step {at} .* is -?(nan|inf) with training\.lr 0\.5, .*{told}.*lower"
    ) as caught:
        runs.train(asked, console=quiet())
    # The first pass of the step, of two pictures.
    scenes = SyntheticScenes(8, (32, 32), asked.seed)
    stream = TrainingStream(scenes, Augment(**vars(asked.augment)), asked.seed, 6 * BATCH)
    items = [(at - 1) * BATCH + item for item in range(2)]
    names = [scenes[stream.source(item)].name for item in items]
    file = tmp_path / "not_finite.npz"
    assert f"step {at} (of {', '.join(names)}, kept in {file}) is" in str(caught.value)
    with np.load(file) as kept_pictures:
        assert kept_pictures["name"].tolist() == names
        for key in ("image", "label"):
            expected = np.stack([drawn(stream, item)[key].numpy() for item in items])
            assert np.array_equal(kept_pictures[key], expected)
        assert kept_pictures["image"].dtype == np.uint8
    assert cv2.imread(str(file.with_suffix(".png"))) is not None
    assert (tmp_path / LAST).exists() == (tmp_path / "model").exists() == bool(kept)
    if kept:
        assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == kept
        weights = [*read_checkpoint(tmp_path, True)["state_dict"].values(), *load(tmp_path)[1].values()]
        assert all(value.isfinite().all() for value in weights)


def test_a_gradient_that_is_not_finite_ends_the_training_before_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SegmentationTask.training_step

    def steep(self: SegmentationTask, batch: Any, index: int) -> torch.Tensor:
        # The loss is finite, its gradient is not.
        return step(self, batch, index) + (self.model.head.classify.weight.sum() * 0).sqrt()

    monkeypatch.setattr(SegmentationTask, "training_step", steep)
    with pytest.raises(
        UserError, match=r"gradient of step 1 \(of .*\) is not finite with .*\.lr 0\.006.*non_finite skip\.$"
    ):
        runs.train(recipe(tmp_path, steps=1), console=quiet())
    assert not list(tmp_path.rglob("*.ckpt"))


def test_weights_that_the_last_step_spoils_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.AdamW.step

    def spoilt(self: torch.optim.AdamW, closure: Any) -> Any:
        loss = step(self, closure)
        self.param_groups[0]["params"][0].data.fill_(torch.inf)
        return loss

    monkeypatch.setattr(torch.optim.AdamW, "step", spoilt)
    with pytest.raises(UserError, match=r"weights after step 1 are not finite with training\.lr 0\.006"):
        runs.train(recipe(tmp_path, steps=1), console=quiet())
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_validation_of_logits_that_are_not_finite_is_no_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(module: nn.Module, inputs: Any, outputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
        return None if module.training else [value / 0 for value in outputs]

    build = assemble.build_model

    def broken(*arguments: Any) -> nn.Module:
        model = build(*arguments)
        model.backbone.register_forward_hook(overflow)
        return model

    with pytest.raises(UserError, match="class scores after step 2 are not finite.*no checkpoint yet"):
        runs.train(recipe(tmp_path), console=quiet(), build=broken)
    assert not list(tmp_path.rglob("*.ckpt"))


class Floats(SyntheticScenes):
    """Scenes of two channels of float32, each as bright as its number."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.info = dataclasses.replace(self.info, channels=Channels("float32", (0.0, 0.0), (1.0, 1.0)))

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        noise = np.random.default_rng(index).normal(index, 1e-3, (*sample.label.shape, 2))
        return sample._replace(image=noise.astype(np.float32))


CUSTOM = f"""
import numpy as np

def augment(image, mask):
    return {{"image": np.where(np.abs(image - {BAD}).max() < 0.1, np.float32(np.inf), image), "mask": mask}}
"""


@pytest.fixture
def infinite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AugmentConfig:
    """One of the eight pictures becomes infinite by a user's augmentation."""
    (tmp_path / "spoiling.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("cssformer.training.datasets.SyntheticScenes", Floats)
    return AugmentConfig(crop=(32, 32), scale=(1.0, 1.0), photometric=False, custom="spoiling.augment")


def steps_of(asked: Recipe) -> list[bool]:
    """Whether each step of a recipe sees the infinite picture."""
    stream = TrainingStream(Floats(8, (32, 32)), Augment((32, 32)), asked.seed, asked.training.steps * BATCH)
    return [
        BAD in [stream.source(step * BATCH + item) for item in range(BATCH)] for step in range(asked.training.steps)
    ]


@pytest.mark.parametrize(
    "options",
    [{"ema": 0.5, "device_batch": 2}, {"optimizer": "muon"}, {"precision": "bf16", "clip": None}],
    ids=["ema", "muon", "bf16"],
)
def test_a_step_that_is_left_out_never_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, infinite: AugmentConfig, options: dict[str, Any]
) -> None:
    options |= {"power": 0.0, "validate_every": 100}
    asked = dataclasses.replace(recipe(tmp_path / "skip", steps=6, non_finite="skip", **options), augment=infinite)
    bad, console = steps_of(asked), quiet()
    assert sum(bad) == 3
    runs.train(asked, console=console)
    good = [step for step, there in enumerate(bad) if not there]

    def without_bad(self: TrainingStream, item: int) -> dict[str, torch.Tensor]:
        self.length = 6 * BATCH
        return drawn(self, good[item // BATCH] * BATCH + item % BATCH)

    monkeypatch.setattr(TrainingStream, "__getitem__", without_bad)
    never = dataclasses.replace(recipe(tmp_path / "never", steps=3, **options), augment=infinite)
    runs.train(never, console=quiet())
    found, expected = (torch.load(tmp_path / name / LAST, weights_only=True) for name in ("skip", "never"))
    assert digest(found["state_dict"]) == digest(expected["state_dict"])
    assert digest(found["optimizer_states"]) == digest(expected["optimizer_states"])
    for key in ("current_model_state", "averaging_state"):
        assert digest(found.get(key)) == digest(expected.get(key))
    # Told, kept and counted.
    said = console.file.getvalue().splitlines()
    warnings = [line for line in said if line.startswith("warning: The loss at step")]
    assert [int(line.split()[5]) - 1 for line in warnings] == [step for step, there in enumerate(bad) if there]
    assert all("is nan; the step is left out." in line for line in warnings)
    assert any(line.startswith("step 6/6") and line.endswith("3 skipped") for line in said)
    with (tmp_path / "skip" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert [int(row["skipped"]) for row in rows] == np.cumsum(bad).tolist()
    with np.load(tmp_path / "skip" / "not_finite.npz") as kept:
        infinite_ones = np.isinf(kept["image"]).any(axis=(1, 2, 3))
        assert kept["image"].dtype == np.float32
        assert kept["name"][infinite_ones].tolist() == [Floats(8, (32, 32))[BAD].name]


def test_a_run_with_steps_left_out_resumes_to_the_same_bytes(tmp_path: Path, infinite: AugmentConfig) -> None:
    options = {"non_finite": "skip", "ema": 0.5, "power": 0.0, "validate_every": 3}
    whole = dataclasses.replace(recipe(tmp_path / "whole", steps=8, **options), augment=infinite)
    # The checkpoint is that of a step that was left out.
    last = max(step for step, bad in enumerate(steps_of(whole)[:7]) if bad) + 1
    part = dataclasses.replace(recipe(tmp_path / "part", steps=last, **options), augment=infinite)
    runs.train(whole, console=quiet())
    runs.train(part, console=quiet())
    part.training.steps = 8
    runs.train(part, resume=True, console=quiet())
    found, expected = (torch.load(tmp_path / name / LAST, weights_only=True) for name in ("part", "whole"))
    for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        assert digest(found[key]) == digest(expected[key])
    assert found["callbacks"]["NonFinite"] == expected["callbacks"]["NonFinite"]


def test_a_run_that_ended_goes_on_without_the_step(tmp_path: Path, infinite: AugmentConfig) -> None:
    asked = dataclasses.replace(recipe(tmp_path / "run", steps=4, validate_every=1), augment=infinite)
    first = steps_of(asked).index(True)
    with pytest.raises(
        UserError, match=f"loss at step {first + 1} .*the checkpoint of step {first} stays.*non_finite skip"
    ):
        runs.train(asked, console=quiet())
    asked.training.non_finite = "skip"
    said = quiet()
    runs.train(asked, resume=True, console=said)
    assert isinstance(said.file, io.StringIO)
    assert "training.non_finite stop -> skip." in said.file.getvalue()
    state = read_checkpoint(tmp_path / "run", True)
    assert state is not None and state["global_step"] == 4
    assert state["callbacks"]["NonFinite"]["skipped"] == sum(steps_of(asked))


def test_many_steps_in_a_row_that_are_not_finite_end_the_training_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SegmentationTask.training_step

    def overflow(self: SegmentationTask, batch: Any, index: int) -> torch.Tensor:
        return step(self, batch, index) * (float("nan") if index >= 2 else 1)

    monkeypatch.setattr(SegmentationTask, "training_step", overflow)
    asked = recipe(tmp_path, steps=40, non_finite="skip", batch_size=1, validate_every=2)
    with pytest.raises(
        UserError, match=f"loss at step {IN_A_ROW + 2} .* is nan, as in the {IN_A_ROW - 1} steps before"
    ):
        runs.train(asked, console=quiet())
    # Validations go on meanwhile, of the weights as they were.
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == IN_A_ROW


DEVICES = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {folder!r}]
import dataclasses
from cssformer.training import datasets, train as runs
from training.test_non_finite import Floats, recipe
from cssformer.training.recipe import AugmentConfig

datasets.SyntheticScenes = Floats
asked = recipe(Path({folder!r}) / "run", steps=4, devices=2, non_finite="skip", validate_every=4)
augment = AugmentConfig(crop=(32, 32), scale=(1.0, 1.0), photometric=False, custom="spoiling.augment")
runs.train(dataclasses.replace(asked, augment=augment))
"""


@pytest.mark.slow
def test_devices_leave_a_step_out_together(tmp_path: Path, infinite: AugmentConfig) -> None:
    program = tmp_path / "program.py"
    program.write_text(DEVICES.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path)))
    done = subprocess.run(
        [sys.executable, program],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    bad = steps_of(recipe(tmp_path, steps=4))
    assert done.stdout.count("the step is left out") == sum(bad) == 2
    state = read_checkpoint(tmp_path / "run", True)
    assert state is not None and all(value.isfinite().all() for value in state["state_dict"].values())
    assert state["callbacks"]["NonFinite"]["skipped"] == 2
    with np.load(tmp_path / "run" / "not_finite.npz") as kept:
        # One device alone saw it; all their pictures are kept.
        assert kept["image"].shape == (BATCH, 2, 32, 32)
        assert np.isinf(kept["image"]).any(axis=(1, 2, 3)).sum() == 1
