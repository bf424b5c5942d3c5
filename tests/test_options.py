"""Options and recipes: defaults, YAML, the command line over it, and errors that name the nearest option."""

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from cssformer.errors import UserError
from cssformer.options import nearest, parse
from cssformer.training.recipe import Recipe


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
