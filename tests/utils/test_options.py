"""Options and recipes: defaults, YAML, the command line over it, and errors that name the nearest option."""

import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError
from cssformer.utils.options import nearest, parse


def parsed(*arguments: str) -> Recipe:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Recipe)
    return Recipe.from_options(parse(parser, list(arguments), "cssformer train"))


def test_no_arguments_give_the_recipes_defaults() -> None:
    assert parsed() == Recipe()


def test_command_line_goes_before_the_config_and_the_config_before_the_defaults(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "model:\n  channels: 96\n  points: 5\n  backbone_args: {pad_type: same}\naugment:\n  crop: [64, 96]\n"
    )
    recipe = parsed("--config", str(config), "--model.points", "7", "--training.precision", "32")
    assert (recipe.model.channels, recipe.model.points, recipe.model.heads) == (96, 7, Recipe().model.heads)
    assert recipe.model.backbone_args == {"pad_type": "same"}
    assert recipe.augment.crop == (64, 96)
    assert recipe.training.precision == "32"


def test_a_saved_recipe_is_the_same_when_loaded(tmp_path: Path) -> None:
    recipe = parsed(
        "--augment.crop", "[48,64]", "--training.ema", "0.99", "--data", "pictures", "--model.mean", "[0.5,0.5,0.5]"
    )
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model:\n  chanels: 3\n", "'model.chanels'.*'model.channels'"),
        ("trainin:\n  steps: 3\n", "'trainin'.*'training'"),
        ("training:\n  steps: many\n", "training.steps"),
        ("training: [", "not YAML"),
        ("just words", "keys and values"),
    ],
)
def test_a_wrong_config_is_told_with_its_file(tmp_path: Path, content: str, message: str) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        parsed("--config", str(config))
    assert "mine.yaml" in str(caught.value) or "training.steps" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_config_and_an_unknown_option_are_told() -> None:
    with pytest.raises(UserError, match="Cannot read the config nowhere.yaml: No such file"):
        parsed("--config=nowhere.yaml")
    with pytest.raises(UserError, match="'model.point'.*'model.points'"):
        parsed("--model.point", "3")
    with pytest.raises(UserError, match="model.channels"):
        parsed("--model.channels.deep", "3")


def test_options_below_a_table_are_free() -> None:
    assert parsed("--model.backbone_args.pad_type", "same").model.backbone_args == {"pad_type": "same"}


def test_nearest_always_names_one() -> None:
    assert nearest("xyz", ["steps", "seed"]) in ("steps", "seed")


def write(folder: Path, **files: str) -> Path:
    """YAML files by name; returns the folder's ``top.yaml``."""
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content)
    return folder / "top.yaml"


def test_a_recipe_builds_on_others(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(
        tmp_path / "base",
        data="training: {steps: 7, lr: 6e-5}\naugment: {crop: [64, 96]}\n",
        net="base: [../ground.yaml]\nmodel: {channels: 96, backbone_args: {a: 1, b: [1, 2]}}\ntraining: {steps: 8}\n",
    )
    top = write(
        tmp_path,
        ground="model: {channels: 32, points: 5}\ntraining: {ema: 0.9}\n",
        top="base: [base/data.yaml, base/net.yaml]\nmodel: {backbone_args: {b: [3], c: x}}\n",
    )
    recipe = parsed("--model.heads", "3", "--model.backbone_args.a", "2", "--config", str(top))
    # Above wins: the command line wherever it stands, the file, the later base, the earlier one, that one's base.
    assert recipe.model.backbone_args == {"a": 2, "b": [3], "c": "x"}
    assert (recipe.model.heads, recipe.model.channels, recipe.model.points) == (3, 96, 5)
    assert (recipe.training.steps, recipe.training.lr, recipe.training.ema) == (8, 6e-5, 0.9)
    assert recipe.augment.crop == (64, 96)
    # What is saved stands for itself.
    recipe.save(tmp_path / "deep" / "recipe.yaml")
    assert "base" not in yaml.safe_load((tmp_path / "deep" / "recipe.yaml").read_text())
    assert Recipe.load(tmp_path / "deep" / "recipe.yaml") == recipe


def test_two_configs_the_later_wins(tmp_path: Path) -> None:
    write(tmp_path, one="model: {channels: 32, points: 5}\n", two="model: {channels: 96}\n")
    recipe = parsed(f"--config={tmp_path / 'one.yaml'}", "--config", str(tmp_path / "two.yaml"))
    assert (recipe.model.channels, recipe.model.points) == (96, 5)


@pytest.mark.parametrize(
    ("top", "below", "message"),
    [
        ("base: [below.yaml]\n", "model: {chanels: 3}\n", "below.yaml has no option 'model.chanels'.*'model.channels'"),
        ("base: [below.yaml]\n", "training: {steps: many}\n", "below.yaml: training.steps cannot be 'many'"),
        ("base: [below.yaml]\ntraining: {steps: many}", "training: {steps: 5}", "top.yaml: training.steps cannot be"),
        ("base: [below.yaml]\n", "base: [top.yaml]\n", "top.yaml is its own base, by way of .*below.yaml"),
        ("base: [below.yaml]\n", "base: [nowhere.yaml]\n", "nowhere.yaml, a base of .*below.yaml: No such file"),
        ("base: [below.yaml]\n", "just words", "below.yaml must hold keys and values"),
        ("base: below.yaml\n", "", "top.yaml: base must be a list of files"),
        ("base: [{}]\n", "", "top.yaml: base must be a list of files"),
    ],
)
def test_a_wrong_base_is_told_with_the_file_in_which_it_stands(
    tmp_path: Path, top: str, below: str, message: str
) -> None:
    path = write(tmp_path, top=top, below=below)
    with pytest.raises(UserError, match=message) as caught:
        parsed("--config", str(path))
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "form"),
    [
        (("--augment.crop", "64"), "tuple[int, int], written as [64,64]"),
        (("--augment.crop", "64", "64"), "written as [64,64]"),
        (("--evaluation.crop", "x"), "written as [64,64]"),
        (("--model.mean", "[1,2]"), "written as [0.5,0.5,0.5]"),
        (("--training.clip", "x"), "float | None."),
    ],
)
def test_the_form_of_a_value_is_told(words: tuple[str, ...], form: str) -> None:
    with pytest.raises(UserError, match=re.escape(form)):
        parsed(*words)
