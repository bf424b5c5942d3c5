"""What a recipe does for rare classes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from cssformer.data import IGNORE, DatasetInfo, Sample, SyntheticScenes
from cssformer.data.bands import read_pixels
from cssformer.metrics.report import TILE
from cssformer.training import train as runs
from cssformer.training.augmented import AUGMENTED, AugmentedSheet, augmented_sheet
from cssformer.training.module import SegmentationTask
from cssformer.training.rare_classes import build_loss, told_counts, training_pixels
from cssformer.training.recipe import AugmentConfig, LossConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.training.run_folder import LAST
from cssformer.utils.errors import UserError

INFO = DatasetInfo(("road", "tree", "sky"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))


def test_labels_without_a_labelled_pixel_are_told() -> None:
    class Void(SyntheticScenes):
        def __getitem__(self, index: int) -> Sample:
            name, image, label = super().__getitem__(index)
            return Sample(name, image, np.full_like(label, IGNORE))

    with pytest.raises(UserError, match="no labelled pixel"):
        training_pixels(Void(2, (32, 32)), None)


EVERYTHING = {
    **dict.fromkeys(("grey", "blur", "noise", "jpeg", "erase", "rare_class_crops", "paste", "cutmix"), 0.5),
    "rotate": 20.0,
    "shear": 10.0,
    "perspective": 0.1,
}


def recipe(output: Path, augment: dict[str, Any] | None = None, **loss: Any) -> Recipe:
    return Recipe(
        output=str(output),
        model=ModelConfig("test_resnet", channels=16, heads=2, points=2),
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
        for told in ("class weights: meadow ", "classes of the 10 training pictures: meadow "):
            assert (told in out.getvalue()) == bool(loss)
        first.append(float((tmp_path / name / "metrics.csv").read_text().splitlines()[1].split(",")[1]))
    assert first[1] > first[0] + 0.2


def test_counts_are_told() -> None:
    pixels = np.array([[90, 0, 10], [95, 5, 0]])
    assert told_counts(pixels, INFO) == (
        "classes of the 2 training pictures: road 92.50 % in 2, tree 2.50 % in 1, sky 5.00 % in 1"
    )


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
        ("class_weights: inverse", "balanced or sqrt or effective or one or more values"),
        ("jaccard: 1", "no option 'loss.jaccard'"),
    ):
        path.write_text(f"loss: {{{wrong}}}")
        with pytest.raises(UserError, match=told):
            Recipe.load(path)


def test_all_augmentation_goes_on_to_the_bit_in_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = {"lovasz": 1.0, "dice": 1.0, "boundary": 1.0, "class_weights": "effective", "ohem": 0.5}
    whole, broken = (recipe(tmp_path / name, EVERYTHING, **loss) for name in ("whole", "broken"))
    for asked in (whole, broken):
        asked.training.steps, asked.training.ema, asked.training.device_batch = 4, 0.9, 2
    out = io.StringIO()
    runs.train(whole, console=Console(file=out, width=1000))
    assert "rare classes are drawn by inverse frequency: " in out.getvalue()
    step = SegmentationTask.training_step

    def killed(self: SegmentationTask, batch: Any, index: int) -> torch.Tensor:
        if index == 6:
            raise KeyboardInterrupt
        return step(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(SegmentationTask, "training_step", killed)
        runs.train(broken)
    runs.train(broken, resume=True)
    ends = [torch.load(tmp_path / name / LAST, weights_only=True)["state_dict"] for name in ("whole", "broken")]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert all(name.startswith("model.") for name in ends[0])


def test_a_sheet_shows_what_the_network_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[torch.Tensor] = []
    step = SegmentationTask.training_step

    def seen(self: SegmentationTask, batch: Any, index: int) -> torch.Tensor:
        shown.append(batch)
        assert (tmp_path / AUGMENTED).is_file()
        return step(self, batch, index)

    monkeypatch.setattr(SegmentationTask, "training_step", seen)
    runs.train(recipe(tmp_path, EVERYTHING))
    images, labels = (shown[0][key].numpy() for key in ("image", "label"))
    info = SyntheticScenes(1).info
    assert np.array_equal(
        read_pixels(tmp_path / AUGMENTED, None)[0].pixels, augmented_sheet(images.transpose(0, 2, 3, 1), labels, info)
    )
    # Of one picture there is one column less.
    assert augmented_sheet(images[:1].transpose(0, 2, 3, 1), labels[:1], info).shape[1] == 2 * TILE + 3 * 12


def test_ones_own_augmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def augment(image, mask):\n    return {'image': image // 2, 'mask': mask * 0}\n")
    monkeypatch.syspath_prepend(tmp_path)
    shown: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(
        AugmentedSheet, "on_train_batch_start", lambda self, trainer, module, batch, index: shown.append(batch)
    )
    runs.train(recipe(tmp_path / "run", {"custom": "mine.augment"}))
    assert shown[0]["image"].max() < 128 and (shown[0]["label"] == 0).all()
    with pytest.raises(UserError, match=r"augment\.custom mine\.other cannot be imported"):
        runs.train(recipe(tmp_path / "other", {"custom": "mine.other"}))
    assert not (tmp_path / "other").exists()
