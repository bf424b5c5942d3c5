"""Saving leaves the old network or the new one; loading gives the network that was saved, or a sentence."""

import json
import os
import shutil
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from cssformer import CSSFormer
from cssformer.model import Metadata
from cssformer.utils.errors import UserError
from cssformer.weights.config import check_config

CLASSES = ("road", "a tree: 木", "sky")


def network(seed: int = 0, classes: tuple[str, ...] = CLASSES) -> CSSFormer:
    torch.manual_seed(seed)
    model = CSSFormer("test_resnet", 3, channels=8, heads=2, points=1, backbone_args={"output_stride": 32})
    nn.init.normal_(model.head.classify.bias)
    model.metadata = Metadata(classes, ((1, 2, 3), (4, 5, 6), (255, 0, 9)), (0, 21, 23), {"mode": "whole"})
    return model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    network().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "model")
    return tmp_path / "model"


def right_or_refused(folder: Path, original: Path) -> str:
    """Why the network is refused; empty if it is the original's."""
    try:
        model = CSSFormer.from_pretrained(folder)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 700
        return str(error)
    saved = load_file(original / "model.safetensors")
    assert model.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    return ""


def edit(folder: Path, key: str, value: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    *tables, name = key.split(".")
    reduce(dict.__getitem__, tables, config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("done", "left"), [(0, "old"), (1, "new"), (2, "new")])
def test_a_kill_between_the_files_leaves_one_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int, left: str
) -> None:
    """Both networks have as many classes, so that a mixture would load."""
    networks = {"old": network(1), "new": network(2, ("sea", "ship", "shore"))}
    networks["old"].save_pretrained(tmp_path)
    replace, calls = os.replace, iter(range(3))

    def killed(source: Path, target: Path) -> None:
        if next(calls) == done:
            raise SystemExit
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    if done < 2:
        with pytest.raises(SystemExit):
            networks["new"].save_pretrained(tmp_path)
    else:
        networks["new"].save_pretrained(tmp_path)
    found = CSSFormer.from_pretrained(tmp_path)
    assert found.metadata == networks[left].metadata
    assert torch.equal(found.head.classify.bias, networks[left].head.classify.bias)


def test_people_may_edit_the_config(folder: Path) -> None:
    edit(folder, "inference", {"mode": "slide", "crop": [64, 64]})
    edit(folder, "classes", ["a", "b", "c"])
    metadata = CSSFormer.from_pretrained(folder).metadata
    assert metadata.inference == {"mode": "slide", "crop": [64, 64]} and metadata.classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        (Metadata(("road", "sky")), "2 classes are given for 3 classes"),
        (Metadata(("road", "sky", "x" * 201)), "classes must be null or a list, each entry a name of one line"),
        (Metadata(inference={"precision": "16"}), "unknown key inference.precision"),
        (Metadata(inference={"mode": torch.float16}), "cannot be saved with its arguments"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, metadata: Metadata, told: str) -> None:
    model = network()
    model.metadata = metadata
    with pytest.raises(UserError, match=told):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("msfe_depth", 64),
        ("csf_depth", 64),
        ("heads", 1024),
        ("points", 1024),
        ("channels", 8192),
        ("mean", [123.675, 0, 1e6]),
    ],
)
def test_what_a_recipe_may_ask_for_can_be_loaded(original: Path, key: str, value: Any) -> None:
    config = json.loads((original / "config.json").read_text())
    config["network"][key] = value
    check_config(config, "here")


def test_missing_tensors_are_counted(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in state.items() if name.startswith("head.classify")}
    save_file({**kept, "\x1b[31m": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError) as caught:
        CSSFormer.from_pretrained(folder)
    sentence = str(caught.value)
    assert f"{len(state) - len(kept) + 1} tensors are missing" in sentence
    assert sentence.isprintable() and sentence.endswith(", ....") and len(sentence) < 600


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("format", None, "format must be 2, not None."),
        ("format", 10**400, "format must be 2, not 1000"),
        ("\ud800\x1b[31m" + 80 * "k", 1, r"unknown key \\ud800\\x1b\[31mk+; leave it out"),
        ("classes", [1], "must be null or a list, each entry a name of one line of at most 200 characters, not"),
        ("network.backbone_args", {"layers": [10**9]}, "numbers up to 65536"),
    ],
)
def test_sentences_are_short_and_printable(folder: Path, original: Path, key: str, value: Any, told: str) -> None:
    edit(folder, key, value)
    sentence = right_or_refused(folder, original)
    assert len(sentence) < len(str(folder)) + 300
    with pytest.raises(UserError, match=told):
        raise UserError(sentence)


@pytest.mark.parametrize(
    "arguments",
    [{"layers": [60000] * 4, "channels": [1] * 4}, {"channels": [60000] * 4}, {"layers": [[60000]] * 4}],
)
def test_a_network_far_larger_than_the_weights_ends_soon(folder: Path, original: Path, arguments: dict) -> None:
    edit(folder, "network.backbone_args", arguments)
    assert right_or_refused(folder, original)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([0, 1, 2, 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("architecture", "backbone_args", "num_classes", "output_stride", "classes", "id", "network", "channels", "std")


def mutated(value: Any, data: st.DataObject) -> Any:
    """The value with one part of it, anywhere, taken away or made another one."""
    if isinstance(value, dict | list) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        changed: Any = value.copy()
        if data.draw(st.integers(0, 5)):
            changed[key] = mutated(value[key], data)
        else:
            del changed[key]
        return changed
    if isinstance(value, dict) and data.draw(st.booleans()):
        return {**value, data.draw(st.sampled_from(KEYS) | st.text(max_size=8)): data.draw(JSON)}
    return data.draw(JSON)


@given(data=st.data())
@settings(max_examples=60)
def test_any_config_gives_the_right_network_or_a_sentence(
    original: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("config")
    shutil.copy(original / "model.safetensors", folder)
    config = json.loads((original / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(mutated(config, data)))
    right_or_refused(folder, original)


@given(data=st.data())
@settings(max_examples=60)
def test_any_damage_to_the_weights_header_gives_the_right_network_or_a_sentence(
    original: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    shutil.copy(original / "config.json", folder)
    content = bytearray((original / "model.safetensors").read_bytes())
    header = int.from_bytes(content[:8], "little")
    kind = data.draw(st.sampled_from(["flip", "cut", "append", "entry"]))
    if kind == "flip":
        content[data.draw(st.integers(0, 7 + header))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif kind == "append":
        content += data.draw(st.binary(min_size=1, max_size=20))
    else:
        tables = json.loads(content[8 : 8 + header])
        name = data.draw(st.sampled_from(sorted(tables)))
        tables[name] = mutated(tables[name], data)
        text = json.dumps(tables).encode()
        content[: 8 + header] = len(text).to_bytes(8, "little") + text
    (folder / "model.safetensors").write_bytes(content)
    right_or_refused(folder, original)
