"""What a training reports of itself, and that it learns."""

import copy
import csv
import io
import logging
import math
import os
import re
import signal
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.torch_version import TorchVersion
from torch.utils.data import get_worker_info

from cssformer import CSSFormer
from cssformer.data import Sample, SyntheticScenes
from cssformer.model import SegmentationOutput
from cssformer.training import assemble
from cssformer.training import train as runs
from cssformer.training.fit import accelerator
from cssformer.training.module import SegmentationTask
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.training.run_folder import LAST
from cssformer.utils.digest import digest
from cssformer.utils.errors import UserError
from cssformer.weights.hub import load

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


def test_a_network_that_could_not_be_saved_is_told_before_the_first_step(tmp_path: Path, prepared: Path) -> None:
    described = prepared / "dataset.yaml"
    described.write_text(described.read_text().replace("tree", "t" * 201))
    asked = recipe(tmp_path / "run")
    asked.data = str(prepared)
    with pytest.raises(UserError, match="The network to be saved: classes must be .* at most 200 characters"):
        runs.train(asked, console=quiet())
    assert not (tmp_path / "run/metrics.csv").exists()


def test_labels_are_verified_once_for_a_run(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify, verified = assemble.verify_labels, []
    monkeypatch.setattr(assemble, "verify_labels", lambda folder: verified.append(folder) or verify(folder))
    asked = recipe(tmp_path / "run", steps=1)
    asked.data = str(prepared)
    runs.train(asked, console=quiet())
    asked.training.steps = 2
    runs.train(asked, resume=True, console=quiet())
    assert verified == [str(prepared)]


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


@pytest.mark.parametrize("ema", [None, 0.5])
def test_validation_sees_the_weights_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float | None
) -> None:
    """By way of the accelerated copy, whose parameters are the network's; with an average, those of the average."""
    seen: list[tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]] = []
    forward = SegmentationTask.forward_logits

    def recorded(task: SegmentationTask, images: torch.Tensor) -> torch.Tensor:
        logits = forward(task, images)
        seen.append((images.clone(), logits.clone(), copy.deepcopy(task.model.state_dict())))
        return logits

    monkeypatch.setattr(SegmentationTask, "forward_logits", recorded)
    runs.train(recipe(tmp_path, validate_every=1, lr=0.05, ema=ema), console=quiet())
    network = CSSFormer(**{**load(tmp_path / "model")[0]["network"]}).eval()
    for images, logits, state in seen:
        network.load_state_dict(state)
        with torch.no_grad():
            torch.testing.assert_close(network.forward_logits(images), logits, rtol=1e-4, atol=1e-5)
    (_, first, _), (_, last, validated) = seen[0], seen[-2]
    assert not torch.allclose(first, last, atol=1e-3)
    kept = torch.load(tmp_path / LAST, weights_only=True)
    trained = kept["current_model_state" if ema else "state_dict"]
    assert all(torch.equal(value, kept["state_dict"][f"model.{name}"]) for name, value in validated.items())
    assert all(torch.equal(value, trained[f"model.{name}"]) for name, value in validated.items()) == (ema is None)


def test_a_first_row_that_comes_late_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = r"About \d+\.\d seconds a step, .* in all; fewer training.steps"
    for name, patience in (("slow", 0.0), ("fast", 1e6)):
        monkeypatch.setattr("cssformer.training.callbacks.PATIENCE_SECONDS", patience)
        console = quiet()
        runs.train(recipe(tmp_path / name, steps=2, batch_size=4, device_batch=1), console=console)
        assert isinstance(console.file, io.StringIO)
        lines = console.file.getvalue().splitlines()
        assert len([line for line in lines if re.search(told, line)]) == (name == "slow")
        if name == "slow":
            # After two passes of four of the first step.
            assert re.match(r"About \d", lines[3]) and lines[4].startswith("step 1/2")


class Weighted(nn.Module):
    """A loss with a buffer, which checkpoints hold."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.linspace(1, 2, len(SyntheticScenes(1).info.classes)))

    def forward(self, output: SegmentationOutput, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output.logits, labels, self.weights)


class Counting(Callback):
    """Counts steps, also over a resumption."""

    steps = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.steps = state_dict["steps"]


def test_a_loss_and_callbacks_of_ones_own_are_resumed(tmp_path: Path) -> None:
    for name in ("whole", "part"):
        asked, counting = recipe(tmp_path / name, steps=2 if name == "part" else 3, power=0.0), Counting()
        best = ModelCheckpoint(tmp_path / name / "own", every_n_train_steps=1)
        runs.train(asked, console=quiet(), callbacks=[counting, best], loss=Weighted())
        assert list((tmp_path / name / "own").iterdir())
    asked.training.steps, counting = 3, Counting()
    runs.train(asked, True, quiet(), callbacks=[counting], loss=Weighted())
    assert counting.steps == 3
    found, expected = (
        torch.load(tmp_path / name / LAST, weights_only=True)["state_dict"] for name in ("part", "whole")
    )
    assert "loss.weights" in found and digest(found) == digest(expected)


def test_a_loss_that_learns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="loss has parameters of its own"):
        runs.train(recipe(tmp_path / "run"), console=quiet(), loss=nn.Linear(1, 1))
    assert not (tmp_path / "run").exists()


def test_four_pictures_are_learnt_by_heart(tmp_path: Path) -> None:
    asked = recipe(tmp_path, steps=60, lr=6e-3, log_every=10, validate_every=60)
    asked.scenes = ScenesConfig(count=4, val_count=1, size=(32, 32))
    asked.augment = AugmentConfig(crop=(32, 32), scale=(1.0, 1.0), flip=0.0, photometric=False)
    runs.train(asked, console=quiet())
    losses = [float(row["loss"]) for row in rows(tmp_path) if row["loss"]]
    # Measured: 2.5 in the first ten steps, 0.13 in the last ones.
    assert losses[0] > 1 and losses[-1] < 0.4


def test_a_library_call_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]

    def state() -> tuple[Any, ...]:
        levels = [logger.level for logger in loggers]
        precision = torch.get_float32_matmul_precision()
        return levels, list(warnings.filters), precision, torch.get_rng_state().tolist()

    before = state()
    runs.train(recipe(tmp_path, steps=1), console=quiet())
    assert state() == before


def _count(saved: Counter[str], tensor: torch.Tensor) -> torch.Tensor:
    saved["tensors"] += 1
    return tensor


def test_checkpointed_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {"image": torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8), "label": torch.randint(3, (2, 64, 64))}
    gradients, calls = [], []
    for on in (False, True):
        torch.manual_seed(0)
        model = CSSFormer("test_resnet", 3, channels=16, heads=2, points=2)
        task = SegmentationTask(model, Recipe(training=TrainingConfig(grad_checkpointing=on)))
        saved = Counter[str]()
        with torch.autograd.graph.saved_tensors_hooks(partial(_count, saved), lambda tensor: tensor):
            loss = task.training_step(batch, 0)
        loss.backward()
        calls.append(saved["tensors"])
        gradients.append([parameter.grad for parameter in model.backbone.parameters()])
    assert calls[1] < calls[0]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_backbone_without_checkpointing_is_told() -> None:
    model = CSSFormer("test_resnet", 3, channels=16, heads=2, points=2)
    model.backbone.body = nn.Identity()
    with pytest.raises(UserError, match=r"test_resnet knows no training\.grad_checkpointing"):
        SegmentationTask(model, Recipe(training=TrainingConfig(grad_checkpointing=True)))


def test_fewer_validation_pictures_than_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe(tmp_path, devices=2)
    asked.scenes.val_count = 1
    with pytest.raises(UserError, match=r"fewer validation pictures \(1\) than there are devices \(2\); .*devices 1"):
        runs.train(asked, console=quiet())


@pytest.mark.parametrize(("version", "expected"), [("2.9.1", "cpu"), ("2.10.0", "auto"), ("2.15.0", "auto")])
def test_apples_gpus_train_from_the_version_on_that_can(
    monkeypatch: pytest.MonkeyPatch, version: str, expected: str
) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    assert accelerator() == "auto"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert accelerator() == expected


class Unlucky(SyntheticScenes):
    """Scenes whose loader meets what containers and limits do."""

    failure: Callable[[], None]

    def __getitem__(self, index: int) -> Sample:
        if get_worker_info() is not None:
            type(self).failure()
        return super().__getitem__(index)


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _no_shared_memory() -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def _no_files() -> None:
    raise OSError(24, "Too many open files")


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (_killed, "^A process that loads pictures was killed; .*fewer --training.workers.$"),
        (_no_shared_memory, "^The shared memory .*--training.workers 0 or .*--shm-size"),
        (_no_files, "^1 processes that load pictures open more files .*ulimit -n"),
    ],
)
def test_what_befalls_a_loader_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Callable[[], None], told: str
) -> None:
    monkeypatch.setattr(Unlucky, "failure", staticmethod(failure), raising=False)
    monkeypatch.setattr("cssformer.training.datasets.SyntheticScenes", Unlucky)
    with pytest.raises(UserError, match=told):
        runs.train(recipe(tmp_path, workers=1), console=quiet())


def test_before_the_first_step_it_is_said_what_is_trained(tmp_path: Path) -> None:
    console, small = quiet(), recipe(tmp_path, steps=1)
    runs.train(replace(small, augment=replace(small.augment, short_side=40)), console=console)
    said = console.file.getvalue().splitlines()
    assert re.fullmatch(r"CSSFormer on convnext_atto, 0\.\d million parameters", said[0])
    assert said[1] == "generated scenes: 8 pictures, 2 to validate, all resized to 40 pixels on the shorter side"
    assert said[2].startswith("1 steps of 4 pictures, 4 at a time on each of 1 x ")
    assert said[3].startswith("step 1/1  loss")


def test_tensorboard_holds_each_curve_once_a_step(tmp_path: Path) -> None:
    runs.train(recipe(tmp_path, steps=4, log_every=2), console=quiet())
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    names = SyntheticScenes(1).info.classes
    tags = events.Tags()
    curves = {"loss", "lr", "images_per_second", "mIoU", "validation_loss", *(f"IoU/{name}" for name in names)}
    assert set(tags["scalars"]) == curves and tags["images"] == ["validation"]
    for tag in curves:
        assert [event.step for event in events.Scalars(tag)] == [2, 4], tag
    # Softmax of an untrained network: about the logarithm of the number of classes.
    assert 0 < events.Scalars("validation_loss")[0].value < 3 * math.log(len(names))
    assert "backbone: convnext_atto" in (tmp_path / "tensorboard" / "hparams.yaml").read_text()


@pytest.mark.parametrize("place", ["data", "data/val", "data/../data/train"])
def test_a_run_is_not_written_into_its_data(tmp_path: Path, place: str) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    asked = recipe(tmp_path / place)
    asked.data = str(tmp_path / "data")
    with pytest.raises(UserError, match=r"is the folder of the data, or a split of it; give another --output"):
        runs.train(asked)
    assert [path.name for path in (tmp_path / "data").rglob("*")] == ["train"]
