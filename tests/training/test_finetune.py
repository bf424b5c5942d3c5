"""Starting from a trained network: what is taken over, what begins anew, what is refused."""

import dataclasses
import io
import shutil
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from cssformer import CSSFormer
from cssformer.backbones import first_licence
from cssformer.data.channels import Channels
from cssformer.model import Metadata
from cssformer.training import train as runs
from cssformer.training.datasets import for_channels
from cssformer.training.finetune import start_from, starting_point
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.utils.errors import UserError

CLASS_LAYERS = {f"{layer}.{kind}" for layer in ("head.classify", "aux_head.4") for kind in ("weight", "bias")}


def network(classes: int, **arguments: object) -> CSSFormer:
    return CSSFormer("test_resnet", classes, channels=16, heads=2, points=2, **arguments)


@pytest.mark.parametrize(("classes", "anew"), [(5, CLASS_LAYERS), (3, set())])
def test_all_that_fits_is_taken_over(classes: int, anew: set[str]) -> None:
    torch.manual_seed(0)
    trained, model = network(3).state_dict(), network(classes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = start_from(model, trained)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in anew else trained[name]), name
    assert f"{len(before) - len(anew)} of {len(before)} weights were taken over" in told
    assert all(name in told for name in anew)


@pytest.mark.parametrize(
    "classes", [("sky", "car", "road"), ("car", "sky", "road", "tree"), ("road",), ("a", "b", "c")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_class_takes_over_what_was_learnt_of_its_name(classes: tuple[str, ...], dtype: torch.dtype) -> None:
    """Also of as many classes in another order, which would be taken for each other otherwise; of half files, too."""
    held = ["road", "car", "sky"]
    torch.manual_seed(0)
    trained, model = network(3, aux=True).eval(), network(len(classes), aux=True).eval()
    saved = {name: value.to(dtype) for name, value in trained.state_dict().items()}
    trained.load_state_dict(saved)
    first = {name: model.state_dict()[name].clone() for name in CLASS_LAYERS}
    model.metadata = Metadata(classes=classes)
    told = start_from(model, saved, held)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before, after = trained(images), model(images)
    for number, name in enumerate(classes):
        if name in held:
            torch.testing.assert_close(after[:, number], before[:, held.index(name)])
        else:
            assert f"the class {name}" in told
            assert all(torch.equal(model.state_dict()[layer][number], first[layer][number]) for layer in CLASS_LAYERS)
    assert "the class road" not in told


def test_other_channels_take_over_the_first_layer_too() -> None:
    trained, model = network(3).state_dict(), CSSFormer("test_resnet", 3, in_channels=4, channels=16, heads=2, points=2)
    told = start_from(model, trained)
    (name,) = (name for name, value in trained.items() if value.ndim == 4 and value.shape[1] == 3)
    repeated = torch.cat([trained[name], trained[name][:, :1]], dim=1) * (3 / 4)
    torch.testing.assert_close(model.state_dict()[name], repeated)
    assert told.endswith("anew begin: backbone.pixel_mean, backbone.pixel_std.")


def test_values_of_another_type_are_normalised_by_their_own_statistics(tmp_path: Path) -> None:
    network(3).save_pretrained(tmp_path / "photos")
    channels = Channels("uint16", (3000.0, 3100.0, 2900.0), (800.0, 700.0, 900.0))
    own = ModelConfig(backbone="test_resnet", channels=16, heads=2, points=2)
    recipe, saved, weights = starting_point(Recipe(model=own), str(tmp_path / "photos"), channels)
    recipe = for_channels(recipe, channels)
    assert (recipe.model.mean, recipe.model.std) == ([3000, 3100, 2900], [800, 700, 900])
    model = network(3, mean=recipe.model.mean, std=recipe.model.std)
    start_from(model, weights, saved.get("classes"))
    assert model.backbone.pixel_mean.flatten().tolist() == [3000, 3100, 2900]
    # Of the same type they are what the weights were trained with.
    model.metadata = Metadata(channels=channels)
    model.save_pretrained(tmp_path / "stored")
    others = dataclasses.replace(channels, mean=(1.0, 2.0, 3.0))
    assert starting_point(Recipe(model=own), str(tmp_path / "stored"), others)[0].model.mean == [3000, 3100, 2900]


def test_a_decoder_of_another_width_begins_anew() -> None:
    model = CSSFormer("test_resnet", 3, channels=32, heads=2, points=2)
    told = start_from(model, network(3).state_dict())
    assert told.endswith(", ....") and "lateral.0" in told


@pytest.fixture
def run(tmp_path: Path) -> Recipe:
    """A finished run of one step."""
    recipe = Recipe(
        output=str(tmp_path / "first"),
        model=ModelConfig(backbone="test_resnet", channels=16, heads=2, points=2, mean=[0.1, 0.2, 0.3]),
        scenes=ScenesConfig(count=4, val_count=2, size=(32, 32)),
        augment=AugmentConfig(crop=(32, 32)),
        training=TrainingConfig(steps=1, batch_size=2, warmup_steps=0, log_every=1, workers=0),
    )
    runs.train(recipe, console=Console(file=io.StringIO()))
    return recipe


def test_a_run_starts_from_another_and_needs_it_no_more(run: Recipe, tmp_path: Path) -> None:
    out = io.StringIO()
    recipe = dataclasses.replace(
        run,
        seed=1,
        output=str(tmp_path / "second"),
        # The backbone's own weights are not asked for: there are none on the hub by this name.
        model=dataclasses.replace(run.model, init=run.output, mean=None, weights="nowhere.safetensors"),
        training=dataclasses.replace(run.training, lr=0.0),
    )
    runs.train(recipe, console=Console(file=out, width=1000))
    assert f"Started from {run.output}: " in out.getvalue() and "anew begin" not in out.getvalue()
    first, second = (load_file(Path(folder) / "model" / "model.safetensors") for folder in (run.output, recipe.output))
    # At a rate of 0 only the statistics of BatchNorm move.
    assert all(torch.equal(first[name], second[name]) for name in first if "running" not in name and "num_" not in name)
    saved = Recipe.load(tmp_path / "second" / "recipe.yaml")
    assert saved.model.mean == [0.1, 0.2, 0.3] and saved.model.weights is None and saved.model.init == run.output
    shutil.rmtree(run.output)
    runs.train(saved, resume=True, console=Console(file=out))


def test_another_backbone_and_a_missing_network_are_refused(tmp_path: Path) -> None:
    network(3).save_pretrained(tmp_path / "model")
    recipe = Recipe(model=ModelConfig(backbone="resnet10t"))
    with pytest.raises(UserError, match=r"has the backbone test_resnet, .*model\.backbone is resnet10t"):
        starting_point(recipe, str(tmp_path / "model"))
    tagged = Recipe(model=ModelConfig(backbone="test_resnet.r160_in1k", heads=2, points=2))
    assert starting_point(tagged, str(tmp_path / "model"))[1]
    with pytest.raises(UserError, match="no model folder"):
        starting_point(recipe, "no/where/at/all")


@pytest.mark.parametrize(
    ("key", "value"),
    [("heads", 4), ("points", 4), ("mean", [0.1, 0.2, 0.3]), ("std", [1.0, 1.0, 1.0]), ("backbone_args", {"in22k": 1})],
)
def test_what_changes_the_meaning_of_weights_is_refused(tmp_path: Path, key: str, value: object) -> None:
    network(3).save_pretrained(tmp_path / "model")
    same = ModelConfig(backbone="test_resnet", channels=16, heads=2, points=2)
    assert starting_point(Recipe(model=same), str(tmp_path / "model"))[1]
    with pytest.raises(
        UserError, match=rf"has {key} .*model\.{key} is .*mean something else; give --model\.{key} [^\[]+, or"
    ):
        starting_point(Recipe(model=dataclasses.replace(same, **{key: value})), str(tmp_path / "model"))


def test_the_licence_of_pretrained_weights_is_told_and_goes_with_every_network_after(
    run: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "timm.safetensors")
    # What would be fetched.
    monkeypatch.setattr("cssformer.backbones.create.require_hub", lambda *_: None)
    overlay = {"file": str(tmp_path / "timm.safetensors")}
    model = dataclasses.replace(run.model, pretrained=True, backbone_args={"pretrained_cfg_overlay": overlay})
    monkeypatch.setattr("cssformer.weights.config._FILES", set())
    monkeypatch.setattr("cssformer.weights.config._plain", lambda _: True)
    out = io.StringIO()
    first = dataclasses.replace(run, output=str(tmp_path / "licensed"), model=model)
    runs.train(first, console=Console(file=out, width=1000))
    assert "weights are timm's test_resnet; their licence: apache-2.0." in out.getvalue()
    second = dataclasses.replace(
        first,
        output=str(tmp_path / "after"),
        model=dataclasses.replace(model, pretrained=False, init=first.output),
    )
    runs.train(second, console=Console(file=out, width=1000))
    # A resumed run has its weights in its checkpoint.
    (tmp_path / "timm.safetensors").unlink()
    more = dataclasses.replace(run.training, steps=2)
    for each in (first, second):
        runs.train(dataclasses.replace(each, training=more), resume=True, console=Console(file=out, width=1000))
        assert CSSFormer.from_pretrained(each.output).metadata.backbone_licence == "apache-2.0"


def test_a_file_of_weights_states_no_licence() -> None:
    """The hub's card would else call anybody's weights Apache-2.0."""
    assert first_licence("resnet10t", True) == "apache-2.0"
    assert first_licence("resnet10t", True, "mine.pth") == first_licence("resnet10t", False, "mine.pth") == "not stated"
    assert first_licence("resnet10t", False) is None
