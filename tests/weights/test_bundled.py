"""Models that come with the package: found by name, half the bytes, and told."""

import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cssformer import CSSFormer, Predictor
from cssformer.cli import main
from cssformer.model import Metadata
from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError
from cssformer.weights import bundled

ROOT = Path(__file__).parents[2]
TINY = {"channels": 16, "heads": 2, "points": 1}


def network() -> CSSFormer:
    model = CSSFormer("test_resnet", 3, **TINY, backbone_args={"output_stride": 32}).eval()
    nn.init.normal_(model.head.classify.bias)
    model.metadata = Metadata(("road", "tree", "sky"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    return model


def bundle(run: Path, folder: Path, **replaced: object) -> None:
    """As ``scripts/bundle.py`` does."""
    spec = spec_from_file_location("bundle", ROOT / "scripts" / "bundle.py")
    assert spec is not None and spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    vars(script).update(replaced)
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# zoo\n<!-- scores -->\nold\n<!-- end -->\nlimits\n")
    script.bundle(run, "zoo", "apache-2.0", folder)


@pytest.fixture
def zoo(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only bundled model, made of a run folder; the working directory is empty but for `photo.png`."""
    torch.manual_seed(0)
    network().save_pretrained(tmp_path / "run" / "model")
    Recipe(data=str(prepared)).save(tmp_path / "run" / "recipe.yaml")
    assert main(["evaluate", str(tmp_path / "run"), "--json", str(tmp_path / "run" / "scores.json")]) == 0
    bundle(tmp_path / "run", tmp_path / "bundled" / "zoo")
    monkeypatch.setattr(bundled, "BUNDLED", tmp_path / "bundled")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    cv2.imwrite("photo.png", np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8))
    return tmp_path / "bundled" / "zoo"


def test_what_changes_labels_is_not_written(zoo: Path, tmp_path: Path) -> None:
    def differ(*_: object) -> None:
        raise AssertionError("float16 changes the labels")

    with pytest.raises(AssertionError, match="changes the labels"):
        bundle(tmp_path / "run", tmp_path / "other", require_same_labels=differ)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["README.md"]


def test_what_is_bundled(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held, whole = (load_file(path / "model.safetensors") for path in (zoo, tmp_path / "run" / "model"))
    for name, value in whole.items():
        assert held[name].dtype == (torch.float16 if value.ndim > 1 and ".pixel_" not in name else value.dtype)
        torch.testing.assert_close(held[name].to(value.dtype), value, rtol=2**-11, atol=2**-25)
    loaded = CSSFormer.from_pretrained("zoo")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert loaded.metadata.backbone_licence == "apache-2.0" and loaded.metadata.classes == ("road", "tree", "sky")

    scores = json.loads((zoo / "scores.json").read_text())
    assert main(["evaluate", "zoo", "--data", str(tmp_path / "prepared"), "--json", "again.json"]) == 0
    again = json.loads(Path("again.json").read_text())
    assert (scores["model"], scores["data"]) == ("zoo", "data/prepared")
    assert again["miou"] == pytest.approx(scores["miou"], abs=1e-3)
    card = (zoo / "README.md").read_text()
    assert card.startswith("# zoo\n") and card.endswith("\nlimits\n") and "old" not in card
    assert f"{100 * scores['miou']:.2f} % mIoU" in card and card.count("\n| ") == 5

    capsys.readouterr()
    assert main(["models", "--json", "models.json"]) == 0
    listed = json.loads(Path("models.json").read_text())
    assert listed["hub"] is None and list(listed["bundled"]) == ["zoo"]
    assert listed["bundled"]["zoo"]["miou"] == scores["miou"]
    said = capsys.readouterr().out
    assert re.search(r"^zoo: road, tree, sky\n +[\d.]+ % mIoU \(95 %: .*\) on 2 pictures; .* MB; apache-2.0$", said)


def test_every_command_takes_the_name(zoo: Path, prepared: Path) -> None:
    assert main(["predict", "zoo", "photo.png", "--output", "out", "--device", "cpu"]) == 0
    assert Path("out/labels/photo.png").is_file()
    assert main(["explain", "zoo", "photo.png", "--at", "3", "4", "--output", "look.png", "--device", "cpu"]) == 0
    begun = ["--model.init", "zoo", "--data", str(prepared), "--output", "mine"]
    few = [
        "--training.steps",
        "1",
        "--training.batch_size",
        "2",
        "--training.workers",
        "0",
        "--augment.crop",
        "32",
        "32",
    ]
    assert main(["train", *begun, *few]) == 0
    tuned, first = CSSFormer.from_pretrained("mine"), CSSFormer.from_pretrained("zoo")
    assert tuned.hparams == first.hparams
    # One step moves nothing by more than its learning rate.
    for name, value in first.named_parameters():
        torch.testing.assert_close(tuned.get_parameter(name), value, rtol=0, atol=0.01)


def test_a_model_or_run_of_that_name_goes_first(zoo: Path) -> None:
    assert Predictor.from_pretrained("zoo").classes == ("road", "tree", "sky")
    Path("zoo/train/images").mkdir(parents=True)
    assert Predictor.from_pretrained("zoo").classes == ("road", "tree", "sky")
    with pytest.raises(UserError, match="./zoo is no model"):
        Predictor.from_pretrained("./zoo")
    Path("zoo/checkpoints").mkdir()
    with pytest.raises(UserError, match="The run zoo has no network yet"):
        Predictor.from_pretrained("zoo")
    other = network()
    other.metadata = Metadata(("a", "b", "c"))
    other.save_pretrained("zoo/model")
    assert Predictor.from_pretrained("zoo").classes == ("a", "b", "c")


def test_an_unknown_name_is_told_the_known_ones(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "zo", "photo.png", "--output", "out"]) == 2
    assert capsys.readouterr().err == "cssformer: There is no model folder zo, nor a bundled model; there is zoo.\n"


def test_half_leaves_the_statistics_of_channels(tmp_path: Path) -> None:
    model = CSSFormer("test_resnet", 3, in_channels=1, mean=(70_001.0,), std=(9.1,), channels=16, heads=2, points=2)
    model.save_pretrained(tmp_path / "model", half=True)
    backbone = CSSFormer.from_pretrained(tmp_path / "model").backbone
    assert (backbone.pixel_mean.item(), backbone.pixel_std.item()) == (70_001.0, pytest.approx(9.1, rel=1e-7))


def test_weights_too_large_for_half_are_refused(tmp_path: Path) -> None:
    model = network()
    nn.init.constant_(model.head.classify.weight, 1e5)
    with pytest.raises(UserError, match=r"head\.classify\.weight has weights too large for float16"):
        model.save_pretrained(tmp_path / "model", half=True)
    assert not list(tmp_path.rglob("*.*"))


def test_the_hub_is_asked_only_if_wanted(
    zoo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise RuntimeError("[Errno -2] Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.list_models", unreachable)
    assert main(["models"]) == 0
    capsys.readouterr()
    assert main(["models", "--hub"]) == 2
    assert re.search(r"cannot be asked \(.*not known\); leave out --hub\.\n$", capsys.readouterr().err)


@pytest.mark.parametrize("name", bundled.bundled_models())
def test_a_real_one(name: str) -> None:
    folder = bundled.bundled_models()[name]
    assert (folder / "model.safetensors").stat().st_size <= 16e6
    told, card = bundled.describe(folder), (folder / "README.md").read_text(encoding="utf-8")
    assert set(Predictor.from_pretrained(name, "cpu").classes) == set(told["classes"])
    assert f"{100 * told['miou']:.2f} % mIoU" in card and told["licence"] == "apache-2.0"


@pytest.mark.skipif("animals" not in bundled.bundled_models(), reason="animals is not bundled")
def test_the_cat_of_the_front_page() -> None:
    assert next(iter(Predictor.from_pretrained("animals", "cpu")(ROOT / "docs" / "chelsea.jpg").shares)) == "cat"
    told = bundled.describe(bundled.bundled_models()["animals"])
    assert f"{100 * told['miou']:.1f} % mIoU" in (ROOT / "README.md").read_text(encoding="utf-8")
