"""Several devices share the declared batch, score the whole validation split, and write one run folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cssformer import CSSFormer
from cssformer.training import train as runs
from cssformer.training.fit import synchronise_batch_norm
from cssformer.training.module import SegmentationTask
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.utils.errors import UserError


@pytest.mark.slow
def test_two_processes_on_the_cpu_make_one_run(tmp_path: Path) -> None:
    options = {
        "output": tmp_path / "run",
        "training.devices": 2,
        "training.steps": 2,
        "training.batch_size": 4,
        "training.validate_every": 2,
        "training.workers": 0,
        "model.backbone": "test_resnet",
        "model.channels": 16,
        "model.heads": 2,
        "scenes.val_count": 3,
        "scenes.size": "[64,64]",
        "augment.crop": "[64,64]",
    }
    # Lightning starts the second process by the words of the first.
    command = [Path(sys.executable).with_name("cssformer"), "train"]
    done = subprocess.run(
        [*command, *(f"--{name}={value}" for name, value in options.items())],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Run folder:") == 1
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert '"pictures": 3' in (tmp_path / "run" / "scores.json").read_text()


def recipe(output: Path) -> Recipe:
    return Recipe(
        output=str(output),
        model=ModelConfig(backbone="test_resnet", channels=16, heads=2, points=2),
        scenes=ScenesConfig(count=4, val_count=2, size=(32, 32)),
        augment=AugmentConfig(crop=(32, 32)),
        training=TrainingConfig(steps=1, batch_size=6, workers=0, devices=3),
    )


def test_more_devices_than_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"training\.devices 3 cannot be had: .*only has: \[0\]\.$"):
        runs.train(recipe(tmp_path))


def test_full_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(SegmentationTask, "training_step", full)
    one = recipe(tmp_path)
    one.training.devices = 1
    with pytest.raises(UserError, match=r"memory is full; .*training\.device_batch below 16"):
        runs.train(one)


def test_gpus_share_the_statistics_of_batch_norm_and_keep_activations() -> None:
    # MobileNetV2's normalisation layers hold its activations.
    model = CSSFormer("mobilenetv2_050", 3, channels=16, heads=2, points=2).eval()
    images, plain = torch.rand(1, 3, 64, 64), sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    expected = model(images)
    for device, world in (("cpu", 2), ("cuda", 1)):
        synchronise_batch_norm(model, torch.device(device), world)
        assert not any(isinstance(part, nn.SyncBatchNorm) for part in model.modules())
    names = list(model.state_dict())
    assert synchronise_batch_norm(model, torch.device("cuda"), 2) is model
    assert sum(isinstance(part, nn.SyncBatchNorm) for part in model.modules()) == plain > 0
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(images), expected)
