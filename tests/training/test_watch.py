"""What goes wrong without an error is said."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from cssformer.data import IGNORE, Sample, SyntheticScenes, verify_labels
from cssformer.training import train as runs
from cssformer.training.module import SegmentationTask
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig


def said(tmp_path: Path, data: str | None = None, **training: Any) -> list[str]:
    values = {"steps": 4, "batch_size": 2, "log_every": 1, "validate_every": 100, "workers": 0, "warmup_steps": 0}
    recipe = Recipe(
        data=data,
        output=str(tmp_path),
        model=ModelConfig(backbone="test_resnet", channels=16, heads=2, points=1, dropout=0.0),
        scenes=ScenesConfig(count=4, val_count=1, size=(32, 32)),
        augment=AugmentConfig(crop=(32, 32), scale=(1.0, 1.0), photometric=False),
        training=TrainingConfig(**{**values, **training}),
    )
    out = io.StringIO()
    runs.train(recipe, console=Console(file=out, width=1000))
    return [line for line in out.getvalue().splitlines() if line.startswith("warning:")]


def test_a_sound_training_is_not_warned_of(tmp_path: Path) -> None:
    assert said(tmp_path, steps=30, lr=3e-3) == []


def test_classes_that_no_training_label_holds(tmp_path: Path) -> None:
    for split, most in (("train", 2), ("val", 4)):
        for kind in ("images", "labels"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for number in range(2):
            pixels = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
            cv2.imwrite(str(tmp_path / "data" / split / "images" / f"{number}.png"), pixels)
            cv2.imwrite(str(tmp_path / "data" / split / "labels" / f"{number}.png"), pixels % most)
    classes = {index: {"name": name} for index, name in enumerate(("road", "[b]tree[/b]", "sky", "car"))}
    (tmp_path / "data" / "dataset.yaml").write_text(yaml.safe_dump({"classes": classes}))
    pixels = verify_labels(tmp_path / "data")
    assert {split: counts.sum(axis=0).tolist() for split, counts in pixels.items()} == {
        "train": [1024, 1024, 0, 0],
        "val": [512, 512, 512, 512],
    }
    found = said(tmp_path / "run", data=str(tmp_path / "data"))
    assert found[0] == "warning: no training label holds sky, car, which cannot be learned."


def test_labels_that_are_all_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ignored(SyntheticScenes):
        def __getitem__(self, index: int) -> Sample:
            name, image, label = super().__getitem__(index)
            return Sample(name, image, np.full_like(label, IGNORE) if self.seed == 0 else label)

    monkeypatch.setattr("cssformer.training.datasets.SyntheticScenes", Ignored)
    found = said(tmp_path)
    assert len(found) == 1 and found[0].startswith("warning: all gradients of step 1 are zero")


def test_one_class_alone(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / "data" / split / kind / "0.png"), np.zeros((32, 32), np.uint8))
    (tmp_path / "data" / "dataset.yaml").write_text(yaml.safe_dump({"classes": {0: {"name": "road"}}}))
    (sentence,) = said(tmp_path / "run", data=str(tmp_path / "data"))
    assert "nothing is learned" in sentence and "there is one class alone" in sentence


def test_a_loss_that_does_not_fall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = SegmentationTask.training_step
    monkeypatch.setattr(
        SegmentationTask, "training_step", lambda self, batch, index: step(self, batch, index) * 0 + 1 + index / 100
    )
    found = [line for line in said(tmp_path, steps=12, auxiliary_weight=0.0) if "has not fallen" in line]
    assert len(found) == 1
    assert "1.000 at first, 1.070 at step 10; perhaps training.lr 0.006" in found[0]


def test_one_class_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = SegmentationTask.forward_logits

    def third(self: SegmentationTask, images: torch.Tensor) -> torch.Tensor:
        logits = forward(self, images)
        logits[:, 2] = logits.max() + 1
        return logits

    monkeypatch.setattr(SegmentationTask, "forward_logits", third)
    name = SyntheticScenes(1).info.classes[2]
    found = said(tmp_path, validate_every=2)
    assert len(found) == 1 and f"every pixel of the validation after step 4 is called {name};" in found[0]
