"""Counts against an independent counter and against the paper; memory against a hand-made case."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm.layers
import torch
from torch import nn

from cssformer import CSSFormer
from cssformer.cli import main
from cssformer.metrics.profile import TITLES, activations, is_papers, multiply_adds, profile
from cssformer.ops import use_backend
from cssformer.training.recipe import ModelConfig, Recipe
from cssformer.utils.device import best_device, device_name
from cssformer.utils.errors import UserError
from studies.baselines.networks import DECODERS, BaselineNetwork

SMALL = {"channels": 32, "heads": 4, "points": 2}
PRODUCTS = ("linear", "conv", "matmul", "addmm", "bmm", "baddbmm")
# Every kind of block, few of each.
BACKBONES = {
    "swin_tiny_patch4_window7_224": {"depths": [2, 1, 1, 1]},
    "mobilenetv2_100": {"depth_multiplier": 0.3},
    "convnext_atto": {"depths": [1, 1, 1, 1]},
}


def counted_by_fvcore(model: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds by part, without what fvcore counts of norms, pooling and up-sampling."""
    from fvcore.nn import FlopCountAnalysis

    # Tracing knows the sampling operator by its definition only, which holds no such product.
    with warnings.catch_warnings(), use_backend("reference"):
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(model.eval(), torch.rand(1, 3, *size))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_module = analysis.by_module_and_operator()
    counts = {part: sum(by_module[part][product] for product in PRODUCTS) for part in TITLES if part in by_module}
    return counts


@pytest.fixture
def fuse_attention() -> Iterator[Callable[[bool], None]]:
    """Switches timm's use of fused attention, for networks built afterwards; restored at the end."""
    before = timm.layers.use_fused_attn()
    yield timm.layers.set_fused_attn
    timm.layers.set_fused_attn(before)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_counts_are_those_of_an_independent_counter(backbone: str, fuse_attention: Callable[[bool], None]) -> None:
    fuse_attention(False)
    model = CSSFormer(backbone, 19, **SMALL, backbone_args=BACKBONES[backbone])
    expected, found = counted_by_fvcore(model, (96, 160)), multiply_adds(model, (96, 160))
    assert expected.keys() == {"backbone", "lateral", "cia", "msfe", "csf", "head"}
    assert {part: found[part] for part in expected} == expected
    assert found["decoder"] == 0


# What fvcore does not see at 64x96: deformable convolutions on strides 4, 8 and 16; fused attention of 24 patches and 5
# classes, two layers with two products each.
UNSEEN = {"fapn": (16 * 24 + 8 * 12 + 4 * 6) * 256 * 256 * 9, "segmenter": 2 * 2 * (24 + 5) ** 2 * 256}


@pytest.mark.parametrize("decoder", DECODERS)
def test_counts_of_peers_are_those_of_an_independent_counter(decoder: str) -> None:
    model = BaselineNetwork(decoder, "resnet10t", 5)
    expected = counted_by_fvcore(model, (64, 96))
    expected["decoder"] += UNSEEN.get(decoder, 0)
    found = multiply_adds(model, (64, 96))
    assert {part: found[part] for part in expected} == expected
    assert expected["decoder"] > 0


def test_fused_attention_is_counted_as_the_products_it_is_made_of(fuse_attention: Callable[[bool], None]) -> None:
    counts = []
    for fused in (True, False):
        fuse_attention(fused)
        swin = "swin_tiny_patch4_window7_224"
        model = ModelConfig(swin, channels=8, heads=1, fusion=False, backbone_args=BACKBONES[swin]).build(2)
        counts.append(multiply_adds(model, (64, 64))["backbone"])
    assert counts[0] == counts[1]


def test_interpolation_is_four_products_for_each_value_sampled() -> None:
    found = multiply_adds(ModelConfig(channels=32, heads=4, points=3).build(5), (64, 64))
    tokens = 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2
    samples = tokens * 4 * 4 * 3
    # MSFE samples values; CSF keys and values.
    assert found["interpolation"] == 3 * samples * 4 * (32 // 4)


def test_samples_are_weighed_once_each() -> None:
    found = profile(ModelConfig(channels=32, heads=4, points=3).build(5), 64, 64, repeats=1)
    samples = (16 * 16 + 8 * 8 + 4 * 4 + 2 * 2) * 4 * 4 * 3
    # MSFE sums values; CSF multiplies keys with queries, then sums values.
    assert found.weighing == found.as_dict()["weighing_multiply_adds"] == 3 * samples * (32 // 4)


def test_the_papers_cost_over_the_baseline() -> None:
    """At 480x480 with C = 256, M = 8, K = 16; the backbone decides nothing of it."""
    counts = multiply_adds(ModelConfig("resnet10t", channels=256, heads=8, points=16).build(150), (480, 480))
    assert counts["cia"] / 1e9 == pytest.approx(2.4, rel=0.06)
    assert (counts["msfe"] + counts["csf"]) / 1e9 == pytest.approx(39.9, rel=0.06)
    modules = counts["cia"] + counts["msfe"] + counts["csf"]
    assert modules / 1e9 == pytest.approx(42.3, rel=0.06)


def test_counts_are_the_formulas_with_and_without_gradients() -> None:
    model = ModelConfig("resnet10t", **SMALL).build(5)
    with torch.no_grad():
        found = multiply_adds(model, (64, 96))
    assert found == multiply_adds(model, (64, 96))


def test_activations_are_what_autograd_keeps() -> None:
    model = ModelConfig(channels=32, heads=4, points=2, cia=False, fusion=False).build(5)
    kept = activations(model, torch.rand(1, 3, 64, 64))
    # A lateral keeps its input, the norm's mean and deviation, and what the linear layer takes.
    tokens = [16 * 16, 8 * 8, 4 * 4, 2 * 2]
    widths = model.backbone.channels
    linear = sum(4 * count * width for count, width in zip(tokens, widths, strict=True))
    assert linear <= kept["lateral"] <= 2 * linear + 2 * 4 * sum(tokens)
    assert kept["backbone"] > kept["lateral"]
    assert kept["cia"] == kept["csf"] == 0
    whole = activations(ModelConfig(channels=32, heads=4, points=2).build(5), torch.rand(1, 3, 64, 64))
    # Attention among samples keeps queries, keys and values of all tokens, and where they look: 4·4·2 places a token.
    assert whole["csf"] >= 4 * sum(tokens) * (3 * 32 + 4 * 4 * 2 * 2)
    assert whole["lateral"] == kept["lateral"] and min(whole["cia"], whole["head"]) > 4 * sum(tokens) * 32


@pytest.mark.parametrize("changes", [{"fusion_stride": 8}, {"csf_depth": 2}, {"cia": False}, {"points": 8}])
def test_another_decoder_or_size_is_not_set_beside_the_paper(changes: dict) -> None:
    options = {"channels": 256, "heads": 8, "points": 16}
    papers = ModelConfig("test_resnet", **options).build(5)
    assert is_papers(papers, (480, 480)) and not is_papers(papers, (480, 512))
    assert not is_papers(ModelConfig("test_resnet", **{**options, **changes}).build(5), (480, 480))


def test_profile_of_a_small_network() -> None:
    found = profile(ModelConfig(channels=16, heads=2, points=2).build(5), 64, 96, repeats=1)
    assert [part.name for part in found.parts] == ["backbone", "lateral", "CIA", "MSFE", "CSF", "head"]
    model = ModelConfig(channels=16, heads=2, points=2, aux=False).build(5)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert all(part.milliseconds > 0 for part in found.parts)
    assert found.as_dict()["flops"] == 2 * found.multiply_adds
    assert len(found.tables()) == 1


def test_the_network_of_a_run_is_profiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Recipe(model=ModelConfig(backbone="test_resnet", channels=16, heads=2, points=2)).save(tmp_path / "recipe.yaml")
    assert main(["profile", str(tmp_path), "--size", "32", "--classes", "3", "--json", str(tmp_path / "j.json")]) == 0
    expected = Recipe.load(tmp_path / "recipe.yaml").model.untrained().build(3)
    count = sum(parameter.numel() for name, parameter in expected.named_parameters() if "aux_head" not in name)
    assert json.loads((tmp_path / "j.json").read_text())["parameters"] == count
    assert main(["profile", str(tmp_path / "none")]) == 2
    assert "is no run folder, it holds no recipe.yaml; give one, or --config FILE." in capsys.readouterr().err


def test_the_fastest_device_is_a_choice_and_another_that_is_not_there_is_told() -> None:
    model = ModelConfig(channels=8, heads=1, points=1).build(2)
    found = profile(model, 64, 64, "auto", repeats=1)
    assert found.device == device_name(best_device())
    with pytest.raises(UserError, match="'cuda:99' cannot be used here.*take cpu or auto"):
        profile(model, 64, 64, "cuda:99")


def test_help_tells_the_networks_options_alone_and_a_whole_recipe_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["profile", "--help"])
    told = capsys.readouterr().out
    assert "--model.channels" in told
    assert not any(f"--{name}" in told for name in ("training.", "scenes.", "augment.", "evaluation.", "seed", "data"))
    small = ["--model.backbone", "resnet18", "--model.channels", "16", "--model.heads", "2", "--model.points", "1"]
    assert main(["profile", "--size", "32", "--classes", "3", *small, "--training.steps", "3"]) == 0
