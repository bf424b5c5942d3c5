"""The linear layer against ``nn.Linear``, and tokens taken in runs against all at once."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import Mlp
from torch import nn

from cssformer.accelerate.linear import Linear, LinearGELU, LinearReLU, use_onednn, weights_laid_once
from cssformer.model.csf import CrossScaleFusion
from cssformer.model.msfe import MultiScaleFeatureEnhancement
from cssformer.model.positions import in_runs, reference_points
from cssformer.ops import use_backend

sizes = st.integers(0, 5)


@given(sizes, sizes, st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans())
def test_outputs_and_gradients_are_those_of_nn_linear(
    batch: int, tokens: int, channels: int, out: int, bias: bool, transposed: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(channels, out, bias=bias)
    ours = Linear(channels, out, bias=bias)
    ours.load_state_dict(plain.state_dict())
    given = torch.randn(tokens, batch, channels).transpose(0, 1) if transposed else torch.randn(batch, tokens, channels)
    results: list[list[torch.Tensor]] = []
    with torch.no_grad():
        torch.testing.assert_close(ours(given), plain(given), rtol=1e-5, atol=1e-5)
    for layer in (plain, ours):
        input = given.detach().requires_grad_()
        product = layer(input)
        (product**2).sum().backward()
        results.append([product, input.grad, *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_single_vector() -> None:
    layer = Linear(4, 3)
    input = torch.randn(4)
    torch.testing.assert_close(layer(input), layer.weight @ input + layer.bias)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("way", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "activation"), [(LinearReLU, F.relu), (LinearGELU, F.gelu)])
def test_activation_of_a_linear_layer_in_every_precision(
    grad: bool, way: str, bias: bool, kind: type[Linear], activation: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    torch.manual_seed(0)
    layer, input = kind(64, 24, bias=bias), torch.randn(3, 5, 64)
    exact = activation(F.linear(input, layer.weight, layer.bias)).detach()
    if way == "bfloat16":
        layer, input = layer.bfloat16(), input.bfloat16()
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        product = layer(input)
    assert product.shape == exact.shape and product.requires_grad == grad
    assert product.dtype == (torch.float32 if way == "float32" else torch.bfloat16)
    tolerance = 1e-5 if way == "float32" else 0.02
    torch.testing.assert_close(product.detach().float(), exact, rtol=tolerance, atol=tolerance)
    assert (product > 0).any()
    assert (product == 0).any() if kind is LinearReLU else (product < 0).any()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_mlp_of_timms_transformers_keeps_its_activation(approximate: str) -> None:
    mlp = Mlp(16, 32, act_layer=lambda: nn.GELU(approximate=approximate))
    input = torch.randn(3, 5, 16)
    expected = mlp(input)
    use_onednn(mlp)
    assert type(mlp.fc1) is (LinearGELU if approximate == "none" else Linear)
    torch.testing.assert_close(mlp(input), expected)
    with torch.no_grad():
        torch.testing.assert_close(mlp(input), expected.detach())


@pytest.mark.parametrize("autocast", [False, True])
def test_float64_stays_float64(autocast: bool) -> None:
    layer = Linear(8, 5, dtype=torch.float64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert layer(torch.randn(3, 8, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_pytorchs_own_where_gradients_are_asked_for(dtype: torch.dtype) -> None:
    plain = nn.Linear(8, 5, dtype=dtype)
    ours = Linear(8, 5, dtype=dtype)
    ours.load_state_dict(plain.state_dict())
    input = torch.randn(3, 8, dtype=dtype)
    assert torch.equal(plain(input), ours(input))


def test_a_networks_layers_are_turned_with_their_parameters() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 2)))
    input, names = torch.randn(5, 4), list(network.state_dict())
    before = network(input)
    use_onednn(network)
    assert [type(part) for part in network.modules()].count(Linear) == 2
    assert list(network.state_dict()) == names
    torch.testing.assert_close(network(input), before)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_weight_laid_out_once_gives_the_same_and_is_forgotten(autocast: bool) -> None:
    layer, other = Linear(24, 40), Linear(24, 40)
    inputs = [torch.randn(rows, 24) for rows in (70, 70, 3)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = [layer(input) for input in inputs]
        with weights_laid_once():
            for input, product in zip(inputs, expected, strict=True):
                torch.testing.assert_close(layer(input), product)
                torch.testing.assert_close(other(input), F.linear(input, other.weight, other.bias))
        layer.weight.zero_()
        assert torch.equal(layer(inputs[0]), layer.bias.to(expected[0].dtype).expand(70, -1))


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_in_runs_equal_all_at_once(backend: str, dtype: torch.dtype) -> None:
    """Without gradients MSFE and CSF go run by run over maps laid out once; 7650 tokens are two runs."""
    torch.manual_seed(0)
    shapes = ((80, 72), (40, 36), (20, 18), (10, 9))
    reference = reference_points(shapes, torch.device("cpu"))
    enhance, fuse = MultiScaleFeatureEnhancement(16, 2, 3), CrossScaleFusion(16, 2, 3)
    for part in (enhance, fuse):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.2)
    tokens = torch.randn(2, len(reference), 16, dtype=dtype)
    places = torch.randn(len(reference), 16, dtype=dtype)
    with use_backend(backend):
        at_once = enhance.to(dtype)(tokens, places, shapes, reference)
        fused = fuse.to(dtype)(tokens, at_once, places, shapes, reference)
        close = {} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
        with torch.no_grad():
            torch.testing.assert_close(enhance(tokens, places, shapes, reference), at_once.detach(), **close)
            torch.testing.assert_close(fuse(tokens, at_once, places, shapes, reference), fused.detach(), **close)


@given(st.integers(0, 20), st.integers(1, 7))
def test_runs_cover_every_token_once(count: int, length: int) -> None:
    tokens = torch.arange(2 * count, dtype=torch.float32).view(1, count, 2)
    seen: list[slice] = []

    def double(run: slice) -> torch.Tensor:
        seen.append(run)
        return 2 * tokens[:, run]

    with torch.no_grad():
        assert torch.equal(in_runs(double, tokens, length), 2 * tokens)
    assert len(seen) == max(1, -(-count // length))
    assert torch.equal(in_runs(double, tokens, length), 2 * tokens)
    assert seen[-1] == slice(None)
