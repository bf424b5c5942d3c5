"""The linear layer of the whole network, backbone included."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """``nn.Linear`` whose float32 products a CPU computes with oneDNN.

    PyTorch hands them to MKL, which takes twice as long on other makers' CPUs than Intel's (docs/performance.md).
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if _by_onednn(input, self.weight):
            product: Tensor = _Product.apply(input.flatten(0, -2), self.weight, self.bias)
            return product.view(*input.shape[:-1], self.out_features)
        return F.linear(input, self.weight, self.bias)


def use_onednn(module: nn.Module) -> None:
    """Turn every ``nn.Linear`` inside into :class:`Linear`, which has the same parameters."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear


def _by_onednn(input: Tensor, weight: Tensor) -> bool:
    return (
        input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and input.ndim > 1
        and input.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and torch.backends.mkldnn.is_available()
    )


def _multiply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left (m, k), right (n, k) -> left · rightᵀ + bias, (m, n)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
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
