"""What a training step changes, keeps and remembers."""

import copy
import io
from functools import partialmethod
from pathlib import Path

import lightning as L
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from cssformer import CSSFormer
from cssformer.training import train as runs
from cssformer.training.fit import quiet_lightning
from cssformer.training.module import SegmentationTask
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.utils.errors import UserError

VIT = {"depth": 4, "embed_dim": 48, "num_heads": 2}


def recipe(output: Path, model: dict, **training: object) -> Recipe:
    return Recipe(
        output=str(output),
        model=ModelConfig(**{"backbone": "test_resnet", "channels": 16, "heads": 2, "points": 2, **model}),
        scenes=ScenesConfig(count=6, val_count=2, size=(64, 64)),
        augment=AugmentConfig(crop=(64, 64)),
        training=TrainingConfig(**{"batch_size": 2, "warmup_steps": 0, "workers": 0, "validate_every": 1, **training}),
    )


def trained(output: Path, model: dict, **training: object) -> dict[str, Tensor]:
    runs.train(recipe(output, model, **training), console=Console(file=io.StringIO()))
    return torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_backbone_thaws_after_its_steps(tmp_path: Path) -> None:
    first, second, third = (
        trained(tmp_path / str(steps), {}, steps=steps, thaw_after=2, freeze_statistics=True) for steps in (1, 2, 3)
    )
    backbone = {name for name, value in first.items() if ".backbone.body." in name and value.is_floating_point()}
    assert all(torch.equal(first[name], second[name]) for name in backbone)
    moved = {name for name in backbone if not torch.equal(second[name], third[name])}
    # Behind a norm that starts at zero there is no gradient yet.
    assert len(moved) > 30 and not any("running" in name for name in moved)
    assert not torch.equal(first["model.head.classify.weight"], second["model.head.classify.weight"])


@pytest.mark.parametrize("still", [True, False])
def test_statistics_of_batch_norm_stay_if_asked_also_after_validations(tmp_path: Path, still: bool) -> None:
    one, three = (trained(tmp_path / str(n), {}, steps=n, freeze_statistics=still) for n in (1, 3))
    norms = [name for name in one if name.endswith("running_mean") and ".backbone." in name]
    assert norms and all(torch.equal(one[name], three[name]) == still for name in norms)
    if still:
        assert all(not one[name].any() for name in norms)


def test_what_lora_learns_is_merged_into_the_saved_network(tmp_path: Path) -> None:
    vit = {"backbone": "vit_tiny_patch16_224", "backbone_args": VIT}
    state = trained(tmp_path / "run", vit, steps=3, lora=2, lr=0.01)
    model = CSSFormer.from_pretrained(tmp_path / "run")
    start = CSSFormer(num_classes=model.num_classes, **{**vit, "channels": 16, "heads": 2, "points": 2}).state_dict()
    kept = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert kept.keys() == start.keys()
    trunk = "backbone.body.vit.model."
    original = {name: value for name, value in state.items() if name.endswith(".original")}
    assert len(original) == 8
    for name, value in kept.items():
        if name.startswith(trunk) and "attn" not in name:
            assert torch.equal(value, state[f"model.{name}"]), name
    for number in range(4):
        name = f"{trunk}blocks.{number}.attn.qkv.weight"
        assert not torch.equal(kept[name], original[f"model.{name[:-7]}.parametrizations.weight.original"])


@pytest.mark.parametrize(
    "model", [{}, {"backbone": "vit_tiny_patch16_224", "backbone_args": VIT}, {"backbone": "hieradet_small"}]
)
def test_checkpointed_gradients_are_the_same_for_less_memory(tmp_path: Path, model: dict) -> None:
    kept, gradients = [], []
    images = {"image": torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8), "label": torch.randint(3, (2, 64, 64))}
    for again in (False, True):
        torch.manual_seed(0)
        chosen = {"backbone": "test_resnet", **model}
        network = CSSFormer(num_classes=3, channels=32, heads=4, points=4, dropout=0.0, **chosen)
        for parameter in network.parameters():
            if not parameter.abs().max():
                nn.init.normal_(parameter, std=0.05)
        task = SegmentationTask(network, Recipe(training=TrainingConfig(grad_checkpointing=again)))
        L.seed_everything(0, verbose=False)
        sizes: dict[int, int] = {}

        def count(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = task.training_step(images, 0)
        loss.backward()
        kept.append(sum(sizes.values()))
        gradients.append({name: value.grad for name, value in network.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert kept[1] < 0.8 * kept[0]


@pytest.mark.parametrize("training", [{"lora": 2}, {"backbone_lr_factor": 0.0}])
def test_what_never_thaws_is_refused(tmp_path: Path, training: dict) -> None:
    (tmp_path / "recipe.yaml").write_text("training: " + str({"thaw_after": 5, **training}))
    with pytest.raises(UserError, match="thaws nothing"):
        Recipe.load(tmp_path / "recipe.yaml")


def test_the_network_is_compiled_in_place_and_its_copies_are_not() -> None:
    network = CSSFormer("test_resnet", 3, channels=16, heads=2, points=2)
    names = network.state_dict().keys()
    task = SegmentationTask(network, Recipe(training=TrainingConfig(compile=True)))
    assert task.model is network and network._compiled_call_impl is not None
    assert network.state_dict().keys() == names
    assert copy.deepcopy(network)._compiled_call_impl is None


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_network_trains_resumes_and_scores_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    plain, whole = (trained(tmp_path / str(on), {}, steps=2, power=0.0, compile=on) for on in (False, True))
    trained(tmp_path / "parts", {}, steps=1, power=0.0, compile=True)
    runs.train(recipe(tmp_path / "parts", {}, steps=2, power=0.0, compile=True), True, Console(file=io.StringIO()))
    parts = torch.load(tmp_path / "parts" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert plain.keys() == whole.keys() and all(torch.equal(value, parts[name]) for name, value in whole.items())
    for name, value in plain.items():
        torch.testing.assert_close(whole[name], value, rtol=1e-2, atol=1e-3, msg=name)


def test_products_of_float32_are_as_precise_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    before = torch.get_float32_matmul_precision()
    with quiet_lightning("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before
