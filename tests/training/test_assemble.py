"""What is told before a network is trained."""

import io
from typing import Any

import pytest
from rich.console import Console

from cssformer.training import assemble
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig


def told(channels: int = 8, **training: Any) -> tuple[str, assemble.Assembly]:
    recipe = Recipe(
        model=ModelConfig(backbone="test_resnet", channels=channels, heads=2, points=1),
        scenes=ScenesConfig(count=2, val_count=1, size=(32, 32)),
        augment=AugmentConfig(crop=(32, 32)),
        training=TrainingConfig(**training),
    )
    out = io.StringIO()
    assembly = assemble.assemble(recipe, Console(file=out, width=1000))
    return out.getvalue(), assembly


def test_a_backbone_that_never_thaws_is_told() -> None:
    said, _ = told(steps=5, thaw_after=5)
    assert said == ("warning: training.thaw_after 5 is not below training.steps 5, so the backbone learns nothing.\n")
    assert told(steps=6, thaw_after=5)[0] == ""


def test_a_large_decoder_is_told_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "LARGE", 32)
    said, assembly = told(channels=32)
    millions = sum(value.numel() for value in assembly.task.model.parameters()) / 1e6
    assert said.startswith(f"model.channels 32 makes a network of {millions:,.0f} million parameters")
