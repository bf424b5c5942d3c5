"""Options and recipes: defaults, YAML, the command line over it, and errors of one sentence."""

import os
import re
from pathlib import Path

import pytest
import yaml

from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError
from cssformer.utils.options import ConfigFile, make_parser, nearest, parse, written


def parsed(*arguments: str) -> Recipe:
    parser = make_parser()
    parser.add_argument("--config", action=ConfigFile)
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
        "--augment.crop", "48", "64", "--training.ema", "0.99", "--data", "pictures", "--model.mean", "[0.5,0.5,0.5]"
    )
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model:\n  chanels: 3\n", "'model.chanels'.*'model.channels'"),
        ("trainin:\n  steps: 3\n", "'trainin.steps'.*'training.steps'"),
        ("model:\n  augmentation: true\n", "'model.augmentation'; it is called model.cia now"),
        ("base: [other.yaml]\n", "'base'; it is called config now"),
        ("model: other.yaml\n", "model must hold keys and values"),
        ("training: {lr: .inf}", "training.lr cannot be 'inf'"),
        ("training: {lr: &a [*a]}", r"refers to its own values \(\*a\)"),
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "refers to its own values"),
        (f"model: {'[' * 5000}", "nested deeper"),
        (f"seed: {'9' * 5000}", "holds a value that cannot be read"),
        (f"seed: {'9' * 50}", "seed cannot be '99"),
        ("seed: 2020-13-45", "holds a value that cannot be read"),
        ("a\0b", "not YAML"),
        ("1: 2", "keys and values"),
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
    with pytest.raises(UserError, match="Cannot read nowhere.yaml: No such file"):
        parsed("--config=nowhere.yaml")
    with pytest.raises(UserError, match="'model.point'.*'model.points'"):
        parsed("--model.point", "3")
    with pytest.raises(UserError, match="model.channels"):
        parsed("--model.channels.deep", "3")


def test_options_below_a_table_are_free() -> None:
    assert parsed("--model.backbone_args.pad_type", "same").model.backbone_args == {"pad_type": "same"}


def test_options_that_look_like_objects_of_a_class_stay_tables() -> None:
    table = {"class_path": "os.mkdir", "init_args": {"path": "made"}}
    recipe = parsed("--model.backbone_args", yaml.safe_dump({"x": table}, default_flow_style=True))
    assert recipe.model.backbone_args == {"x": table} and not Path("made").exists()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("model.augmentation", "model.cia"),
        ("model.enhancement_depth", "model.msfe_depth"),
        ("model.fusion_depth", "model.csf_depth"),
        ("augment.max_share", "augment.cat_max_ratio"),
        ("lr", "nearest one is 'training.lr'"),
        ("training.class_weights", "nearest one is 'loss.class_weights'"),
        ("training.step", "nearest one is 'training.steps'"),
        ("training.epochs", "training.steps optimiser steps"),
        ("epochs", "training.steps optimiser steps"),
        ("batch", "training.batch_size"),
        ("imgsz", "augment.crop"),
    ],
)
def test_an_option_of_another_name_is_told(word: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        parsed(f"--{word}", "3")


def test_no_option_is_near_to_a_word_of_another_meaning() -> None:
    with pytest.raises(UserError, match=r"'training.momentum'; there are training.steps, .*training.lr") as caught:
        parsed("--training.momentum", "3")
    assert "nearest" not in str(caught.value)
    for word in ("export", "class_weights", "epochs", "batch"):
        assert nearest(word, ["model.points", "data", "auxiliary_weight", "prepare coco-stuff-10k", "explain"]) == []


@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
def test_only_regular_files_are_opened(tmp_path: Path, what: str) -> None:
    path = tmp_path / what
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    with pytest.raises(UserError, match="no regular file"):
        parsed("--config", str(path))
    (tmp_path / "top.yaml").write_text(f"config: [{path}]")
    with pytest.raises(UserError, match="no regular file"):
        parsed("--config", str(tmp_path / "top.yaml"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("training.lr", value) for value in ("1e400", "inf", "nan", "-1", "x")),
        *(("training.clip", value) for value in ("1e400", "nan", "0", "-1")),
        ("model.std", "0 0 0"),
        ("augment.crop", "1000000 1000000"),
        ("augment.short_side", "1000000000"),
        ("model.channels", str(2**40)),
        ("model.points", str(10**9)),
        ("training.batch_size", str(10**12)),
        ("training.devices", str(10**6)),
        ("seed", "-1"),
        ("seed", "9" * 5000),
        ("training.ema", "2"),
        ("training.workers", "-1"),
    ],
)
def test_numbers_out_of_range(option: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{option} (cannot be .*it )?must be .*number") as caught:
        parsed(f"--{option}", *value.split())
    assert len(str(caught.value)) < 600


def test_values_of_several_numbers_and_switches() -> None:
    for words in (("--augment.crop", "64", "96"), ("--augment.crop", "[64,96]"), ("--augment.crop=[64, 96]",)):
        assert parsed(*words, "--model.cia", "false", "--augment.photometric").augment.crop == (64, 96)
    assert parsed("--augment.scale", "0.5", "2").augment.scale == (0.5, 2.0)
    assert not parsed("--model.cia=false").model.cia and parsed("--model.cia", "--seed", "3").seed == 3


def test_values_of_several_texts() -> None:
    """`predict --clear a b` was refused."""

    def function(names: list[str] | None = None, switch: bool = False) -> None: ...

    parser = make_parser("it", "")
    parser.add_function_arguments(function)
    found = parse(parser, ["--names", "a, b", "5", "--switch"], "it")
    assert (found.names, found.switch) == (["a, b", "5"], True)
    assert parsed("--training.logger", "[]", "--seed", "3").training.logger == []
    assert parsed("--training.logger", "csv", "wandb").training.logger == ["csv", "wandb"]
    for given, names in (("255", ["255"]), ("a=b, c", ["a=b, c"]), ("['d', 'e']", ["d", "e"]), ("null", None)):
        assert parse(parser, [f"--names={given}"], "it").names == names


def test_parsed_numbers_are_pythons_own() -> None:
    recipe = parsed("--model.channels", "32", "--training.lr", "0.1", "--augment.crop", "64", "64", "--seed", "3")
    values = (recipe.model.channels, recipe.training.lr, recipe.augment.crop[0], recipe.seed)
    assert [type(value) for value in values] == [int, float, int, int]


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
        net="config: [../ground.yaml]\nmodel: {channels: 96, backbone_args: {a: 1, b: [1, 2]}}\ntraining: {steps: 8}\n",
    )
    top = write(
        tmp_path,
        ground="model: {channels: 32, points: 5}\ntraining: {ema: 0.9}\n",
        top="config: [base/data.yaml, base/net.yaml]\nmodel: {dropout: 0.3}\n",
    )
    recipe = parsed("--model.heads", "3", "--model.backbone_args.a", "2", "--config", str(top))
    # Above wins: the command line wherever it stands, the file, the later base, the earlier one, that one's base.
    assert recipe.model.backbone_args == {"a": 2, "b": [1, 2]}
    assert (recipe.model.heads, recipe.model.channels, recipe.model.points, recipe.model.dropout) == (3, 96, 5, 0.3)
    assert (recipe.training.steps, recipe.training.lr, recipe.training.ema) == (8, 6e-5, 0.9)
    assert recipe.augment.crop == (64, 96)
    # What is saved stands for itself.
    recipe.save(tmp_path / "deep" / "recipe.yaml")
    assert "config" not in yaml.safe_load((tmp_path / "deep" / "recipe.yaml").read_text())
    assert Recipe.load(tmp_path / "deep" / "recipe.yaml") == recipe


def test_two_configs_the_later_wins(tmp_path: Path) -> None:
    write(tmp_path, one="model: {channels: 32, points: 5}\n", two="model: {channels: 96}\n")
    recipe = parsed(f"--config={tmp_path / 'one.yaml'}", "--config", str(tmp_path / "two.yaml"))
    assert (recipe.model.channels, recipe.model.points) == (96, 5)


@pytest.mark.parametrize(
    ("top", "below", "message"),
    [
        (
            "config: [below.yaml]\n",
            "model: {chanels: 3}\n",
            "below.yaml has no option 'model.chanels'.*'model.channels'",
        ),
        ("config: [below.yaml]\n", "training: {steps: many}\n", "below.yaml: training.steps cannot be 'many'"),
        ("config: [below.yaml]\ntraining: {steps: many}", "training: {steps: 5}", "top.yaml: training.steps cannot be"),
        ("config: [below.yaml]\n", "config: [top.yaml]\n", "refers to itself"),
        ("config: [below.yaml]\n", "config: [nowhere.yaml]\n", "nowhere.yaml: No such file"),
        ("config: [below.yaml]\n", "just words", "below.yaml must hold keys and values"),
        ("config: below.yaml\n", "", "top.yaml: config must be a list of files"),
        ("config: [{}]\n", "", "top.yaml: config must be a list of files"),
    ],
)
def test_a_wrong_file_below_is_told_with_the_file_in_which_it_stands(
    tmp_path: Path, top: str, below: str, message: str
) -> None:
    path = write(tmp_path, top=top, below=below)
    with pytest.raises(UserError, match=message) as caught:
        parsed("--config", str(path))
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "form"),
    [
        (
            ("--augment.crop", "64"),
            "augment.crop cannot be '[64]'; it must be 2 values with spaces between them, each a whole number from 32",
        ),
        (("--evaluation.crop", "x"), "2 values with spaces between them, each a whole number from 32 to 8192 or null"),
        (("--augment.scale", "1"), "2 values with spaces between them, each a number"),
        (("--training.clip", "x"), "a number above 0 and at most 1000000 or null"),
        (("--training.precision", "64"), "32 or bf16 or 16"),
        (("--model.cia", "maybe"), "'maybe' belongs to no option"),
    ],
)
def test_the_form_of_a_value_is_told(words: tuple[str, ...], form: str) -> None:
    with pytest.raises(UserError, match=re.escape(form)):
        parsed(*words)


@pytest.mark.parametrize(
    ("word", "near"), [("out", "output"), ("outputs", "output"), ("dat", "data"), ("dataset", "data"), ("da", None)]
)
def test_a_word_that_begins_an_option_or_goes_on_after_it(word: str, near: str | None) -> None:
    with pytest.raises(UserError) as caught:
        parsed(f"--{word}", "x")
    assert ("nearest" in str(caught.value)) == (near is not None)
    assert near is None or f"nearest one is {near!r}" in str(caught.value)


def test_help_tells_ranges_in_words_and_defaults_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser("cssformer train")
    parser.add_argument("--config", action=ConfigFile)
    parser.add_class_arguments(Recipe)
    with pytest.raises(SystemExit):
        parse(parser, ["--help"], "train")
    out = " ".join(capsys.readouterr().out.split())
    assert "(type: a whole number from 0 to 2147483647, default: 0)" in out
    assert "each a whole number from 32 to 8192, default: 128 128)" in out
    assert "(type: true or false, default: true)" in out
    # Null is told where it takes a default away, and not of options that are null without a word.
    assert "a number above 0 and at most 1000000 or null, default: 1.0)" in out and "default: null" not in out
    assert re.search(r"Int\d|Float\d|Optional\[|Literal\[|ClosedUnit|print_config|--model CONFIG", out) is None


def test_the_usage_names_what_must_be_given_alone(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser("cssformer it")
    parser.add_argument("picture")
    parser.add_argument("--output", required=True)
    parser.add_argument("--flip", default=False)
    with pytest.raises(SystemExit):
        parse(parser, ["--help"], "it")
    out = capsys.readouterr().out
    assert out.startswith("usage: cssformer it [options] --output OUTPUT picture\n") and "--flip FLIP" in out


def test_missing_and_unnamed_arguments() -> None:
    parser = make_parser()
    parser.add_argument("model", type=str)
    parser.add_argument("--output", type=Path, required=True)
    with pytest.raises(UserError, match="predict needs MODEL, --output"):
        parse(parser, [], "predict")
    with pytest.raises(UserError, match="no option 'model'; give MODEL alone, in its place"):
        parse(parser, ["--model", "run"], "predict")
    with pytest.raises(UserError, match="no option 'o'"):
        parse(parser, ["run", "-o", "x"], "predict")


def test_values_are_written_as_they_are_read() -> None:
    model = parsed("--model.mean", *written((0.1, 0.2, 0.3)).split(), "--model.cia", written(False)).model
    assert (model.mean, model.cia) == ([0.1, 0.2, 0.3], False)
    arguments = {"depths": [1, 2], "name": "a"}
    assert parsed(f"--model.backbone_args={written(arguments)}").model.backbone_args == arguments
    assert parsed(f"--augment.short_side={written(None)}").augment.short_side is None


@pytest.mark.parametrize("words", [("--output", ""), ("--output=",), ("--data", "")])
def test_an_empty_value_is_not_the_folder_one_is_in(words: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=f"{words[0].strip('-=')} is empty"):
        parsed(*words)
