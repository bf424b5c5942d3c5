"""oneDNN's linear layers against ``nn.Linear``."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cssformer.accelerate import accelerate_cpu
from cssformer.accelerate.linear import OneDNNLinear, OneDNNLinearGELU, OneDNNLinearReLU, weights_laid_once

sizes = st.integers(0, 5)


@given(sizes, sizes, st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans())
def test_outputs_and_gradients_are_those_of_nn_linear(
    batch: int, tokens: int, channels: int, out: int, bias: bool, transposed: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(channels, out, bias=bias)
    ours = OneDNNLinear(channels, out, bias=bias)
    ours.load_state_dict(plain.state_dict())
    given = torch.randn(tokens, batch, channels).transpose(0, 1) if transposed else torch.randn(batch, tokens, channels)
    with torch.no_grad():
        torch.testing.assert_close(ours(given), plain(given), rtol=1e-5, atol=1e-5)
    results: list[list[torch.Tensor]] = []
    for layer in (plain, ours):
        input = given.detach().requires_grad_()
        product = layer(input)
        (product**2).sum().backward()
        results.append([product, input.grad, *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_single_vector() -> None:
    layer, input = OneDNNLinear(4, 3), torch.randn(4)
    with torch.no_grad():
        torch.testing.assert_close(layer(input), layer.weight @ input + layer.bias)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("way", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "activation"), [(OneDNNLinearReLU, F.relu), (OneDNNLinearGELU, F.gelu)])
def test_activation_of_a_linear_layer_in_every_precision(
    grad: bool, way: str, bias: bool, kind: type[OneDNNLinear], activation: Callable[[torch.Tensor], torch.Tensor]
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
    assert (product == 0).any() if kind is OneDNNLinearReLU else (product < 0).any()


@pytest.mark.parametrize("autocast", [False, True])
def test_float64_stays_float64(autocast: bool) -> None:
    layer = OneDNNLinear(8, 5, dtype=torch.float64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert layer(torch.randn(3, 8, dtype=torch.float64)).dtype == torch.float64


def test_torchs_transforms_without_gradients() -> None:
    """oneDNN's operator itself would lose the tangent without a word."""
    layer, input = nn.Linear(6, 8), torch.randn(4, 3, 6)
    fast = accelerate_cpu(layer)
    with torch.no_grad():
        for transform in (lambda of: torch.func.jvp(of, (input,), (input,))[1], lambda of: torch.vmap(of)(input)):
            torch.testing.assert_close(transform(fast), transform(layer))


def test_pytorchs_switch_is_obeyed() -> None:
    layer, input = OneDNNLinear(64, 40), torch.randn(9, 64)
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(layer(input), F.linear(input, layer.weight, layer.bias))


@pytest.mark.parametrize("autocast", [False, True])
def test_a_weight_laid_out_once_gives_the_same_and_is_forgotten(autocast: bool) -> None:
    layer, other = OneDNNLinear(24, 40), OneDNNLinear(24, 40)
    inputs = [torch.randn(rows, 24) for rows in (70, 70, 3)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = [layer(input) for input in inputs]
        with weights_laid_once():
            for input, product in zip(inputs, expected, strict=True):
                torch.testing.assert_close(layer(input), product)
                torch.testing.assert_close(other(input), F.linear(input, other.weight, other.bias))
        layer.weight.zero_()
        assert torch.equal(layer(inputs[0]), layer.bias.to(expected[0].dtype).expand(70, -1))
