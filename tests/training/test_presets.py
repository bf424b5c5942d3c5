"""Which of the package's recipes is taken where none is named."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from cssformer.cli import main
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
    assert main(["train", *data, *output, "--model.backbone", "test_resnet"]) == 0
    assert "the demonstration's; --config light" in capsys.readouterr().out
    assert taken[-1] == Recipe(data=data[1], output=output[1], model=taken[-1].model) and not taken[-1].model.pretrained
    for name in ("demo", "photos"):
        assert main(["train", *data, *output, "--config", name]) == 0
        assert capsys.readouterr().out == ""
    assert taken[-1].model.backbone == "convnext_tiny" and taken[-2].model.backbone == "resnet10t"


def test_a_preset_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no config photo; give a YAML file, or demo, light, photos"):
        Recipe.load("photo")
