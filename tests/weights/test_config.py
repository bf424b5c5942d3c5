"""A saved model may come from anybody: whatever its config says, one sentence tells what is wrong."""

import json
import os
import re
import shutil
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch

from cssformer import CSSFormer
from cssformer.model import Metadata
from cssformer.utils.errors import UserError
from cssformer.weights.config import FORMAT

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a small network with all that may be kept with it, and its config."""
    torch.manual_seed(0)
    model = CSSFormer("test_resnet", 3, channels=8, heads=2, points=1, backbone_args={"output_stride": 32})
    colours = ((1, 2, 3), (4, 5, 6), (255, 0, 9))
    inference = {"mode": "slide", "crop": [64, 96], "stride": [32, 48], "short_side": 64}
    model.metadata = Metadata(("road", "a tree: 木", "sky"), colours, (0, 21, 23), inference)
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder, (folder / "config.json").read_text(encoding="utf-8")


@pytest.fixture
def config(saved: tuple[Path, str]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(saved[1])
    return content


@pytest.fixture
def folder(saved: tuple[Path, str]) -> Path:
    """The model's folder, whose config each test writes anew."""
    return saved[0]


def refusal(folder: Path, content: dict[str, Any] | str) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        CSSFormer.from_pretrained(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence and "Error" not in sentence
    assert sentence.isprintable() and len(sentence) < 600
    return sentence


def test_what_is_saved_is_taken(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    model = CSSFormer.from_pretrained(folder)
    assert model.metadata.classes == ("road", "a tree: 木", "sky") and model.metadata.raw_ids == (0, 21, 23)
    assert model.metadata.inference == {"mode": "slide", "crop": [64, 96], "stride": [32, 48], "short_side": 64}
    assert model.hparams == config["network"]


def test_what_need_not_be_said(folder: Path, config: dict[str, Any]) -> None:
    for name in ("version", "classes", "colours", "raw_ids", "inference"):
        del config[name]
    config["network"]["backbone_args"] = None
    (folder / "config.json").write_text(json.dumps(config))
    assert CSSFormer.from_pretrained(folder).metadata == Metadata()


@pytest.mark.parametrize(
    ("found", "advice"), [(None, "train the model again"), (1, "train the model again"), (3, "update cssformer")]
)
def test_another_format(folder: Path, config: dict[str, Any], found: int | None, advice: str) -> None:
    del config["format"]
    if found is not None:
        config["format"] = found
    # Its keys may be others too; the format is what is told.
    config["network"]["something_new"] = 1
    sentence = refusal(folder, config)
    assert f"is of format {found or 1}, this version reads format {FORMAT}" in sentence and advice in sentence


@pytest.mark.parametrize("key", ["architecture", "network", "network.backbone", "network.num_classes"])
def test_a_missing_key(folder: Path, config: dict[str, Any], key: str) -> None:
    *tables, name = key.split(".")
    del reduce(dict.__getitem__, tables, config)[name]
    sentence = refusal(folder, config)
    assert "config.json" in sentence
    assert f"lacks {name}" in sentence or name == "network"


MALFORMED: dict[str, list[Any]] = {
    "channels": [
        3,
        [],
        {},
        {"values": "uint16", "mean": [1, 2, 3]},
        {"values": "complex64", "mean": [1, 2, 3], "std": [1, 1, 1]},
        {"values": ["uint8"], "mean": [1, 2, 3], "std": [1, 1, 1]},
        {"values": "uint16", "mean": [1, 2], "std": [1, 1]},
        {"values": "uint16", "mean": [1, 2, "x"], "std": [1, 1, 1]},
        {"values": "uint16", "mean": [1, 2, [3]], "std": [1, 1, 1]},
        {"values": "uint16", "mean": [1, 2, 3], "std": [1, 1, -1]},
        {"values": "uint16", "mean": [1, 2, 3], "std": [1, 1, 1], "shown": [0, 1, 3]},
        {"values": "uint16", "mean": [1, 2, 3], "std": [1, 1, 1], "shown": 0},
    ],
    "network.in_channels": [0, None, "3", 4, 3.0, 2000],
    "format": [None, "2", 2.0, True, [2]],
    "architecture": [None, 3, "", ["CSSFormer"], "../x", "a b", "x" * 101],
    "version": [None, 5, ""],
    "network": [None, [], "x", 3],
    "classes": [
        "abc",
        {},
        [1, 2, 3],
        [None] * 3,
        [["a"], "b", "c"],
        ["a", "b"],
        ["", "b", "c"],
        ["a\nb", "b", "c"],
        ["\ud800", "b", "c"],
        ["\x1b[31m", "b", "c"],
        ["a" * 201, "b", "c"],
    ],
    "colours": [
        "abc",
        [1, 2, 3],
        [["1", "2", "3"]] * 3,
        [[0.5, 1, 2]] * 3,
        [[300, 0, 0]] * 3,
        [[-1, 0, 0]] * 3,
        [[True, 0, 0]] * 3,
        [[1, 2]] * 3,
        [[1, 2, 3]] * 2,
    ],
    "raw_ids": ["abc", [-1, 2, 3], [1, 2], ["1", 2, 3], [1.5, 2, 3], [2**40, 1, 2], [None] * 3],
    "inference": [None, [], "slide"],
    "inference.mode": ["tile", ["whole"], {}, None, 1],
    "inference.crop": [5, "512", [0, 4], [1, 2, 3], [1.5, 2], [64], [10**9, 64]],
    "inference.stride": [5, [0, 4], [None, 4]],
    "inference.short_side": [0, -3, "x", 1.5, 10**9],
    "inference.precision": [5],
    "network.backbone": [None, 5, [], "", "../../etc/passwd", "hf-hub:me/x", "local-dir:/tmp/x", "\ud800", "<b>"],
    "network.num_classes": [None, 0, -1, 2.0, "3", True, 10**6, 10**30],
    "network.mean": [None, [1], [1, 2, 3, 4], ["a", "b", "c"], [None] * 3, [NAN] * 3, [INF] * 3, [True] * 3],
    "network.std": [None, 5, [1], [0, 0, 0], [-1, 1, 1], [None] * 3, [NAN] * 3],
    "network.channels": [None, 0, -8, "32", 8.0, True, 10**9],
    "network.heads": [None, 0, -1, "2", 2.0, 10**9],
    "network.points": [None, 0, -1, "2", 10**9],
    "network.cia": [None, 0, 1, "true"],
    "network.fusion": [None, 0, "yes"],
    "network.fusion_stride": [None, 0, 2, 4.0, "4", [4]],
    "network.msfe_depth": [None, -1, 10**6, "1", 1.0, True],
    "network.csf_depth": [None, -1, 10**6],
    "network.aux": [None, 0, "x"],
    "network.dropout": [None, -0.1, 1.1, "x", NAN, INF, True],
    "network.backbone_args": [
        [],
        "x",
        5,
        {"pretrained": True},
        {"checkpoint_path": "weights.pth"},
        {"pretrained_cfg": "x"},
        {"pretrained_cfg_overlay": "x"},
        {"cache_dir": "x"},
        {"x": {}},
        {"x": [{}]},
        {"x": "y" * 65},
        {"x": [0] * 65},
        {"x": [["y" * 65]]},
        {"x": [[{}]]},
        {"x": [[[[1]]]]},
        {"x": 10**9},
        {"x": [[NAN]]},
        {"x": [-INF]},
        {"x": "\x1b[31m"},
        {"木": 1},
        {"a b": 1},
    ],
    "network.weights": ["weights.pth", None],
    "network.pretrained": [True, False],
    "network.classes": [["a", "b", "c"]],
    "chanels": [3],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [pytest.param(key, value, id=f"{key}-{at}") for key, many in MALFORMED.items() for at, value in enumerate(many)],
)
def test_a_malformed_value_is_named(folder: Path, config: dict[str, Any], key: str, value: Any) -> None:
    *tables, name = key.split(".")
    reduce(dict.__getitem__, tables, config)[name] = value
    sentence = refusal(folder, config)
    assert str(folder / "config.json") in sentence
    assert re.search(rf"\b{name}\b", sentence)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", "no_such_network"),
        ("backbone", "vit_tiny_patch16_224"),
        ("backbone", "resnet18.no_such_tag"),
        ("channels", 12),
        ("channels", 16),
        ("heads", 3),
        ("points", 2),
        ("cia", False),
        ("fusion", False),
        ("fusion_stride", 8),
        ("msfe_depth", 0),
        ("csf_depth", 2),
        ("aux", False),
        ("decoder", "upernet"),
        ("backbone_args", {"output_stride": 8}),
        ("backbone_args", {"out_indices": []}),
        ("backbone_args", {"out_indices": [99]}),
        ("backbone_args", {"act_layer": "no_such_layer"}),
        ("backbone_args", {"act_layer": "os.system"}),
        ("backbone_args", {"norm_layer": 5}),
        ("backbone_args", {"in_chans": 1}),
        ("backbone_args", {"colour": "red"}),
        ("backbone_args", {"drop_path_rate": "x"}),
        ("backbone_args", {"feature_cls": "x"}),
        ("backbone_args", {"feature_cfg": 5}),
    ],
)
def test_a_network_that_cannot_be_built_or_is_not_that_of_the_weights(
    folder: Path, config: dict[str, Any], key: str, value: Any
) -> None:
    config["network"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        CSSFormer.from_pretrained(folder)


@pytest.mark.parametrize("architecture", ["SegmentationNetwork", "HubModel", "SemanticFPN", "object"])
def test_another_architecture(folder: Path, config: dict[str, Any], architecture: str) -> None:
    assert f"is a {architecture}, not a CSSFormer" in refusal(folder, {**config, "architecture": architecture})


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "3", '"x"', "NaN", "{", "{} x", "\ufeff{}", "[" * 10**5, '{"a":' * 10**5, f"[{'9' * 5000}]"],
)
def test_what_is_no_table_of_json(folder: Path, text: str) -> None:
    assert str(folder) in refusal(folder, text)


def test_bytes_that_are_no_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="is no JSON"):
        CSSFormer.from_pretrained(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a device"])
def test_what_is_no_file(folder: Path, tmp_path: Path, file: str, kind: str) -> None:
    """A pipe would be waited for, and a device never ends."""
    if kind != "folder" and not hasattr(os, "mkfifo"):
        pytest.skip("needs pipes")
    for name in {"config.json", "model.safetensors"} - {file}:
        shutil.copy(folder / name, tmp_path)
    if kind == "folder":
        (tmp_path / file).mkdir()
    elif kind == "pipe":
        os.mkfifo(tmp_path / file)
    else:
        (tmp_path / file).symlink_to("/dev/zero")
    with pytest.raises(UserError, match=rf"{file} is no file of a model"):
        CSSFormer.from_pretrained(tmp_path)


def test_a_file_too_large_for_a_config_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"config\.json is no file of a model"):
        CSSFormer.from_pretrained(tmp_path)
