"""Several devices share the declared batch, score the whole validation split, and write one run folder."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cssformer import CSSFormer
from cssformer.training import train as runs
from cssformer.training.fit import synchronise_batch_norm
from cssformer.training.module import SegmentationTask
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.utils.digest import digest
from cssformer.utils.errors import UserError

OPTIONS = {
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


def train_by_words(output: Path, *switches: str, **options: object) -> str:
    """Lightning starts the second process by the words of the first."""
    options = {"output": output, **OPTIONS, **options}
    done = subprocess.run(
        [
            Path(sys.executable).with_name("cssformer"),
            "train",
            *switches,
            *(f"--{name}={value}" for name, value in options.items()),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_on_the_cpu_make_one_run(tmp_path: Path) -> None:
    assert train_by_words(tmp_path / "run").count("Run folder:") == 1
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert '"pictures": 3' in (tmp_path / "run" / "scores.json").read_text()


@pytest.mark.slow
def test_weights_that_are_shared_out_train_as_whole_ones_and_resume_to_the_bit(tmp_path: Path) -> None:
    vit = "{depth: 4, embed_dim: 48, num_heads: 2, pyramid: adapter}"
    # At one rate, whatever the number of steps.
    options = {"model.backbone": "vit_tiny_patch16_224", "model.backbone_args": vit, "training.warmup_steps": 0}
    options |= {"training.power": 0, "training.log_every": 1}
    fsdp = {**options, "training.strategy": "fsdp"}
    train_by_words(tmp_path / "fsdp", **fsdp, **{"training.steps": 4})
    train_by_words(tmp_path / "part", **fsdp)
    train_by_words(tmp_path / "part", "--resume", **fsdp, **{"training.steps": 4})
    train_by_words(tmp_path / "ddp", **options, **{"training.steps": 4})
    losses = []
    for name in ("fsdp", "part", "ddp"):
        rows = csv.DictReader((tmp_path / name / "metrics.csv").open())
        losses.append([float(row["loss"]) for row in rows if row["loss"]])
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-2)
    found, resumed = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("fsdp", "part")
    )
    for key in ("state_dict", "optimizer_states"):
        assert digest(found[key]) == digest(resumed[key])
    saved = load_file(tmp_path / "fsdp/model/model.safetensors")
    assert saved.keys() == {name.removeprefix("model.") for name in found["state_dict"]}
    assert digest(saved) == digest(load_file(tmp_path / "part/model/model.safetensors"))


@pytest.mark.parametrize(
    ("other", "value"), [("ema", 0.9), ("swa_after", 3), ("compile", True), ("lora", 4), ("optimizer", "muon")]
)
def test_weights_that_are_shared_out_go_not_with_everything(other: str, value: object) -> None:
    asked = Recipe(training=TrainingConfig(strategy="fsdp", **{other: value}))
    with pytest.raises(UserError, match=rf"strategy fsdp takes no training\.{other}.*; leave one of them out"):
        asked.require_sound()


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
