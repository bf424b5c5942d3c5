"""The command line as people type it: what works, and one sentence with exit code 2 for every mistake."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import cssformer
from cssformer import CSSFormer
from cssformer.cli import EXTRAS, main
from cssformer.commands import COMMANDS
from cssformer.training.recipe import Recipe

MODEL = ["--model.backbone", "test_resnet", "--model.channels", "16", "--model.heads", "2", "--model.points", "2"]
SCENES = ["--scenes.count", "4", "--scenes.val_count", "2", "--scenes.size", "32", "32", "--augment.crop", "32", "32"]
STEPS = [
    "--training.steps",
    "2",
    "--training.batch_size",
    "2",
    "--training.warmup_steps",
    "1",
    "--training.log_every",
    "1",
]
TINY = [*MODEL, *SCENES, *STEPS, "--training.workers", "0"]
PROGRAM = [sys.executable, "-c", "import sys; from cssformer.cli import main; sys.exit(main())"]


def make_source(root: Path, classes: int = 3, count: int = 6) -> Path:
    """Pictures of 64x48, half of them JPEG, and index masks."""
    rng = np.random.default_rng(0)
    (root / "pictures").mkdir(parents=True)
    (root / "masks").mkdir()
    for number in range(count):
        picture = cv2.resize(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), (64, 48))
        cv2.imwrite(str(root / "pictures" / f"{number}.jpg"), picture)
        mask = np.sort(rng.integers(0, classes, (48, 64), dtype=np.uint8), axis=1)
        cv2.imwrite(str(root / "masks" / f"{number}.png"), mask)
    return root


def prepare(source: Path, output: Path, *more: str) -> int:
    folders = [str(source / "pictures"), str(source / "masks")]
    return main(["prepare", "folder", "--source", *folders, "--output", str(output), *more])


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def cut(path: Path) -> None:
    """Lose the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def set_id(path: Path, value: int) -> None:
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    mask[3, 4] = value
    cv2.imwrite(str(path), mask)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, prepared folders of three and five classes, and a run trained on the first; read only."""
    root = tmp_path_factory.mktemp("work")
    make_source(root / "source")
    assert prepare(root / "source", root / "data", "--classes", "sky", "tree", "road") == 0
    assert prepare(make_source(root / "source5", classes=5), root / "data5") == 0
    assert main(["train", "--data", str(root / "data"), "--output", str(root / "run"), *TINY]) == 0
    return root


@pytest.fixture
def data(work: Path, tmp_path: Path) -> Path:
    """A copy of the prepared folder, to be damaged."""
    return Path(shutil.copytree(work / "data", tmp_path / "data"))


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with exit code 2 and one sentence, which it returns."""

    def run(*arguments: object) -> str:
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        return one_sentence(capfd.readouterr().err)

    return run


def one_sentence(errors: str) -> str:
    assert errors.startswith("cssformer: ") and errors.endswith(".\n") and errors.count("\n") == 1, errors
    assert "Error:" not in errors and "Traceback" not in errors
    return errors


def test_from_pictures_and_masks_to_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, prepared, run = make_source(tmp_path / "source"), tmp_path / "data", tmp_path / "run"

    def result(*arguments: object) -> dict:
        file = tmp_path / f"{arguments[0]}.json"
        assert main([str(argument) for argument in (*arguments, "--json", file)]) == 0
        return json.loads(file.read_text())

    folders = source / "pictures", source / "masks"
    done = result("prepare", "folder", "--source", *folders, "--output", prepared, "--classes", "sky", "tree", "road")
    assert done["classes"] == ["sky", "tree", "road"] and done["mapping"] == {"0": 0, "1": 1, "2": 2}
    for split in ("train", "val"):
        assert len(list((prepared / split / "images").iterdir())) == done["counts"][split]
    assert sum(done["counts"].values()) == 6

    report = result("check", prepared)
    assert report["errors"] == [] and report["pictures"] == done["counts"] and report["sizes"] == {"64x48": 6}

    trained = result("train", "--data", prepared, "--output", run, *TINY)
    assert trained == json.loads((run / "scores.json").read_text())
    assert Recipe.load(run / "recipe.yaml").data == str(prepared)
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "2"]
    assert float(rows[-1]["mIoU"]) == pytest.approx(trained["miou"], rel=1e-5)
    assert {"pictures.png", "classes.csv", "confusion.png"} <= set(files_below(run))

    scored = result("evaluate", run, "--output", tmp_path / "report")
    assert scored == json.loads((tmp_path / "report" / "scores.json").read_text())
    assert {**scored, "options": trained["options"]} == trained
    assert (scored["model"], scored["data"], scored["split"]) == (str(run), str(prepared), "val")

    predicted = result(
        "predict", run, source / "pictures", "--output", tmp_path / "out", "--overlay", "--confidence", "true"
    )
    assert (predicted["pictures"], predicted["videos"], predicted["output"]) == (6, 0, str(tmp_path / "out"))
    names = [f"{folder}/{number}.png" for folder in ("confidence", "labels") for number in range(6)]
    overlays = [f"overlay/{number}.jpg" for number in range(6)]
    assert files_below(tmp_path / "out") == sorted([*names, *overlays, "legend.png"])
    labels = np.stack([np.asarray(Image.open(tmp_path / "out" / "labels" / f"{number}.png")) for number in range(6)])
    shares = np.bincount(labels.ravel(), minlength=3) / labels.size
    np.testing.assert_allclose([predicted["shares"][name] for name in ("sky", "tree", "road")], shares)
    assert capsys.readouterr().err == ""


def test_training_without_data_learns_scenes_and_a_finished_run_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--output", str(tmp_path / "run"), *TINY]) == 0
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    first = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert first["pictures"] == 2
    capsys.readouterr()
    assert main(["train", "--output", str(tmp_path / "run"), "--resume", "--json", str(tmp_path / "again.json")]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(
        r"The run in .*run is finished, with \d+ steps; .* --resume --training.steps .*above \d+\.\n", out
    )
    assert json.loads((tmp_path / "again.json").read_text()) == first
    again = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all((weights[name] == again[name]).all() for name in weights)


def test_dashes_underscores_and_switches(work: Path, tmp_path: Path) -> None:
    for number, words in enumerate(
        (
            ["--short-side", "64"],
            ["--short_side=64", "--flip"],
            ["--short_side", "64", "--flip", "true", "--scales", "1", "1.5"],
        )
    ):
        file = tmp_path / f"{number}.json"
        assert main(["evaluate", str(work / "run"), "--json", str(file), *words]) == 0
        assert json.loads(file.read_text())["options"]["short_side"] == 64
    # A switch before a file does not swallow it.
    picture = str(work / "source" / "pictures" / "1.jpg")
    assert main(["predict", str(work / "run"), "--overlay", picture, "--output", str(tmp_path / "out")]) == 0
    assert files_below(tmp_path / "out") == ["labels/1.png", "legend.png", "overlay/1.jpg"]
    # Without splits and with masks lost, --skip-unpaired needs no value either.
    source = make_source(tmp_path / "source")
    (source / "masks" / "3.png").unlink()
    assert prepare(source, tmp_path / "data", "--skip-unpaired") == 0


def test_more_processes_than_a_machine_takes(refused: Callable[..., str], tmp_path: Path) -> None:
    words = [*TINY, "--training.devices", "1000", "--training.batch_size", "1000"]
    assert "training.devices is 1000" in refused("train", "--output", tmp_path / "run", *words)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cssformer {cssformer.__version__}\n"
    for words in ([], ["--help"], ["-h"], ["prepare", "--help"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        asked = {
            name: command for name, command in COMMANDS.items() if words != ["prepare", "--help"] or "prepare" in name
        }
        assert all(name in out and command.summary in out for name, command in asked.items())
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit) as stopped:
            main([*name.split(), "--help"])
        assert stopped.value.code == 0
        out = capsys.readouterr().out
        assert command.summary in out and "--json" in out


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["profile", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom cssformer.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'cv2', 'numpy', 'numba', 'lightning', 'timm', 'PIL'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_preparing_and_checking_need_no_torch(tmp_path: Path) -> None:
    for number in range(2):
        for folder, pixels in (("images", np.zeros((8, 8, 3), np.uint8)), ("masks", np.eye(8, dtype=np.uint8))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels + number).save(tmp_path / folder / f"{number}.png")
    prepare = ["prepare", "folder", "--source", str(tmp_path), "--output", str(tmp_path / "out")]
    code = (
        "import sys\nfrom cssformer.cli import main\n"
        f"assert main({prepare!r}) == 0\nassert main(['check', {str(tmp_path / 'out')!r}]) < 2\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_json_replaces_no_file_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photo.png").write_bytes(b"photo")
    assert main(["models", "--json", str(tmp_path / "photo.png")]) == 2
    assert "--json would replace" in capsys.readouterr().err and (tmp_path / "photo.png").read_bytes() == b"photo"


@pytest.mark.parametrize(
    "words", [["score", "val/labels", "."], ["compare", "val/labels", "val/labels", "."], ["evaluate", "animals"]]
)
def test_no_report_is_written_among_pictures(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.chdir(prepared)
    before = files_below(prepared)
    assert main([*words, "--output", "val/images"]) == 2
    assert "val/images lies in prepared data" in capsys.readouterr().err and files_below(prepared) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], "no command 'trian'; there is train"),
        (["draw"], "no command 'draw'; there are prepare folder, .*explain"),
        (["export", "run", "--output", "model.bin"], r"end it in \.onnx, \.pt2, \.xml"),
        (["export", "run", "--output", "model.onnx", "--returns", "mask"], "returns cannot be .*logits or "),
        (["eval", "run"], "no command 'eval'; there is evaluate"),
        (["check"], "check needs DATA"),
        (["check", "a", "b"], "check: 'b' belongs to no option; `cssformer check --help` tells"),
        (["export", "run", "model 1.onnx"], "'model 1.onnx' belongs to no option; `cssformer export --help` tells"),
        (["predict", "run"], "predict needs INPUTS, --output"),
        (["train", "--training.stepz", "3"], "'training.stepz'.*'training.steps'"),
        (["train", "--model-chanels=3"], "'model_chanels'"),
        (["train", "--output"], "--output"),
        (["train", "--training.steps", "three"], "training.steps.*'three'.*whole number"),
        (["train", "--training.precision", "64"], "training.precision.*'64'.*bf16"),
        (["train", "--model.mean", "[1,2]"], "model.mean.*3 values"),
        (["train", "--augment.scale", "[2,1]"], "augment.scale.*smaller number"),
        (["train", "--training.batch_size", "0"], "training.batch_size cannot be '0'.*from 1 to"),
        (["train", "--training.workers=-1"], "training.workers cannot be '-1'.*from 0"),
        (["train", "--training.ema", "2"], "training.ema cannot be '2'.*from 0 to 1"),
        (["train", "--augment.crop", "16", "64"], "augment.crop cannot be '16'.*from 32"),
        (["train", "--training.log_every", "0"], "training.log_every"),
        (["train", "--training.validate_every", "0"], "training.validate_every"),
        (["train", "--model.heads", "0"], "model.heads"),
        (["train", "--seed=-1"], "seed"),
        (["train", "--scenes.count", "0"], "scenes.count cannot be '0'"),
        (["train", "--model.heads", "3"], "multiple of heads"),
        (["train", "--model.backbone", "resnet5000"], "resnet5000.*resnet50"),
        (["train", "--model.weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--resume"], "no run to resume in"),
        (["evaluate", "run", "--mode", "slid"], "mode.*'slid'.*slide"),
        (["evaluate", "run", "--device", "meta"], "device cannot be 'meta'.*cpu"),
        (["evaluate", "run", "--scales", "1e9"], "scales cannot be '1000000000.0'"),
        (["evaluate", "run", "--short-side", "1000000000"], "short_side cannot be '1000000000'"),
        (["prepare", "folder", "--source", "x", "--output", "y", "--seed", "-1"], "seed cannot be '-1'"),
        (["evaluate", "run", "--scales", "x"], "scales.*x"),
        (["evaluate"], "needs MODEL"),
        (["score", "dir"], "needs TRUTH"),
        (["score", "dir", "nowhere", "--classes", "a"], "no file or folder nowhere"),
        (["score", "dir", "/dev/null", "--classes", "a"], "no file or folder /dev/null"),
        (["score", "dir", "nowhere", "--classes", "a", "--class_file", "b"], "not both"),
        (["score", "dir", "nowhere", "--split", "val"], "leave out --split"),
        (["compare", "a"], "needs SECOND"),
        (["compare", "a", "b", "--classes", "c"], "leave out --classes"),
        (["compare", "a", "b", "nowhere", "--data", "d"], "not both"),
        (["compare", "a", "b", "nowhere", "--classes", "c"], "no file or folder nowhere"),
        (["compare", "no/such/model", "b", "--data", "d"], "no model folder no/such/model"),
        (["evaluate", "no/such/model"], "no model folder no/such/model"),
        (["evaluate", "no/such/model", "--output", "/dev/null/report"], "Cannot write /dev/null/report"),
        (["evaluate", "."], r"config\.json"),
    ],
)
def test_wrong_arguments(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sentence = refused(*arguments)
    assert _matches(told, sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["study"], ["study", "decoder"], ["study", "--help"]])
def test_half_a_command_lists_its_kinds(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    asked = "--help" in words
    assert main(words) == (0 if asked else 2)
    said = capsys.readouterr()
    listed = re.findall(r"^  (\w+ \w+) +[A-Z].*\.$", said.out if asked else said.err, re.MULTILINE)
    assert listed == ["study modules", "study points", "study decoders", "study grid"]
    assert asked or said.err.startswith("cssformer: `cssformer study` is no whole command; there are\n")


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("model:\n  chanels: 3\n", "mine.yaml.*'model.chanels'.*'model.channels'"),
        ("training:\n  steps: many\n", "mine.yaml.*training.steps.*'many'"),
        ("training:\n  steps: 0\n", "mine.yaml: training.steps cannot be '0'"),
        ("training: [\n", "mine.yaml is not YAML"),
    ],
)
def test_wrong_configs(refused: Callable[..., str], tmp_path: Path, content: str, told: str) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(content)
    assert _matches(told, refused("train", "--config", config, "--output", tmp_path / "run"))
    assert files_below(tmp_path) == ["mine.yaml"]


def _no_pictures(source: Path) -> str:
    shutil.rmtree(source)
    return "no folder"


def _empty(source: Path) -> str:
    for folder in ("pictures", "masks"):
        shutil.rmtree(source / folder)
        (source / folder).mkdir()
    return "pictures holds no"


def _without_mask(source: Path) -> str:
    (source / "masks" / "3.png").unlink()
    return r"3\.jpg has no mask"


def _rogue_id(source: Path) -> str:
    set_id(source / "masks" / "2.png", 77)
    return "77"


def _cut_picture(source: Path) -> str:
    cut(source / "pictures" / "2.jpg")
    return r"2\.jpg is truncated"


def _cut_mask(source: Path) -> str:
    cut(source / "masks" / "2.png")
    return r"2\.png is truncated"


def _no_picture(source: Path) -> str:
    (source / "pictures" / "2.jpg").write_text("words")
    return r"2\.jpg"


def _other_size(source: Path) -> str:
    cv2.imwrite(str(source / "masks" / "2.png"), np.zeros((20, 30), np.uint8))
    return r"2\.jpg is 64x48.*2\.png is 30x20"


@pytest.mark.parametrize(
    "damage",
    [_no_pictures, _empty, _without_mask, _rogue_id, _cut_picture, _cut_mask, _no_picture, _other_size],
)
def test_prepare_refuses_a_wrong_source(
    refused: Callable[..., str], tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    source = make_source(tmp_path / "source")
    told, before = damage(source), files_below(tmp_path)
    folders = source / "pictures", source / "masks"
    sentence = refused(
        "prepare", "folder", "--source", *folders, "--output", tmp_path / "data", "--classes", "sky", "tree", "road"
    )
    assert _matches(told, sentence)
    assert files_below(tmp_path) == before and not (tmp_path / "data").exists()


def test_prepare_does_not_overwrite(refused: Callable[..., str], work: Path, data: Path) -> None:
    before = files_below(data)
    assert "exists already" in refused("prepare", "folder", "--source", work / "source", "--output", data)
    assert files_below(data) == before


def _first(data: Path, split: str, kind: str) -> Path:
    return min((data / split / kind).iterdir())


def _lost_label(data: Path) -> str:
    _first(data, "train", "labels").unlink()
    return "without label|has no label"


def _outside_train(data: Path) -> str:
    path = _first(data, "train", "labels")
    set_id(path, 77)
    return rf"77.*{path.name}|{path.name}.*77"


def _outside_val(data: Path) -> str:
    path = _first(data, "val", "labels")
    set_id(path, 3)
    return rf"id 3.*{path.name}|{path.name}.*id 3"


def _truncated_train(data: Path) -> str:
    cut(_first(data, "train", "images"))
    return rf"{_first(data, 'train', 'images').name} is truncated"


def _truncated_val(data: Path) -> str:
    cut(_first(data, "val", "images"))
    return rf"{_first(data, 'val', 'images').name} is truncated"


def _no_split(data: Path) -> str:
    shutil.rmtree(data / "val")
    return "no folder .*val"


def _empty_split(data: Path) -> str:
    for path in (data / "train" / "images").iterdir():
        path.unlink()
    return "images holds no pictures"


@pytest.mark.parametrize(
    "damage",
    [_lost_label, _outside_train, _outside_val, _truncated_train, _truncated_val, _no_split, _empty_split],
)
def test_check_tells_and_training_refuses_before_it_starts(
    refused: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
    data: Path,
    tmp_path: Path,
    damage: Callable[[Path], str],
) -> None:
    told = damage(data)
    assert main(["check", str(data), "--json", str(tmp_path / "check.json")]) == 1
    errors = json.loads((tmp_path / "check.json").read_text())["errors"]
    assert any(_matches(told, error) for error in errors)
    out = capfd.readouterr().out
    assert all(f"error: {error}\n" in out for error in errors)
    assert _matches(r"\n(1 error|[02-9] errors|\d\d+ errors), (1 warning|[02-9] warnings|\d\d+ warnings)\.\n$", out)
    assert _matches(told, refused("train", "--data", data, "--output", tmp_path / "run", *TINY))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [None, "classes: [", "classes: {0: {name: a}, 2: {name: b}}", "ignore: 7"])
def test_a_folder_without_sound_description(
    refused: Callable[..., str], data: Path, tmp_path: Path, content: str | None
) -> None:
    (data / "dataset.yaml").unlink()
    if content is not None:
        (data / "dataset.yaml").write_text(content)
    assert "dataset.yaml" in refused("check", data)
    assert "dataset.yaml" in refused("train", "--data", data, "--output", tmp_path / "run", *TINY)


def test_missing_and_empty_data_folders(refused: Callable[..., str], work: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "out.txt").touch()
    for folder, told in (("nowhere", "no folder"), ("empty", "not a prepared folder")):
        for command in (
            ["check"],
            ["train", "--output", tmp_path / "run", "--data"],
            ["evaluate", work / "run", "--data"],
        ):
            assert told in refused(*command, tmp_path / folder)
    assert "no file or folder" in refused("predict", work / "run", tmp_path / "nowhere", "--output", tmp_path / "out")
    assert "holds no pictures" in refused("predict", work / "run", tmp_path / "empty", "--output", tmp_path / "out")
    assert files_below(tmp_path) == ["out.txt"] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_picture_that_a_loading_process_cannot_read_is_one_sentence(
    refused: Callable[..., str], work: Path, data: Path, tmp_path: Path, split: str
) -> None:
    # The ends of these files are sound, so that only decoding finds the damage.
    for path in (data / split / "images").iterdir():
        content = path.read_bytes()
        path.write_bytes(content[:200] + b"\xff\xd9")
    words = [*TINY[:-1], "1"]
    sentence = refused("train", "--data", data, "--output", tmp_path / "run", *words)
    assert f"{data / split / 'images'}" in sentence and ".jpg" in sentence
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "scores.json").exists()
    sentence = refused("evaluate", work / "run", "--data", data, "--split", split, "--output", tmp_path / "report")
    assert f"{data / split / 'images'}" in sentence
    assert not (tmp_path / "report").exists()


def test_a_run_that_failed_before_its_first_checkpoint_may_start_again(
    refused: Callable[..., str], work: Path, data: Path, tmp_path: Path
) -> None:
    for path in (data / "train" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:200] + b"\xff\xd9")
    words = ["train", "--data", str(data), "--output", str(tmp_path / "run"), *TINY]
    refused(*words)
    shutil.rmtree(data)
    shutil.copytree(work / "data", data)
    assert main(words) == 0


def test_damaged_pictures_are_told_and_the_others_predicted(
    refused: Callable[..., str], capfd: pytest.CaptureFixture[str], work: Path, tmp_path: Path
) -> None:
    pictures = shutil.copytree(work / "source" / "pictures", tmp_path / "pictures")
    cut(pictures / "2.jpg")
    output = tmp_path / "out"
    assert "2.jpg" in refused("predict", work / "run", pictures / "2.jpg", "--output", output)
    assert not output.exists()
    assert main(["predict", str(work / "run"), str(pictures), "--output", str(output)]) == 1
    assert capfd.readouterr().err.startswith(f"error: {pictures / '2.jpg'} is truncated")
    assert files_below(output) == [*(f"labels/{number}.png" for number in (0, 1, 3, 4, 5)), "legend.png"]


def test_paths_from_the_standard_input(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = work / "source" / "pictures"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{pictures / '1.jpg'}\n\n{pictures / '3.jpg'}\n"))
    output = tmp_path / "out"
    words = ["predict", str(work / "run"), str(pictures / "0.jpg"), "-", "--output", str(output)]
    assert main(words) == 0
    assert files_below(output) == ["labels/0.png", "labels/1.png", "labels/3.png", "legend.png"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(["predict", str(work / "run"), "-", "--output", str(tmp_path / "none")]) == 2


def test_wrong_groups_are_told_before_anything_is_scored(
    refused: Callable[..., str], work: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scored(*_: object, **__: object) -> None:
        raise AssertionError("It was scored first.")

    for module in ("cssformer.metrics.evaluate", "cssformer.metrics.evaluate_predictions"):
        monkeypatch.setattr(module, scored)
    labels = data / "val" / "labels"
    for words in (["evaluate", work / "run"], ["score", labels, data], ["compare", labels, labels, data]):
        assert "is no regular expression" in refused(*words, "--group_by", "(")


def test_the_folder_one_is_in_is_predicted(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work / "source" / "pictures")
    assert main(["predict", str(work / "run"), ".", "--output", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 6


def test_pictures_smaller_than_the_crop_just_work(work: Path, tmp_path: Path) -> None:
    words = ["train", "--data", str(work / "data"), "--output", str(tmp_path / "run"), *TINY]
    assert main([*words, "--augment.crop", "96", "128", "--evaluation.mode", "slide"]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--mode", "slide", "--crop", "128", "96"]) == 0


def test_other_classes(refused: Callable[..., str], work: Path, data: Path, tmp_path: Path) -> None:
    sentence = refused("evaluate", work / "run", "--data", work / "data5", "--output", tmp_path / "report")
    assert "3 classes" in sentence and " 5" in sentence
    assert not (tmp_path / "report").exists()
    # The data of a run are changed under it.
    run = tmp_path / "run"
    assert main(["train", "--data", str(data), "--output", str(run), *TINY]) == 0
    shutil.rmtree(data)
    shutil.copytree(work / "data5", data)
    before = {file: (run / file).stat().st_mtime_ns for file in files_below(run)}
    sentence = refused("train", "--output", run, "--resume", "--training.steps", "9")
    assert "are not those that the run in" in sentence and "classes" in sentence
    assert {file: (run / file).stat().st_mtime_ns for file in files_below(run)} == before


@pytest.mark.parametrize("damage", ["head", "config", "cut", "words"])
def test_damaged_models(refused: Callable[..., str], work: Path, tmp_path: Path, damage: str) -> None:
    model = Path(shutil.copytree(work / "run" / "model", tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    if damage == "head":
        config.update(classes=None, colours=None, raw_ids=None)
        config["network"]["num_classes"] = 5
    elif damage == "config":
        config["chanels"] = 3
    (model / "config.json").write_text("{" if damage == "words" else json.dumps(config))
    if damage == "cut":
        cut(model / "model.safetensors")
    sentence = refused("predict", model, work / "source" / "pictures", "--output", tmp_path / "out")
    assert "model" in sentence
    assert damage != "head" or ("3 classes" in sentence and "5" in sentence)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize("device", ["gpu7", "cuda:99"])
def test_a_device_that_is_not_there(
    refused: Callable[..., str], work: Path, tmp_path: Path, command: str, device: str
) -> None:
    inputs = [work / "source" / "pictures", "--output", tmp_path / "out"] if command == "predict" else []
    assert f"'{device}'" in refused(command, work / "run", *inputs, "--device", device)
    assert not (tmp_path / "out").exists()


def test_data_of_a_model_without_run(refused: Callable[..., str], work: Path) -> None:
    assert "give --data" in refused("evaluate", work / "run" / "model")
    assert main(["evaluate", str(work / "run" / "model"), "--data", str(work / "data")]) == 0
    assert "test" in refused("evaluate", work / "run", "--split", "test")


def test_predictions_of_other_programs(work: Path, tmp_path: Path) -> None:
    """The files that `predict` and a submission wrote score as the model that they came from."""
    data, file = work / "data", tmp_path / "scores.json"
    assert main(["predict", str(work / "run"), str(data / "val" / "images"), "--output", str(tmp_path / "out")]) == 0
    words = ["score", str(tmp_path / "out"), str(data), "--json", str(file)]
    assert main([*words, "--output", str(tmp_path / "report")]) == 0
    scored = json.loads(file.read_text())
    assert scored == json.loads((tmp_path / "report" / "scores.json").read_text())
    assert main(["evaluate", str(work / "run"), "--json", str(file)]) == 0
    own = {"options": {}, "model": ""}
    assert {**scored, **own} == {**json.loads(file.read_text()), **own}
    assert main(["evaluate", str(work / "run"), "--submission", str(tmp_path / "submission")]) == 0
    words = ["score", str(tmp_path / "submission"), str(data), "--raw"]
    assert main([*words, "--json", str(file)]) == 0
    assert {**json.loads(file.read_text()), **own} == {**scored, **own}


def test_two_models_are_compared_on_their_data(
    refused: Callable[..., str], work: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, file = str(work / "run"), tmp_path / "comparison.json"
    words = ["compare", run, f"{run}/model", "--data", str(work / "data"), "--split", "train", "--device", "cpu"]
    assert main([*words, "--output", str(tmp_path / "report"), "--json", str(file)]) == 0
    assert "do not tell which is better" in capfd.readouterr().out
    told = json.loads(file.read_text())
    assert told["miou"]["difference"] == told["miou"]["low"] == told["miou"]["high"] == 0
    assert files_below(tmp_path / "report") == ["comparison.json", "differences.png"]
    assert "give --data" in refused("compare", run, f"{run}/model")


def test_a_split_without_labels_gives_files_alone(
    refused: Callable[..., str], work: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / "val" / "images", data / "test" / "images")
    words = ["evaluate", work / "run", "--data", data, "--split", "test"]
    assert "has no label" in refused(*words)
    assert "no scores for --output" in refused(
        *words, "--submission", tmp_path / "out", "--output", tmp_path / "report"
    )
    assert main([*map(str, words), "--submission", str(tmp_path / "out"), "--json", str(tmp_path / "done.json")]) == 0
    names = sorted(path.stem for path in (data / "test" / "images").iterdir())
    assert json.loads((tmp_path / "done.json").read_text()) == {
        "submission": str(tmp_path / "out"),
        "pictures": len(names),
    }
    assert files_below(tmp_path / "out") == [f"{name}.png" for name in names]
    assert "no label to score against" in refused("score", tmp_path / "out", data, "--split", "test")
    assert "prepared data" in refused(*words, "--submission", data / "test" / "labels")
    assert not (data / "test" / "labels").exists()


def test_a_split_that_is_not_there_is_told_with_those_that_are(refused: Callable[..., str], work: Path) -> None:
    sentence = refused("evaluate", work / "run", "--data", work / "data", "--split", "tset")
    assert "no folder" in sentence and "train, val" in sentence


def test_a_run_is_not_overwritten(refused: Callable[..., str], work: Path) -> None:
    before = {file: (work / "run" / file).stat().st_mtime_ns for file in files_below(work / "run")}
    assert "--resume" in refused("train", "--output", work / "run", *TINY)
    assert {file: (work / "run" / file).stat().st_mtime_ns for file in files_below(work / "run")} == before


def _commands(work: Path, output: Path) -> dict[str, list[object]]:
    """Every command that writes, into ``output``."""
    source = work / "source"
    return {
        "prepare": ["prepare", "folder", "--source", source / "pictures", source / "masks", "--output", output],
        "train": ["train", "--data", work / "data", "--output", output, *TINY],
        "evaluate": ["evaluate", work / "run", "--output", output],
        "score": ["score", work / "data" / "val" / "labels", work / "data", "--output", output],
        "predict": ["predict", work / "run", source / "pictures", "--output", output, "--overlay"],
        "json": ["check", work / "data", "--json", output / "check.json"],
    }


@pytest.mark.parametrize("command", ["prepare", "train", "evaluate", "score", "predict", "json"])
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_an_output_that_cannot_be_written(
    refused: Callable[..., str], work: Path, tmp_path: Path, command: str, place: str
) -> None:
    if place.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("there is no /proc")
    (tmp_path / "file").write_text("kept")
    output = tmp_path / place
    assert str(output) in refused(*_commands(work, output)[command])
    assert (tmp_path / "file").read_text() == "kept" and files_below(tmp_path) == ["file"]


@pytest.mark.parametrize("place", ["file/scores.json", "folder", "/proc/nowhere/scores.json"])
def test_a_result_that_cannot_be_written_is_told_before_the_work(
    refused: Callable[..., str], work: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    command = _commands(work, tmp_path / "out")["train"]
    assert str(tmp_path / place) in refused(*command, "--json", tmp_path / place)
    assert files_below(tmp_path) == ["file"] and not (tmp_path / "out").exists()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems cannot be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("command", ["prepare", "train", "evaluate", "predict", "json"])
def test_a_full_disk(refused: Callable[..., str], work: Path, full_disk: Path, command: str) -> None:
    # Training has a megabyte, which is enough for all but the checkpoint; the others have nothing.
    if command != "train":
        with (full_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
    sentence = refused(*_commands(work, full_disk / "out")[command])
    assert "No space left" in sentence and str(full_disk / "out") in sentence
    written = {file for file in files_below(full_disk) if "tensorboard" not in file}
    run = {"out/.lock", "out/recipe.yaml", "out/metrics.csv", "out/augmented.png"}
    assert written == (run if command == "train" else {"filler"})


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder(refused: Callable[..., str], work: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for command in _commands(work, tmp_path / "out").values():
        assert "Permission denied" in refused(*command)
    tmp_path.chmod(0o700)
    assert list(tmp_path.iterdir()) == []


def test_the_program_itself(tmp_path: Path) -> None:
    """Another process, in whose standard error nothing else may stand."""
    for arguments, told in ((["check", "nowhere"], "no folder nowhere"), (["trian"], "train")):
        done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2 and told in one_sentence(done.stderr) and done.stdout == ""
    done = subprocess.run(
        [*PROGRAM, "train", "--output", "file/run", *TINY[:-1], "1"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")


NAMES = ["road [wet]", "道路 [/wet]", ":car:"]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``work``, with class names and a folder beyond ASCII that read like markup."""
    root = tmp_path_factory.mktemp("named") / "größe [bold]"
    assert prepare(make_source(root / "source"), root / "data", "--classes", *NAMES) == 0
    assert main(["train", "--data", str(root / "data"), "--output", str(root / "run"), *TINY]) == 0
    return root


def test_names_and_paths_are_printed_as_they_are(
    named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = str(named / "source" / "pictures")
    for words in (
        ["check", str(named / "data")],
        ["evaluate", str(named / "run")],
        ["predict", str(named / "run"), pictures, "--output", str(named / "out")],
    ):
        capsys.readouterr()
        assert main([*words, "--json", str(tmp_path / f"{words[0]}.json")]) == 0
        printed = capsys.readouterr().out
        assert all(name in printed for name in NAMES), printed
    assert f"written to {named / 'out'}" in printed
    out, data = str(named / "again"), str(named / "data")
    assert main(["train", "--data", data, "--output", out, "--model.init", str(named / "run"), *TINY]) == 0
    assert f"Started from {named / 'run'}: " in capsys.readouterr().out


def test_a_locale_that_is_not_utf8(named: Path, tmp_path: Path) -> None:
    """Files are UTF-8 all the same, and what cannot be printed is a question mark."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment["PYTHONIOENCODING"] = "cp1252"
    words = ["evaluate", "run", "--data", "data", "--output", str(tmp_path / "report")]
    done = subprocess.run([*PROGRAM, *words], cwd=named, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?? [/wet]" in done.stdout
    with (tmp_path / "report" / "classes.csv").open(newline="", encoding="utf-8") as file:
        assert [row["class"] for row in csv.DictReader(file)] == NAMES


WITHOUT = """
import json, sys
from importlib.machinery import PathFinder
run, picture, output, absent = sys.argv[1:]
absent = set(json.loads(absent))
class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
from cssformer import Predictor
from cssformer.cli import main
assert Predictor.from_pretrained(run)(picture).labels.shape == (48, 64)
assert main(["predict", "animals", picture, "--output", output + "/predicted"]) == 0
assert main(["evaluate", run]) == 0
assert main(["train", "--output", output + "/run"]) == 2
"""


def modules_beside(requirements: list[str]) -> set[str]:
    """The modules of all installed packages but those that the requirements bring along."""
    needed, waiting = {"cssformer"}, [Requirement(each) for each in requirements]
    while waiting:
        each = waiting.pop()
        if not each.marker or each.marker.evaluate({"extra": ""}):
            needed.add(canonicalize_name(each.name))
            extras = [{"extra": extra} for extra in each.extras or {""}]
            for line in requires(each.name) or ():
                inner = Requirement(line)
                known = canonicalize_name(inner.name) in needed
                if not known and (not inner.marker or any(map(inner.marker.evaluate, extras))):
                    inner.marker = None
                    waiting.append(inner)
    found = packages_distributions().items()
    beside = {module for module, names in found if not {*map(canonicalize_name, names)} & needed}
    return beside - sys.stdlib_module_names


def test_prediction_and_scoring_in_lower_precision(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    seen: list[torch.dtype] = []
    forward = CSSFormer.forward_logits

    def recorded(network: CSSFormer, images: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return forward(network, images)

    monkeypatch.setattr(CSSFormer, "forward_logits", recorded)
    run, result, picture = str(work / "run"), tmp_path / "scores.json", str(work / "source/pictures/1.jpg")
    for words, dtype in (([], torch.float32), (["--precision", "bf16"], torch.bfloat16)):
        assert main(["evaluate", run, "--json", str(result), *words]) == 0
        assert json.loads(result.read_text())["options"].get("precision") == (words[1] if words else None)
        assert main(["predict", run, picture, "--output", str(tmp_path / f"predicted{len(words)}"), *words]) == 0
        assert set(seen) == {dtype}
        seen.clear()
    assert "32 or bf16 or 16" in refused("evaluate", run, "--precision", "8")


def test_prediction_and_scoring_need_the_dependencies_alone(work: Path, tmp_path: Path) -> None:
    """Nothing of the extras: no Lightning, tensorboard, gradio, rasterio, pycocotools, matplotlib, scipy ..."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    absent = modules_beside(
        tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["dependencies"]
    )
    assert {"lightning", "pytest"} <= absent and not {"torch", "torchvision", "cv2", "timm"} & absent
    words = [str(work / "run"), str(work / "source" / "pictures" / "1.jpg"), str(tmp_path), json.dumps([*absent])]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        0,
        'cssformer: This needs lightning; install it with: pip install "cssformer[train]".\n',
    )
    assert files_below(tmp_path) == ["predicted/labels/1.png", "predicted/legend.png"]


def test_processes_that_load_pictures_are_not_told_of_on_one_core(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        DataLoader([0], num_workers=10_000)
        assert len(told) == 1
        assert main(["models"]) == 0
        DataLoader([0], num_workers=10_000)
    assert len(told) == 1 and "animals" in capsys.readouterr().out


def test_extras_are_those_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert EXTRAS.keys() == project["optional-dependencies"].keys() - {"dev", "docs"}
    for extra, modules in EXTRAS.items():
        named = " ".join(project["optional-dependencies"][extra]).replace("-", "_")
        assert all(module in named for module in modules)


def test_a_network_beyond_the_memory_is_told(tmp_path: Path) -> None:
    """One layer of 34 GB, where a process may have 32."""
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))\n"
    code += "from cssformer.cli import main\nsys.exit(main())"
    size = ["--model.channels", "1024", "--model.heads", "1024", "--model.points", "1024"]
    command = [sys.executable, "-c", code, "train", "--output", str(tmp_path / "run"), *size]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "The memory is full" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_any_command_stops_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def stopped(*_: object) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except KeyboardInterrupt as error:
            # As some libraries do.
            raise RuntimeError("something else") from error

    monkeypatch.setattr("cssformer.data.check.check", stopped)
    assert main(["check", "data"]) == code
    assert capsys.readouterr() == ("", "cssformer: interrupted.\n")
    assert {each: signal.getsignal(each) for each in before} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_what_nobody_reads_and_what_cannot_be_printed(work: Path) -> None:
    words = [*PROGRAM, "check", str(work / "data")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "cssformer: No space left on device.\n")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
