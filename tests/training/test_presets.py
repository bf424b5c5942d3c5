"""Which of the package's recipes is taken where none is named."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from cssformer import CSSFormer
from cssformer.cli import main
from cssformer.training.finetune import starting_point
from cssformer.training.presets import choose_preset
from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError


def folder(root: Path, height: int, width: int) -> Path:
    (root / "train" / "images").mkdir(parents=True)
    for number in range(3):
        cv2.imwrite(str(root / "train" / "images" / f"{number}.jpg"), np.zeros((height, width, 3), np.uint8))
    return root


@pytest.mark.parametrize(
    ("size", "device", "name"),
    [
        ((96, 128), "cpu", "demo"),
        ((480, 640), "cpu", "light"),
        ((480, 640), "cuda", "photos"),
        ((30, 900), "mps", "photos"),
    ],
)
def test_by_data_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], device: str, name: str
) -> None:
    monkeypatch.setattr("cssformer.training.presets.best_device", lambda: device)
    found = choose_preset(folder(tmp_path, *size))
    assert found == (name, f"for pictures of about {size[1]}x{size[0]} on {device}")


def test_photographs_are_not_trained_by_the_demonstration_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[Recipe] = []
    monkeypatch.setattr("cssformer.training.presets.best_device", lambda: "cpu")
    monkeypatch.setattr("cssformer.training.train.train", lambda recipe, resume: taken.append(recipe))
    data, output = ["--data", str(folder(tmp_path, 480, 640))], ["--output", str(tmp_path / "run")]
    assert main(["train", *data, *output, "--training.steps", "7"]) == 0
    assert "No --config: light is taken, for pictures of about 640x480" in capsys.readouterr().out
    assert (taken[-1].model.backbone, taken[-1].augment.short_side) == ("mobilenetv2_100", 256)
    assert taken[-1].training.steps == 7
    assert main(["train", *data, *output, "--model.backbone", "resnet18", "--model.heads", "2"]) == 0
    assert "No --config: light is taken" in capsys.readouterr().out
    expected = dataclasses.replace(Recipe.load("light").model, backbone="resnet18", heads=2)
    assert (taken[-1].model, taken[-1].augment) == (expected, Recipe.load("light").augment)
    for name in ("demo", "photos"):
        assert main(["train", *data, *output, "--config", name]) == 0
        assert capsys.readouterr().out == ""
    assert taken[-1].model.backbone == "convnext_tiny" and taken[-2].model.backbone == "resnet10t"


def test_with_a_network_to_start_from_the_data_choose_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[Recipe] = []
    monkeypatch.setattr("cssformer.training.presets.best_device", lambda: "cpu")
    monkeypatch.setattr("cssformer.training.train.train", lambda recipe, resume: taken.append(recipe))
    arguments = {"output_stride": 32}
    network = CSSFormer(
        "test_resnet", 3, channels=8, heads=2, points=1, csf_depth=2, cia=False, backbone_args=arguments
    )
    network.save_pretrained(tmp_path / "model")
    words = ["train", "--output", str(tmp_path / "run"), "--model.init", str(tmp_path / "model")]
    assert main([*words, "--data", str(folder(tmp_path / "data", 480, 640))]) == 0
    assert f"light is taken, for pictures of about 640x480 on cpu, with the network of {words[-1]};" in (
        capsys.readouterr().out
    )
    assert main(words) == 0
    for each in taken:
        model, _, weights = starting_point(each, words[-1])
        # Three classes, as there, so that all fits.
        words_of = {name: value for name, value in vars(model.model).items() if name != "init"}
        CSSFormer(num_classes=3, **words_of).load_state_dict(weights)
        assert (each.model.backbone_args, each.model.cia) == (arguments, False)
    assert taken[0].augment.short_side == 256 and taken[1].augment == Recipe().augment


def test_rare_classes_is_photos_with_another_loss_and_crops() -> None:
    rare, photos = Recipe.load("rare_classes"), Recipe.load("photos")
    assert (rare.model, rare.training) == (photos.model, photos.training)
    assert dataclasses.replace(rare.augment, rare_class_crops=0.0) == photos.augment
    assert rare.loss != photos.loss and rare.augment != photos.augment


def test_a_preset_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no config photo; give a YAML file, or demo, light, photos, rare_classes, vit"):
        Recipe.load("photo")
