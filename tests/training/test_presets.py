"""Which of the package's recipes is taken where none is named, and what is said of it."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cssformer import CSSFormer
from cssformer.cli import main
from cssformer.data import DatasetInfo
from cssformer.data.check import check
from cssformer.training.finetune import starting_point
from cssformer.training.presets import DataFacts, choose_preset
from cssformer.training.recipe import Recipe
from cssformer.training.suggest import Cost, Suggestion, cost_of
from cssformer.utils.errors import UserError
from cssformer.utils.options import PRESETS
from cssformer.weights.family import decoder_of

NAMES = ("road", "tree", "car")


def folder(root: Path, height: int, width: int) -> Path:
    for split, count in (("train", 3), ("val", 1)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            picture = np.random.default_rng(count + number).integers(0, 256, (height, width, 3), dtype=np.uint8)
            label = np.zeros((height, width), np.uint8)
            label[: height // 2], label[-1, : width // 10] = 1, 2
            cv2.imwrite(str(root / split / "images" / f"{number}.png"), picture)
            cv2.imwrite(str(root / split / "labels" / f"{number}.png"), label)
    DatasetInfo(NAMES, ((1, 2, 3), (4, 5, 6), (7, 8, 9)), counts={"train": 3, "val": 1}).save(root)
    return root


FACTS = DataFacts(500, 640, 480, 7, ("car", 0.02))


@pytest.mark.parametrize(
    ("changes", "device", "name", "reason"),
    [
        ({}, "cuda", "photos", "photographs"),
        ({}, "cpu", "cpu", "photographs on a CPU"),
        ({"width": 128, "height": 96}, "cuda", "demo", "small pictures"),
        ({"width": 5000, "height": 300}, "mps", "large_pictures", "large pictures"),
        ({"width": 5000, "pictures": 20}, "cuda", "large_pictures", "large pictures"),
        ({"pictures": 99, "classes": 2}, "cuda", "few_pictures", "fewer than 100 pictures"),
        ({"classes": 2}, "cuda", "binary", "one thing and the rest"),
        ({"rarest": ("car", 0.004)}, "cuda", "rare_classes", "a class with less than 0.5% of the pixels"),
        ({"rarest": None}, "cuda", "photos", "photographs"),
    ],
)
def test_by_data_and_machine(changes: dict, device: str, name: str, reason: str) -> None:
    assert choose_preset(dataclasses.replace(FACTS, **changes), device) == (name, reason)
    Recipe.load(name)


def test_the_facts_are_of_all_training_labels_as_check_counts_them(tmp_path: Path) -> None:
    root = folder(tmp_path, 40, 60)
    # A class of a single picture, and a validation that is nothing else.
    cv2.imwrite(str(root / "train" / "labels" / "0.png"), np.zeros((40, 60), np.uint8))
    cv2.imwrite(str(root / "train" / "labels" / "1.png"), np.zeros((40, 60), np.uint8))
    cv2.imwrite(str(root / "val" / "labels" / "0.png"), np.full((40, 60), 2, np.uint8))
    facts = DataFacts.of(root)
    assert facts == DataFacts(3, 60, 40, 3, ("car", 6 / 7200))
    assert check(root).shares[2] == 6 / 7200
    facts = dataclasses.replace(facts, rarest=("car", 6 / 2400))
    assert str(facts) == "3 pictures of about 60x40, 3 classes, the rarest, car, with 0.25% of the pixels"


def test_photographs_are_not_trained_by_the_demonstration_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[Recipe] = []
    monkeypatch.setattr("cssformer.training.presets.best_device", lambda: "cpu")
    monkeypatch.setattr("cssformer.training.train.train", lambda recipe, resume: taken.append(recipe))
    data, output = ["--data", str(folder(tmp_path, 480, 640))], ["--output", str(tmp_path / "run")]
    assert main(["train", *data, *output, "--training.steps", "7"]) == 0
    said = capsys.readouterr().out
    assert "The data choose --config cpu, for photographs on a CPU (3 pictures of about 640x480, 3 classes" in said
    assert "--config binary, cpu, demo, few_pictures, large_pictures, photos, rare_classes, vit or FILE chooses" in said
    assert "--model.init animals --training.steps 100" in said
    assert (taken[-1].model.backbone, taken[-1].augment.short_side) == ("mobilenetv2_100", 256)
    assert taken[-1].training.steps == 7
    assert main(["train", *data, *output, "--model.backbone", "resnet18", "--model.heads", "2"]) == 0
    assert "The data choose --config cpu" in capsys.readouterr().out
    expected = dataclasses.replace(Recipe.load("cpu").model, backbone="resnet18", heads=2)
    assert (taken[-1].model, taken[-1].augment) == (expected, Recipe.load("cpu").augment)
    assert main(["train", *data, *output, "--config", "small"]) == 0
    assert "The data choose --config cpu" in capsys.readouterr().out
    assert taken[-1].model == dataclasses.replace(Recipe.load("cpu").model, **decoder_of("small"))
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
    said = capsys.readouterr().out
    assert "The data choose --config cpu" in said and f", with the network of {words[-1]}." in said
    assert "--model.init animals" not in said
    assert main(words) == 0
    for each in taken:
        model, _, weights = starting_point(each, words[-1])
        # Three classes, as there, so that all fits.
        words_of = {name: value for name, value in vars(model.model).items() if name != "init"}
        CSSFormer(num_classes=3, **words_of).load_state_dict(weights)
        assert (each.model.backbone_args, each.model.cia) == (arguments, False)
    assert taken[0].augment.short_side == 256 and taken[1].augment == Recipe().augment
    # A size that is asked for goes over the network; a folder here may be called like it.
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--config", "nano"]) == 0
    assert (taken[2].model.backbone, taken[2].model.csf_depth, taken[2].model.points) == ("test_resnet", 1, 4)


@pytest.mark.parametrize("name", ["rare_classes", "few_pictures", "large_pictures", "binary"])
def test_presets_for_special_pictures_have_the_network_of_photos(name: str) -> None:
    special, photos = Recipe.load(name), Recipe.load("photos")
    assert special.model == photos.model and special != photos
    assert special.augment.crop == photos.augment.crop


def test_what_a_suggestion_says_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "my data", 40, 60)
    monkeypatch.setattr("cssformer.training.estimate.total_memory", lambda _: 2**28)
    assert main(["train", "--data", str(root), "--suggest", "--json", str(tmp_path / "told.json")]) == 0
    told, said = json.loads((tmp_path / "told.json").read_text()), capsys.readouterr().out
    demo = Recipe.load("demo")
    network = demo.model.build(3)
    assert told["config"] == "demo" and told["cost"]["parameters"] == sum(each.numel() for each in network.parameters())
    assert 1 <= told["cost"]["fitting"] < demo.training.batch_size and not (tmp_path / "runs").exists()
    fitting = told["cost"]["fitting"]
    assert said.endswith(f"cssformer train --data '{root}' --config demo --training.device_batch {fitting}\n")
    assert f"{demo.training.steps} steps see each picture {demo.training.steps * 12 / 3:,.0f} times" in said
    assert main(["train", "--suggest"]) == 2
    # Its cost would be told of another network.
    assert main(["train", "--data", str(root), "--suggest", "--config", "small"]) == 2
    for wrong in ("labels/0.png", "images/*"):
        for path in (root / "train").glob(wrong):
            path.unlink()
        capsys.readouterr()
        assert main(["train", "--data", str(root), "--suggest"]) == 2
        assert str(root / "train") in capsys.readouterr().err


def test_the_batch_is_named_where_it_does_not_fit_alone() -> None:
    facts, recipe = DataFacts(500, 640, 480, 7, None), Recipe.load("photos")
    for asked, fitting, named in ((16, 8, False), (16, 7, True), (4, 4, False), (4, 3, True), ("auto", 1, False)):
        recipe.training.batch_size, recipe.training.device_batch = 8, asked
        found = Suggestion(Path("data"), facts, "cuda", "photos", "photographs", recipe, Cost(1, 1.0, 1, fitting))
        assert ("--training.device_batch" in found.command) == named


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "photos", "vit"])
def test_what_a_preset_says_of_itself_is_counted(name: str) -> None:
    recipe = Recipe.load(name)
    cost = cost_of(recipe, 20, "cpu")
    said = " ".join((PRESETS / f"{name}.yaml").read_text().replace("\n# ", " ").split())
    height, width = recipe.augment.crop
    assert (
        f"A crop of {height}x{width} keeps {cost.crop_bytes / 2**30:.2f} GiB in float32 and takes 3 x "
        f"{cost.crop_multiply_adds / 1e9:.0f} billion multiply-adds"
    ) in said


def test_a_preset_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="no config photo; give a YAML file, or base, binary, cpu, demo, few_pictures, la"
    ):
        Recipe.load("photo")
