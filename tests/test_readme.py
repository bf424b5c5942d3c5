"""What the README and docs/ tell people to type, import and read is there."""

import dataclasses
import re
import shlex
import textwrap
from importlib import import_module
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cssformer import CSSFormer
from cssformer.cli import EXTRAS, _find_command, _parse, main
from cssformer.commands import COMMANDS
from cssformer.utils.options import make_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("src/cssformer/bundled/*/README.md")])]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


def inner(block: re.Match[str]) -> str:
    """A fenced block as an indented one."""
    return textwrap.indent(block["body"], "    ")


def command_lines() -> list[tuple[str, str]]:
    """Page and command of every `cssformer ...` in code blocks, fenced or indented; a backslash continues a line."""
    found = []
    for page, text in TEXTS.items():
        joined = re.sub(r"\\\n\s*", " ", FENCE.sub(inner, text))
        for line in re.findall(
            r"^ {4,}(?:\$ )?(?:\w+=\S+ )*(?:torchrun .*|srun )?(?:\.venv/bin/)?(cssformer .+)$", joined, re.MULTILINE
        ):
            found.append((page, line))
    return found


def python_blocks() -> list[tuple[str, str]]:
    return [
        (page, found["body"]) for page, text in TEXTS.items() for found in FENCE.finditer(text) if found[2] == "python"
    ]


def links() -> list[tuple[str, str]]:
    return [
        (page, target)
        for page, text in TEXTS.items()
        for match in re.finditer(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", FENCE.sub("", text))
        for target in (match[1] or match[2],)
        if not re.match(r"[a-z]+:", target)
    ]


def test_something_is_found() -> None:
    assert len(command_lines()) >= 5 and python_blocks() and links()


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_commands_parse(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Configs are named relative to the repository.
    monkeypatch.chdir(ROOT)
    words = [word for word in shlex.split(line, comments=True)[1:] if word != "..."]
    if {"--help", "--version"} & set(words):
        return
    name, command = _find_command(words)
    assert command is not None
    # What a preset is chosen by, the reader's data, is not here.
    command = dataclasses.replace(command, presets=None)
    _parse(command, " ".join(name), words[len(name) :])


EXPORTS = ROOT / "tests" / "prepare" / "exports"
LABELS = {name: name.lower().replace(" ", "-") for name in ("CVAT", "labelme", "Label Studio", "COCO", "YOLO", "VOC")}
"""Of the README's table, the command of each tool."""
BENCHMARKS = ("ade20k", "cityscapes", "pascal-context", "coco-stuff-10k")


def own_cells() -> list[list[str]]:
    """What the README's table says of us: labels, scores, exports."""
    (row,) = re.findall(r"^\| \*\*cssformer\*\* \|(.*)\|$", TEXTS["README.md"], re.MULTILINE)
    return [cell.strip().split(", ") for cell in row.split("|")[:3]]


def test_the_labels_of_the_table_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks are drawn at random in test_drawn_masks.py, and each benchmark has a test beside it."""
    assert own_cells()[0] == ["masks of any kind", *LABELS, "four benchmarks"]
    assert {f"prepare {name}" for name in (*LABELS.values(), *BENCHMARKS)} < {*COMMANDS}
    for name in LABELS.values():
        source, output = EXPORTS / name.replace("-", "_"), tmp_path / name
        assert main(["prepare", name, "--source", str(source), "--output", str(output), "--val_share", "0.3"]) == 0
        main(["check", str(output)])
        assert "0 errors" in capsys.readouterr().out


def test_the_scores_of_the_table_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert own_cells()[1] == ["mIoU with interval", "Boundary IoU", "paired comparison"]
    rng = np.random.default_rng(0)
    for number in range(13):
        mask = np.kron(rng.integers(0, 2, (4, 5)), np.ones((9, 9), int)).astype(np.uint8)
        for shift, folder in enumerate(("masks", "a", "b")):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f"{number}.png"), np.roll(mask, shift, 1))
    masks, one, other = (str(tmp_path / folder) for folder in ("masks", "a", "b"))
    assert main(["score", one, masks, "--classes", "x", "y"]) == 0
    assert re.search(r"mIoU.*95 %", out := capsys.readouterr().out) and "Boundary IoU" in out
    assert main(["compare", one, other, masks, "--classes", "x", "y"]) == 0
    assert "Boundary IoU %" in capsys.readouterr().out


def test_an_export_of_the_table_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are, beside their runtimes, in tests/export/test_export.py."""
    pytest.importorskip("onnxruntime")
    assert own_cells()[2] == ["ONNX", "OpenVINO", "torch.export"]
    model = CSSFormer("test_resnet", num_classes=3, channels=16, pretrained=False, cia=False, fusion=False)
    model.save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--output", str(tmp_path / "m.onnx")]) == 0
    assert "ONNX Runtime agrees with PyTorch" in capsys.readouterr().out and (tmp_path / "m.onnx").is_file()


OTHER = re.compile(
    r"(?:^ {4,}|`)(?:\w+=\S+ )?(?:(?:python|pytest)(?: -m (?:slow|\"[^\"]*\"))?(?: -k \w+)? "
    r"(?P<path>[\w/.]+\.py|tests[\w/]*)|make (?P<target>[\w-]+)"
    r"|pip install (?:-e )?\"(?:\.|cssformer)\[(?P<extras>[\w,]+)\]\")",
    re.MULTILINE,
)
"""Commands that are not ours: programs and tests of the repository, targets of make, extras of the package."""


def test_other_commands_name_what_is_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = {*EXTRAS, "dev"}
    found = [(page, match) for page, text in TEXTS.items() for match in OTHER.finditer(FENCE.sub(inner, text))]
    assert {kind for _, match in found for kind, value in match.groupdict().items() if value} == {*OTHER.groupindex}
    for page, match in found:
        path, target, named = match["path"], match["target"], match["extras"]
        assert path is None or (ROOT / path).exists(), f"{page}: {match[0]}"
        assert target is None or target in targets, f"{page}: {match[0]}"
        assert named is None or set(named.split(",")) <= extras, f"{page}: {match[0]}"


FOREIGN = {"--shm-size", "--strict", "--collection"}
"""Options of docker, twine and rio."""


def test_options_within_sentences_are_options_of_a_command() -> None:
    known = {"--json", "--config", "--help", "--version", *FOREIGN}
    for program in [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("scripts/*.py")]:
        known |= {*re.findall(r"\"(--[\w-]+)\"", program.read_text(encoding="utf-8"))}
    for name, command in COMMANDS.items():
        parser = make_parser(name)
        command.add_arguments(parser)
        known |= {option for action in parser._actions for option in action.option_strings}
    for page, text in TEXTS.items():
        for words in re.findall(r"`([^`\n]*)`", FENCE.sub("", text)):
            for option in re.findall(r"(?<![\w-])--[a-zA-Z][\w.-]*", words):
                assert option.rstrip(".") in known, f"{page}: {option}"
            for first in re.findall(r"^cssformer ([a-z][\w-]*)", words):
                assert first in {name.split()[0] for name in COMMANDS}, f"{page}: {words}"


@pytest.mark.parametrize(("page", "body"), python_blocks())
def test_python_compiles_and_its_imports_exist(page: str, body: str) -> None:
    assert isinstance(compile(body, page, "exec"), CodeType)
    imports = re.findall(r"^from (cssformer[\w.]*) import (.+?)(?: +#.*)?$", body, re.MULTILINE)
    for module, names in imports:
        for name in names.split(","):
            home = import_module(module)
            assert isinstance(home, ModuleType) and hasattr(home, name.split(" as ")[0].strip()), f"{module}.{name}"


@pytest.mark.parametrize("rare", [False, True])
def test_the_loop_of_ones_own_trains_a_model_that_the_command_line_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rare: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind, channels in (("images", (3,)), ("labels", ())):
            (tmp_path / "data/mine" / split / kind).mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 3, (40, 50, *channels), np.uint8) * (80 if channels else 1)
                cv2.imwrite(str(tmp_path / "data/mine" / split / kind / f"{number}.png"), pixels)
    classes = {index: {"name": name, "colour": [index, 0, 9]} for index, name in enumerate("abc")}
    (tmp_path / "data/mine/dataset.yaml").write_text(yaml.safe_dump({"classes": classes}))
    (body,) = [body for page, body in python_blocks() if page == "docs/training.md" and "save_pretrained" in body]
    small = {"(256, 256)": "(32, 32)", "1000": "2", '"resnet10t"': '"test_resnet"'}
    for word, less in small.items():
        assert word in body
        body = body.replace(word, less)
    if rare:
        (part,) = [part for page, part in python_blocks() if page == "docs/training.md" and "criterion" in part]
        body = body.replace("model = CSSFormer", part + "model = CSSFormer").replace(
            "= segmentation_loss(", "= criterion("
        )
        assert body.count("criterion") == 2
    exec(compile(body, "docs/training.md", "exec"), {})
    model = CSSFormer.from_pretrained("models/mine")
    assert model.metadata.classes == ("a", "b", "c") and model.metadata.inference == {"mode": "slide", "crop": [32, 32]}
    assert main(["evaluate", "models/mine", "--data", "data/mine"]) == 0
    assert re.search(r"^a .*\nb .*\nc ", capsys.readouterr().out, re.MULTILINE)


def test_the_network_in_a_loop_for_smp(tmp_path: Path) -> None:
    """Also in training a tensor, at sides that are no multiples of 32; compiled it saves ordinary weights."""
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    (body,) = [body for page, body in python_blocks() if page == "docs/training.md" and "smp.Unet" in body]
    found = {"CSSFormer": CSSFormer}
    exec(body.replace('"resnet34", num_classes=3, pretrained=True', '"test_resnet", num_classes=3, channels=16'), found)
    model = found["model"]
    labels = torch.randint(0, 3, (2, 45, 70))
    labels[:, :5] = 255
    images = torch.rand(2, 3, 45, 70)
    losses.DiceLoss("multiclass", ignore_index=255)(model.train()(images), labels).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.compile(model.eval()).save_pretrained(tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(CSSFormer.from_pretrained(tmp_path)(images), model(images))


def write_recipe(path: Path, steps: int) -> None:
    """One of a small network on a few scenes."""
    recipe = {
        "output": "runs/mine",
        "model": {"backbone": "test_resnet", "channels": 16, "heads": 2, "points": 2},
        "scenes": {"count": 2, "val_count": 1, "size": [32, 32]},
        "augment": {"crop": [32, 32]},
        "training": {"steps": steps, "batch_size": 2, "validate_every": 1, "log_every": 1, "workers": 0},
    }
    path.write_text(yaml.safe_dump(recipe))


def test_a_training_from_python_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path / "mine.yaml", steps=2)
    (body,) = [body for page, body in python_blocks() if page == "docs/training.md" and "my_loss" in body]
    found: dict[str, Any] = {}
    exec(compile(body, "docs/training.md", "exec"), found)
    told = re.findall(r"^([12]) (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert [step for step, _ in told] == ["1", "2"]
    assert max(float(miou) for _, miou in told) == pytest.approx(found["scores"].scores.miou)
    (curves,) = (tmp_path / "logs").rglob("metrics.csv")
    assert "mIoU" in curves.read_text() and not (tmp_path / "runs/mine/tensorboard").exists()
    # The loss is the paper's, and what was given for it trains the same.
    assert found["train"](dataclasses.replace(found["recipe"], output="plain")) is not None
    first, second = (load_file(tmp_path / run / "model/model.safetensors") for run in ("runs/mine", "plain"))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-4)


def test_a_network_of_ones_own_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module, use = (body for page, body in python_blocks() if page == "docs/training.md" and "NearCSSFormer" in body)
    (tmp_path / "near.py").write_text(module)
    write_recipe(tmp_path / "mine.yaml", steps=1)
    cv2.imwrite("photo.jpg", np.zeros((40, 50, 3), np.uint8))
    found: dict[str, Any] = {}
    exec(compile(use, "docs/training.md", "exec"), found)
    network = CSSFormer.from_pretrained("runs/mine")
    assert isinstance(network, found["NearCSSFormer"]) and network.hparams["reach"] == 4
    near = network.csf[0].offsets
    torch.nn.init.constant_(near.offsets.bias, 9)
    assert near(torch.zeros(1, 2, 16)).unique().tolist() == [4]


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "target"), links())
def test_links_lead_to_files_and_headings(page: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists(), f"{page} links to {target}"
    if anchor:
        assert anchor in anchors(file), f"{page} links to {target}"


def test_the_tests_that_are_named_are_there() -> None:
    named = [
        (page, name, (ROOT / page).parent / file)
        for page, text in TEXTS.items()
        for name, file in re.findall(r"\[`(test_\w+)`\]\(([^)]+\.py)\)", text)
    ]
    for page, name, file in named:
        assert re.search(rf"^def {name}\(", file.read_text(encoding="utf-8"), re.MULTILINE), f"{page} names {name}"
    # What is ours beside other programs is shown by a test.
    table = TEXTS["docs/training.md"].partition("## Beside other programs")[2]
    rows = [line.split(" | ")[1] for line in table.splitlines() if line.startswith("| ") and " | ✔" in line]
    assert len(rows) > 10 and all(not own.startswith("✔") or "[`test_" in own for own in rows)
