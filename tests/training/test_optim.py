"""The learning rate by parameter and by step, and the order of the batches."""

import re

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import param_groups_layer_decay
from torch import nn

from cssformer import CSSFormer
from cssformer.data.sampler import ResumableBatchSampler
from cssformer.training.fit import split_batch
from cssformer.training.module import SegmentationTask
from cssformer.training.optim import parameter_groups, polynomial_decay
from cssformer.training.recipe import Recipe, TrainingConfig
from cssformer.utils.errors import UserError
from studies.baselines.networks import BaselineNetwork


def test_groups_hold_every_parameter_once_and_spare_norms_biases_and_positions() -> None:
    model = CSSFormer("swin_tiny_patch4_window7_224", 3, channels=32, heads=4, points=2)
    training = TrainingConfig(lr=1.0, weight_decay=0.1, backbone_lr_factor=0.5, offsets_lr_factor=0.25)
    groups = parameter_groups(model, training)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(names.values())
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            spared = parameter.ndim == 1 or "relative_position_bias_table" in name or name == "scale_embed"
            assert group["weight_decay"] == (0.0 if spared else 0.1), name
            kinds = ("backbone.", 0.5), ("msfe.0.offsets.", 0.25), ("csf.0.offsets.", 0.25)
            assert group["lr"] == next((rate for start, rate in kinds if name.startswith(start)), 1.0), name
    # Norm weights are vectors, so the rule covers them; this model has some of each kind.
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm | nn.GroupNorm)]
    assert norms and all(norm.weight.ndim == 1 for norm in norms)


@pytest.mark.parametrize(("decoder", "embedding"), [("mask2former", "level_embed"), ("segmenter", "cls_emb")])
def test_embeddings_of_peers_are_spared_too(decoder: str, embedding: str) -> None:
    peer = BaselineNetwork(decoder, "resnet10t", 3)
    decayed, spared = (
        {
            id(parameter)
            for group in parameter_groups(peer, TrainingConfig(weight_decay=0.1))
            for parameter in group["params"]
            if bool(group["weight_decay"]) == decays
        }
        for decays in (True, False)
    )
    found = {name for name, parameter in peer.named_parameters() if parameter.ndim > 1 and id(parameter) in spared}
    assert {name.rsplit(".")[-1] for name in found} == {embedding}
    assert decayed


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"depth": 6, "embed_dim": 48, "num_heads": 2}),
        ("vit_small_patch16_dinov3", {"depth": 4, "embed_dim": 48, "num_heads": 2, "num_classes": 5}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}),
        ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 16, 16, 16)}),
        ("resnet10t", {}),
        ("mobilenetv2_100", {}),
    ],
)
def test_layer_decays_groups_are_timms(name: str, arguments: dict) -> None:
    model = CSSFormer(name, 3, channels=16, heads=2, points=2, backbone_args=arguments)
    training = TrainingConfig(lr=2.0, weight_decay=0.05, backbone_lr_factor=0.5, layer_decay=0.7)
    names = {parameter: key for key, parameter in model.named_parameters()}
    found = {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, training)
        for parameter in group["params"]
    }
    theirs = timm.create_model(name, **arguments)
    # Older versions of timm forget register tokens.
    spared = {*(theirs.no_weight_decay() if hasattr(theirs, "no_weight_decay") else ()), "reg_token"}
    own = {parameter: key.replace(".", "_") for key, parameter in theirs.named_parameters()}
    expected = {
        own[parameter]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(theirs, 0.05, spared, layer_decay=0.7)
        for parameter in group["params"]
    }
    compared = 0
    for key, (lr, decay) in found.items():
        inner = re.sub(r"^backbone\.body\.(vit\.model\.)?", "", key).replace(".", "_")
        if key.startswith("backbone.") and inner in expected:
            assert (lr, decay) == pytest.approx((2.0 * 0.5 * expected[inner][0], expected[inner][1])), key
            compared += 1
        else:
            assert not key.startswith("backbone.") or ".scales." in key, key
            assert lr == (0.2 if ".offsets." in key else 2.0), key
    assert compared > 20 and len({lr for lr, _ in found.values()}) > 4


def test_a_backbone_of_rate_zero_is_frozen() -> None:
    model = CSSFormer("resnet10t", 3, channels=32, heads=4, points=2)
    task = SegmentationTask(model, Recipe(training=TrainingConfig(backbone_lr_factor=0.0)))
    batch = {"image": torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8), "label": torch.randint(3, (2, 64, 64))}
    task.training_step(batch, 0).backward()
    with_gradient = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name.split(".")[0] for name, _ in model.named_parameters()} - {"backbone"}
    groups = task.configure_optimizers()["optimizer"].param_groups
    moved = {id(parameter) for group in groups for parameter in group["params"]}
    assert moved == {id(parameter) for name, parameter in model.named_parameters() if "backbone." not in name}


def test_the_pyramid_over_a_frozen_vit_learns() -> None:
    small = {"depth": 4, "embed_dim": 48, "num_heads": 2}
    model = CSSFormer("vit_tiny_patch16_224", 3, channels=32, heads=4, points=2, backbone_args=small)
    task = SegmentationTask(model, Recipe(training=TrainingConfig(backbone_lr_factor=0.0)))
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert still == {name for name, _ in model.named_parameters() if name.startswith("backbone.body.vit.")}
    groups = task.configure_optimizers()["optimizer"].param_groups
    scales = set(model.backbone.body.scales.parameters())
    assert scales <= {value for group in groups if group["initial_lr"] == 6e-3 for value in group["params"]}


def test_warm_up_is_linear_and_decay_polynomial() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=2.0)
    schedule = polynomial_decay(optimizer, steps=100, warmup_steps=10, power=0.9)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(2e-6)
    assert rates[5] == pytest.approx(2.0 * 0.5 * 0.95**0.9, rel=1e-4)
    assert rates[10] == pytest.approx(2.0 * 0.9**0.9)
    assert rates[60] == pytest.approx(2.0 * 0.4**0.9)
    assert rates[100] == 0


@given(steps=st.integers(1, 6), accumulate=st.integers(1, 3), size=st.integers(1, 4), world=st.integers(1, 3))
def test_batches_hold_each_item_once_in_the_same_order_on_any_devices(
    steps: int, accumulate: int, size: int, world: int
) -> None:
    ranks = [list(ResumableBatchSampler(steps * accumulate, size, rank=rank, world=world)) for rank in range(world)]
    per_step = accumulate * size * world
    for step in range(steps):
        seen = [item for rank in ranks for batch in rank[step * accumulate : (step + 1) * accumulate] for item in batch]
        assert sorted(seen) == list(range(step * per_step, (step + 1) * per_step))


def test_a_resumed_order_goes_on_where_it_stopped() -> None:
    whole = list(ResumableBatchSampler(10, 3))
    resumed = ResumableBatchSampler(10, 3, start=4)
    assert list(resumed) == whole[4:]
    assert len(resumed) == 10


@pytest.mark.parametrize(
    ("total", "most", "world", "expected"),
    [(16, 16, 1, (16, 1)), (16, 6, 1, (4, 4)), (16, 16, 4, (4, 1)), (7, 4, 1, (1, 7))],
)
def test_the_declared_batch_is_reached_by_accumulation(total: int, most: int, world: int, expected: tuple) -> None:
    device_batch, accumulate = split_batch(total, most, world)
    assert (device_batch, accumulate) == expected
    assert device_batch * accumulate * world == total


def test_a_batch_the_devices_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size 16 cannot be shared by 3 devices"):
        split_batch(16, 16, 3)


def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_nadamw() -> None:
    model = CSSFormer("test_resnet", 3, channels=16, heads=2, points=2)
    training = TrainingConfig(optimizer="muon", lr=0.01, weight_decay=0.0)
    optimizer = SegmentationTask(model, Recipe(training=training)).configure_optimizers()["optimizer"]
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
        rates |= dict.fromkeys(group["params"], group["lr"])
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
            if parameter.ndim > 1:
                # No singular value near 0, which no iteration would lift to 1.
                scales = torch.linspace(0.3, 3, len(parameter)).view(-1, *(1,) * (parameter.ndim - 1))
                parameter.grad = torch.nn.init.orthogonal_(torch.empty(parameter.shape)) * scales
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer.step()
    kinds = []
    for name, value in model.named_parameters():
        moved = (value.detach() - before[name]).double() / rates[value]
        kinds.append("momentum_buffer" in optimizer.state[value])
        if kinds[-1]:
            # Of an orthogonal matrix all are 1; five iterations come near it.
            singular = torch.linalg.svdvals(moved.flatten(1)) / (0.2 * max(moved.flatten(1).shape) ** 0.5)
            assert singular.min() > 0.5 and singular.max() < 1.3, name
        else:
            assert value.ndim == 1 or name.startswith(("head.", "aux_head.")) or name == "scale_embed", name
            assert moved.abs().max() < 2, name
    assert sum(kinds) > 20
