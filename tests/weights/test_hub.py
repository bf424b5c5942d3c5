"""Models and weights of the Hugging Face hub, where it is out of reach."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi

from cssformer import CSSFormer
from cssformer.backbones import create_body
from cssformer.utils.errors import UserError
from cssformer.weights import hub
from cssformer.weights.card import model_card


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a hub is asked for that no name server knows."""
    asked: list[str] = []

    def model_info(self: HfApi, repository: str, **_: object) -> None:
        asked.append(repository)
        raise RuntimeError("[Errno -2] Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: None)
    return asked


def test_a_hub_out_of_reach_is_asked_once_and_told(asked: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        UserError, match=r"no model folder me/mine, .*huggingface\.co cannot be reached .*; give a model"
    ):
        CSSFormer.from_pretrained("me/mine")
    with pytest.raises(UserError, match=r"weights of mobilenetv2_100 cannot be had: .*reached.*weights.*pretrained"):
        create_body("mobilenetv2_100", pretrained=True)
    # The own client of the hub would have tried six times for each file.
    assert asked == ["me/mine", "timm/mobilenetv2_100.ra_in1k"]
    assert capfd.readouterr() == ("", "")


def test_what_is_in_the_cache_needs_no_hub(asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    CSSFormer("test_resnet", 3, channels=8, heads=2, points=1).save_pretrained(tmp_path)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda _, name, **__: str(tmp_path / name))
    monkeypatch.setattr(hub, "hf_hub_download", lambda _, name, **__: str(tmp_path / name))
    assert CSSFormer.from_pretrained("me/mine").num_classes == 3
    assert asked == []


@pytest.mark.parametrize(
    ("began", "given", "told"),
    [
        (None, None, (None, None)),
        (None, "mit", ("mit", None)),
        ("apache-2.0", None, ("apache-2.0", None)),
        ("dinov3-license", None, ("other", "dinov3-license")),
        ("not stated", None, ("other", "not stated")),
    ],
)
def test_the_licence_is_that_of_the_weights_begun_with_or_the_authors(
    tmp_path: Path, began: str | None, given: str | None, told: tuple[str | None, str | None]
) -> None:
    model = CSSFormer("test_resnet", 3, channels=16, heads=2, points=2)
    model.metadata = hub.Metadata(backbone_licence=began)
    model.save_pretrained(tmp_path)
    found = CSSFormer.from_pretrained(tmp_path)
    assert found.metadata.backbone_licence == began
    data = model_card(found, "me/mine", licence=given).data.to_dict()
    assert (data.get("license"), data.get("license_name")) == told


def test_the_card_tells_recipe_and_scores_but_not_where_they_lie(tmp_path: Path) -> None:
    model = CSSFormer("test_resnet", 2, channels=16, heads=2, points=2)
    model.metadata = hub.Metadata(classes=("road", "tree"))
    run = tmp_path / "run"
    run.mkdir()
    recipe = {"data": "/home/me/secret/streets", "output": str(run), "model": {"weights": "/home/me/w.safetensors"}}
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "training": {"steps": 80000}}))
    found = {"iou": 0.5, "boundary_iou": None}
    scores = {"miou": 0.5, "miou_interval": [0.25, 0.75], "pictures": 7, "classes": {"road": found, "tree": found}}
    (run / "scores.json").write_text(json.dumps(scores))
    text = str(model_card(model, "me/mine", run, data_licence="CC BY 4.0"))
    for word in ("**50.0 % mIoU** (95 %: 25.0 % to 75.0 %) on 7 pictures", "| road | 50.0 % | none |", "steps: 80000"):
        assert word in text
    for word in ("data: streets", "weights: w.safetensors", "training: CC BY 4.0", "random numbers", "road, tree"):
        assert word in text
    assert "/home" not in text and str(tmp_path) not in text
    (run / "scores.json").write_text(json.dumps({**scores, "miou": None, "miou_interval": [None, None]}))
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "model": {"init": "you/yours"}}))
    text = str(model_card(model, "me/mine", run))
    assert "**none mIoU**" in text and "init: you/yours" in text
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "model": {"init": "/home/me/runs/first"}}))
    assert "init: first\n" in str(model_card(model, "me/mine", run))
    with pytest.raises(UserError, match="cannot be read; give the folder of a training"):
        model_card(model, "me/mine", tmp_path)


def test_other_classes_keep_all_but_the_classifiers(tmp_path: Path) -> None:
    model = CSSFormer("test_resnet", 3, channels=16, heads=2, points=2)
    model.metadata = hub.Metadata(classes=("a", "b", "c"), inference={"short_side": 64})
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="for 5 classes instead of 3; train before you predict"):
        other = CSSFormer.from_pretrained(tmp_path, num_classes=5)
    assert other.num_classes == 5 and other.metadata == hub.Metadata(inference={"short_side": 64})
    for name, value in other.state_dict().items():
        anew = name.startswith(("head.classify", "aux_head.4"))
        assert len(value) == 5 if anew else torch.equal(value, model.state_dict()[name]), name
    other.save_pretrained(tmp_path / "again")
    assert CSSFormer.from_pretrained(tmp_path / "again").num_classes == 5
    assert CSSFormer.from_pretrained(tmp_path, num_classes=3).metadata.classes == ("a", "b", "c")
    with pytest.raises(UserError, match="num_classes must be a whole number from 1 to 65535, not 0"):
        CSSFormer.from_pretrained(tmp_path, num_classes=0)
