"""The accelerated network is the network: outputs, gradients, and what is left alone."""

import copy
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Mlp
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm

from cssformer import CSSFormer
from cssformer.accelerate import accelerate_cpu
from cssformer.accelerate.linear import OneDNNLinear, OneDNNLinearGELU
from cssformer.accelerate.modules import FastCIA, FastCSF, FastMSFE, FastOffsets, FastResize, MergedLinear
from cssformer.model import segmentation_loss
from cssformer.model.cia import ChannelInformationAugmentation
from cssformer.model.csf import CrossScaleFusion
from cssformer.model.layers import FeedForward, SamplingOffsets
from cssformer.model.msfe import MultiScaleFeatureEnhancement
from cssformer.model.positions import Shapes, reference_points

SMALL = {"backbone": "resnet10t", "num_classes": 5, "channels": 32, "heads": 4, "points": 2}


def randomised(model: nn.Module) -> nn.Module:
    """Zero-initialised branches would hide mistakes."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if not parameter.abs().max():
            nn.init.normal_(parameter, std=0.05)
    return model


def largest_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[nn.Module, nn.Module]]:
    made = {}
    for name in ("swin_tiny_patch4_window7_224", "mobilenetv2_100"):
        torch.manual_seed(0)
        model = randomised(CSSFormer(name, 7, channels=64, points=4)).eval()
        made[name] = model, accelerate_cpu(model)
    return made


@pytest.mark.parametrize("size", [(64, 96), (97, 130), (32, 200)])
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "mobilenetv2_100"])
def test_the_accelerated_network_gives_the_networks_logits(pairs: dict, name: str, size: tuple[int, int]) -> None:
    model, fast = pairs[name]
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        expected, found = model(images), fast(images)
        lowered = copy.deepcopy(fast).bfloat16()(images.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            mixed = fast(images)
    assert largest_difference(found, expected) < 1e-5
    assert max(largest_difference(other.float(), expected) for other in (lowered, mixed)) < 0.1


def test_every_kind_of_module_is_swapped(pairs: dict) -> None:
    _, fast = pairs["swin_tiny_patch4_window7_224"]
    kinds = {type(module) for module in fast.modules()}
    assert {FastMSFE, FastCSF, FastCIA, FastOffsets, FastResize, OneDNNLinear, OneDNNLinearGELU} <= kinds
    assert not kinds & {
        nn.Linear,
        SamplingOffsets,
        MultiScaleFeatureEnhancement,
        CrossScaleFusion,
        ChannelInformationAugmentation,
    }


def test_the_copy_shares_the_parameters_and_their_gradients() -> None:
    torch.manual_seed(0)
    model = randomised(CSSFormer(**SMALL, dropout=0.0)).eval()
    fast = accelerate_cpu(model)
    assert [id(one) for one in model.parameters()] == [id(other) for other in fast.parameters()]
    images, labels = torch.rand(1, 3, 64, 64), torch.randint(0, 5, (1, 64, 64))
    gradients = []
    for network in (model, fast):
        model.zero_grad()
        segmentation_loss(network(images), labels).backward()
        gradients.append(
            {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected)
    with torch.no_grad():
        model.head.classify.bias += 1
        assert largest_difference(fast(images), model(images)) < 1e-5


def test_the_given_network_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = randomised(CSSFormer("swin_tiny_patch4_window7_224", 7, channels=64, points=4)).eval()

    def state() -> list[object]:
        kinds = [(name, type(module), module.training, vars(module).keys()) for name, module in model.named_modules()]
        tensors = [
            (name, id(value), value.data_ptr(), value.stride())
            for name, value in model.state_dict(keep_vars=True).items()
        ]
        return [*kinds, *tensors]

    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected, before = model(images), state()
        accelerate_cpu(model)(images)
        assert state() == before
        assert torch.equal(model(images), expected)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "mobilenetv2_100"])
def test_with_gradients_the_copy_computes_what_the_network_computes(pairs: dict, name: str) -> None:
    model, fast = pairs[name]
    labels = torch.randint(0, 7, (1, 64, 96), generator=torch.Generator().manual_seed(3))
    gradients = []
    for network in (model, fast):
        images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)).requires_grad_()
        model.zero_grad()
        segmentation_loss(network(images), labels).backward()
        used = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        gradients.append({"images": images.grad, **used})
    model.zero_grad()
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 100
    for key, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], expected, rtol=1e-4, atol=1e-6)


class SigmoidMSFE(MultiScaleFeatureEnhancement):
    """Somebody's experiment."""


def edited(kind: str, model: CSSFormer, monkeypatch: pytest.MonkeyPatch) -> None:
    block = model.msfe[0]
    if kind == "subclass":
        block.__class__ = SigmoidMSFE
    elif kind == "own forward":
        block.forward = lambda tokens, *_: 2 * tokens
    elif kind == "hooks":
        block.offsets.register_forward_hook(lambda module, inputs, output: 3 * output)
    elif kind == "patched class":
        forward = MultiScaleFeatureEnhancement.forward
        monkeypatch.setattr(MultiScaleFeatureEnhancement, "forward", lambda *given: 1.5 * forward(*given))
    elif kind == "picky class":
        forward = MultiScaleFeatureEnhancement.forward

        def picky(self: nn.Module, tokens: Tensor, pos_embed: Tensor, shapes: Shapes, reference: Tensor) -> Tensor:
            assert shapes[0] == (16, 16), "another size"
            return 1.5 * forward(self, tokens, pos_embed, shapes, reference)

        monkeypatch.setattr(MultiScaleFeatureEnhancement, "forward", picky)
    elif kind == "other activation":

        def smooth(self: FeedForward, tokens: Tensor) -> Tensor:
            return self[3](F.silu(self[1](self[0](tokens))))

        monkeypatch.setattr(FeedForward, "forward", smooth)
    else:

        class Doubled(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                return 2 * super().forward(input)

        block.output.__class__ = Doubled


@pytest.mark.parametrize(
    "kind",
    [
        "subclass",
        "own forward",
        "hooks",
        "patched class",
        "picky class",
        "other activation",
        "part of another class",
    ],
)
def test_an_edited_module_is_never_scored_by_the_old_formula(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = randomised(CSSFormer(**SMALL)).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
    edited(kind, model, monkeypatch)
    with caplog.at_level(logging.WARNING, "cssformer.accelerate"):
        fast = accelerate_cpu(model)
    with torch.no_grad():
        expected, found = model(images), fast(images)
    assert largest_difference(found, expected) < 1e-5
    if kind != "subclass":
        assert largest_difference(before, expected) > 1e-3
    if kind in ("own forward", "hooks", "patched class", "picky class"):
        assert any("msfe.0" in record.getMessage() for record in caplog.records)
        assert type(fast.msfe[0]) is MultiScaleFeatureEnhancement


@pytest.mark.parametrize("size", ["nano", "small"])
def test_lateral_layers_are_merged_with_the_heads_where_nothing_lies_between(size: str) -> None:
    torch.manual_seed(0)
    model = randomised(CSSFormer.preset(size, 5, backbone="test_resnet", channels=32)).eval()
    fast = accelerate_cpu(model)
    merged = [type(lateral[1]) is MergedLinear for lateral in fast.lateral]
    assert merged == [True, size == "nano", False, False]
    assert fast.state_dict().keys() == model.state_dict().keys()
    images = torch.rand(2, 3, 64, 96)
    torch.nn.init.normal_(model.head.fuse[0].weight)  # the copy's too
    with torch.no_grad():
        assert largest_difference(fast(images), model(images)) < 1e-5
        lowered = copy.deepcopy(fast).bfloat16()(images.bfloat16())
        assert largest_difference(lowered.float(), model(images)) < 0.1
    assert torch.equal(fast(images), model(images))


def test_an_edited_decoder_is_not_merged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def decode(self: CSSFormer, features: list[Tensor]) -> Tensor:
        maps = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        return self.head([maps[0].relu(), *maps[1:]])

    monkeypatch.setattr(CSSFormer, "decode", decode)
    torch.manual_seed(0)
    model = CSSFormer.preset("small", 5, backbone="test_resnet", channels=32).eval()
    with caplog.at_level(logging.WARNING, "cssformer.accelerate"):
        fast = accelerate_cpu(model)
    assert "not merged" in caplog.text
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 64)
        assert largest_difference(fast(images), model(images)) < 1e-5


@pytest.mark.parametrize("change", ["pruned", "weight norm", "spectral norm"])
def test_networks_that_torch_has_changed(change: str) -> None:
    """Pruning and the older norms keep what they compute as attributes, which cannot be copied."""
    torch.manual_seed(0)
    model = randomised(CSSFormer(**SMALL)).eval()
    for layer in (model.msfe[0].output, model.cia[1].fuse, model.head.classify):
        if change == "pruned":
            prune.l1_unstructured(layer, "weight", 0.5)
        elif change == "weight norm":
            torch.nn.utils.weight_norm(layer)
        else:
            spectral_norm(layer)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = model(images), accelerate_cpu(model)(images)
    assert largest_difference(found, expected) < 1e-5


def test_the_object_of_a_hook_hears_of_the_copy() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.calls = 0

        def hook(self, *_: object) -> None:
            self.calls += 1

    model, recorder = CSSFormer(**SMALL).eval(), Recorder()
    model.head.register_forward_hook(recorder.hook)
    with torch.no_grad():
        accelerate_cpu(model)(torch.rand(1, 3, 64, 64))
    assert recorder.calls == 1


@pytest.mark.parametrize(
    "options",
    [
        {"fusion": False, "cia": False},
        {"fusion_stride": 8},
        {"fusion_stride": 32, "heads": 1, "points": 1},
        {"msfe_depth": 0, "csf_depth": 2},
        {"msfe_depth": 2, "csf_depth": 0, "num_classes": 1},
    ],
    ids=str,
)
def test_odd_networks_in_every_precision(options: dict) -> None:
    model = randomised(CSSFormer(**{**SMALL, "backbone": "test_resnet", **options})).eval()
    bounds = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 0.05}
    for size in ((32, 32), (33, 47)):
        for dtype, bound in bounds.items():
            lowered, images = copy.deepcopy(model).to(dtype), torch.rand(2, 3, *size, dtype=dtype)
            with torch.inference_mode():
                expected, found = lowered(images), accelerate_cpu(lowered)(images)
            assert found.dtype == dtype and largest_difference(found, expected) <= bound


def test_weights_loaded_later_and_calls_of_several_threads() -> None:
    model = randomised(CSSFormer(**SMALL)).eval()
    fast, other = accelerate_cpu(model), copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.copy_(1.1 * tensor)
        model.load_state_dict(other.state_dict())
        pictures = [torch.rand(1, 3, 64 + 8 * number, 96) for number in range(4)]
        expected = [other(images) for images in pictures]

    @torch.no_grad()
    def difference(call: int) -> float:
        return largest_difference(fast(pictures[call % 4]), expected[call % 4])

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(difference, range(16))) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_in_runs_equal_all_at_once(dtype: torch.dtype) -> None:
    """7650 tokens are several runs."""
    torch.manual_seed(0)
    shapes = ((80, 72), (40, 36), (20, 18), (10, 9))
    reference = reference_points(shapes, torch.device("cpu"))
    msfe, csf = MultiScaleFeatureEnhancement(16, 2, 3).to(dtype), CrossScaleFusion(16, 2, 3).to(dtype)
    for part in (msfe, csf):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.2)
    tokens = torch.randn(2, len(reference), 16, dtype=dtype)
    pos_embed = torch.randn(len(reference), 16, dtype=dtype)
    close = {} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    with torch.no_grad():
        enhanced = msfe(tokens, pos_embed, shapes, reference)
        fused = csf(tokens, enhanced, pos_embed, shapes, reference)
        msfe.__class__, csf.__class__ = FastMSFE, FastCSF
        torch.testing.assert_close(msfe(tokens, pos_embed, shapes, reference), enhanced, **close)
        torch.testing.assert_close(csf(tokens, enhanced, pos_embed, shapes, reference), fused, **close)


@given(
    batch=st.integers(1, 2),
    before=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    after=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=60)
def test_resizing_is_interpolate(
    batch: int, before: tuple[int, int], after: tuple[int, int], channels: int, dtype: torch.dtype
) -> None:
    feature = torch.randn(batch, *before, channels).to(dtype)
    expected = F.interpolate(feature.float().permute(0, 3, 1, 2), after, mode="bilinear").permute(0, 2, 3, 1)
    with torch.no_grad():
        found = FastResize()(feature, after)
    close = {} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found, expected.to(dtype), **close)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_mlp_of_timms_transformers_keeps_its_activation(approximate: str) -> None:
    mlp = Mlp(16, 32, act_layer=lambda: nn.GELU(approximate=approximate))
    input = torch.randn(3, 5, 16)
    fast = accelerate_cpu(mlp)
    assert type(fast.fc1) is (OneDNNLinearGELU if approximate == "none" else OneDNNLinear)
    with torch.no_grad():
        torch.testing.assert_close(fast(input), mlp(input))


def test_padded_and_shifted_windows_equal_timms_and_give_no_denormals() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, strict_img_size=False).eval()
    fast = accelerate_cpu(plain)
    images = torch.randn(1, 3, 160, 96)
    weights: list[Tensor] = []
    with torch.no_grad():
        expected, found = plain(images), fast(images)
        for part in fast.modules():
            if isinstance(part, WindowAttention):
                part.fused_attn = False
                part.attn_drop.register_forward_hook(lambda _, inputs, __: weights.append(inputs[0]))
        unfused = fast(images)
    for truth, one, other in zip(expected, found, unfused, strict=True):
        torch.testing.assert_close(one, truth, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other, truth, rtol=1e-4, atol=1e-5)
    assert len(weights) == 12
    assert any((weight == 0).any() for weight in weights)
    assert not any(((weight > 0) & (weight < torch.finfo(weight.dtype).tiny)).any() for weight in weights)
