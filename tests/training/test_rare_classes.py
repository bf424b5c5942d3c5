"""What a recipe does for rare classes."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from cssformer.data import DatasetInfo
from cssformer.training import train as runs
from cssformer.training.rare_classes import build_loss
from cssformer.training.recipe import AugmentConfig, LossConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.utils.errors import UserError

INFO = DatasetInfo(("road", "tree", "sky"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))


def recipe(output: Path, augment: dict[str, Any] | None = None, **loss: Any) -> Recipe:
    return Recipe(
        output=str(output),
        model=ModelConfig(channels=16, heads=2, points=2),
        scenes=ScenesConfig(count=10, val_count=2, size=(32, 32)),
        augment=AugmentConfig(crop=(32, 32), **(augment or {})),
        loss=LossConfig(**loss),
        training=TrainingConfig(steps=2, batch_size=4, warmup_steps=1, log_every=1, validate_every=2, workers=0),
    )


def test_the_loss_is_the_recipes_and_its_class_weights_are_told(tmp_path: Path) -> None:
    first = []
    for name, loss in (("plain", {}), ("both", {"dice": 0.5, "class_weights": "balanced"})):
        out = io.StringIO()
        runs.train(recipe(tmp_path / name, **loss), console=Console(file=out, width=1000))
        assert ("class weights: meadow" in out.getvalue()) == bool(loss)
        first.append(float((tmp_path / name / "metrics.csv").read_text().splitlines()[1].split(",")[1]))
    assert first[1] > first[0] + 0.2


def test_class_weights_that_cannot_be_are_told(tmp_path: Path) -> None:
    assert build_loss(recipe(tmp_path), INFO, None).class_weights is None
    given = build_loss(recipe(tmp_path, class_weights=[1.0, 0.0, 2.0]), INFO, None).class_weights
    assert given is not None and torch.equal(given, torch.tensor([1.0, 0, 2]))
    with pytest.raises(UserError, match=r"class_weights has 2 numbers, but there are 3 classes: road, tree, sky\."):
        build_loss(recipe(tmp_path, class_weights=[1.0, 2.0]), INFO, None)
    with pytest.raises(UserError, match="all 0"):
        build_loss(recipe(tmp_path, class_weights=[0.0, 0.0, 0.0]), INFO, None)
    with pytest.raises(UserError, match="17 classes"):
        runs.train(recipe(tmp_path / "run", class_weights=[1.0]))
    assert not (tmp_path / "run").exists()


def test_a_recipe_names_its_losses(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("loss: {cross_entropy: 1, dice: 0.5, class_weights: balanced, ohem: 0.25}")
    assert Recipe.load(path).loss == LossConfig(dice=0.5, class_weights="balanced", ohem=0.25)
    Recipe.load(path).save(path)
    assert Recipe.load(path).loss == LossConfig(dice=0.5, class_weights="balanced", ohem=0.25)
    path.write_text("loss: {class_weights: [1, 2.5, 0]}")
    assert Recipe.load(path).loss.class_weights == [1, 2.5, 0]
    for wrong, told in (
        ("cross_entropy: 0", "nothing to minimise"),
        ("ohem: 0", "above 0 and at most 1"),
        ("dice: -1", "from 0 to"),
        ("class_weights: inverse", "balanced or effective or one or more values"),
        ("jaccard: 1", "no option 'loss.jaccard'"),
    ):
        path.write_text(f"loss: {{{wrong}}}")
        with pytest.raises(UserError, match=told):
            Recipe.load(path)
