"""Weights that backbones start from."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from cssformer import CSSFormer
from cssformer.backbones import create_body


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.", "module.model.backbone."])
def test_names_of_other_programs_weights(prefix: str, tmp_path: Path) -> None:
    """Beside the backbone such files hold a decoder, which is left out."""
    torch.manual_seed(0)
    theirs = timm.create_model("test_resnet").state_dict()
    state = {f"{prefix}{name}": value for name, value in theirs.items()}
    save_file({**state, "decode_head.conv.weight": torch.ones(3)}, tmp_path / "theirs.safetensors")
    ours = create_body("test_resnet", weights=str(tmp_path / "theirs.safetensors")).state_dict()
    assert ours
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_backbone_is_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    create, built = timm.create_model, []
    monkeypatch.setattr(timm, "create_model", lambda name, **given: built.append(name) or create(name, **given))
    network = CSSFormer("test_resnet", 3, channels=8, heads=2, points=1)
    assert built == ["test_resnet"]
    network.save_pretrained(tmp_path)
    CSSFormer.from_pretrained(tmp_path)
    assert built == ["test_resnet"] * 2
