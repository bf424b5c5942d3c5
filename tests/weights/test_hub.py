"""Models and weights of the Hugging Face hub, where it is out of reach."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi

from cssformer import CSSFormer
from cssformer.backbones import create_body
from cssformer.utils.errors import UserError
from cssformer.weights import hub


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
    ("licence", "data"), [(None, "apache-2.0"), ("apache-2.0", "apache-2.0"), ("dinov3-license", "other")]
)
def test_the_card_has_the_licence_of_the_weights_begun_with(tmp_path: Path, licence: str | None, data: str) -> None:
    model = CSSFormer("test_resnet", 3, channels=16, heads=2, points=2)
    model.metadata = hub.Metadata(backbone_licence=licence)
    model.save_pretrained(tmp_path)
    found = CSSFormer.from_pretrained(tmp_path)
    assert found.metadata.backbone_licence == licence
    card = found.generate_model_card().data.to_dict()
    assert (card["license"], card.get("license_name")) == (data, licence if data == "other" else None)
