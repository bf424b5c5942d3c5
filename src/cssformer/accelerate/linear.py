"""The linear layer of the whole network, backbone included."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from cssformer.utils.eager import values_only


class Linear(nn.Linear):
    """``nn.Linear`` whose products a CPU computes with oneDNN.

    PyTorch hands those of float32 to MKL, which takes twice as long on other makers' CPUs than Intel's, and to those of
    bfloat16 it adds the bias in a pass of its own (docs/performance.md). bfloat16 only where nothing is to be
    differentiated; other precisions are left to PyTorch.
    """

    activation: ClassVar[str] = "none"

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(input, self.weight, self.bias, self.activation)


class LinearReLU(Linear):
    """relu of a linear layer, in one pass where nothing is to be differentiated."""

    activation = "relu"


class LinearGELU(Linear):
    """gelu of a linear layer, likewise."""

    activation = "gelu"


def xavier_init_(layer: Linear) -> Linear:
    """The layer with weights uniform after Glorot and Bengio, and bias 0."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zero_init_(layer: Linear) -> Linear:
    """The layer with weights and bias 0. As a residual branch's last layer: the network starts as its baseline."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """``F.linear``, then the activation ("none", "relu" or "gelu"), with the products of :class:`Linear`."""
    dtype = _precision(input, weight)
    if dtype is None:
        product = F.linear(input, weight, bias)
    elif values_only():
        rows = input.to(dtype).flatten(0, -2)
        product = _multiply(rows, _laid(weight, dtype, len(rows)), None if bias is None else bias.to(dtype), activation)
        return product.view(*input.shape[:-1], weight.shape[0])
    else:
        product = _Product.apply(input.flatten(0, -2), weight, bias).view(*input.shape[:-1], weight.shape[0])
    return _ACTIVATIONS[activation](product)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda product: product, "relu": F.relu_, "gelu": F.gelu}


@contextmanager
def weights_laid_once() -> Iterator[None]:
    """Inside, a weight used again is not converted and laid out for the machine again. It must not change meanwhile."""
    token = _laid_weights.set({})
    try:
        yield
    finally:
        _laid_weights.reset(token)


_laid_weights: ContextVar[dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] | None]
_laid_weights = ContextVar("laid_weights", default=None)


def _laid(weight: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
    """The weight in a precision: row-major, or for many products with about so many rows as oneDNN likes it."""
    kept = _laid_weights.get()
    if kept is None:
        return weight.to(dtype).contiguous()
    key = (id(weight), dtype)
    if key not in kept:
        # Beside the weight itself, whose id then stays its own.
        kept[key] = weight, torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), rows)
    return kept[key][1]


def use_onednn(module: nn.Module) -> None:
    """Turn every ``nn.Linear`` inside into :class:`Linear`, which has the same parameters.

    In timm's Transformers the GELU after ``fc1`` becomes part of ``fc1``, and ``act`` the identity.
    """
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear
    for part in module.modules():
        exact = isinstance(part, Mlp) and type(part.act) is nn.GELU and part.act.approximate == "none"
        if exact and type(part.fc1) is Linear:
            part.fc1.__class__, part.act = LinearGELU, nn.Identity()


def _precision(input: Tensor, weight: Tensor) -> torch.dtype | None:
    """In which precision oneDNN is to multiply; None leaves the product to PyTorch."""
    if input.device.type != "cpu" or input.ndim < 2 or input.numel() == 0:
        return None
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not torch.backends.mkldnn.is_available():
        return None
    autocast = torch.is_autocast_enabled("cpu")
    if torch.float64 in (input.dtype, weight.dtype) or (not autocast and input.dtype != weight.dtype):
        return None
    dtype = torch.get_autocast_dtype("cpu") if autocast else input.dtype
    if dtype == torch.bfloat16 and values_only() and _multiplies_bfloat16():
        return dtype
    return dtype if dtype == torch.float32 else None


@cache
def _multiplies_bfloat16() -> bool:
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


def _multiply(left: Tensor, right: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """left (m, k), right (n, k) -> activation(left · rightᵀ + bias), (m, n)."""
    # Of gelu, the exact one.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, activation, [], "none")
    return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _multiply(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        to_input, to_weight, to_bias = ctx.needs_input_grad
        return (
            _multiply(grad, weight.t().contiguous()) if to_input else None,
            _multiply(grad.t().contiguous(), input.t().contiguous()) if to_weight else None,
            grad.sum(0) if to_bias else None,
        )
