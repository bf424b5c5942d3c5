"""Linear layers whose products a CPU computes with oneDNN, where nothing is to be differentiated.

PyTorch hands those of float32 to MKL, which takes twice as long on other makers' CPUs than Intel's, and to those of
bfloat16 it adds the bias in a pass of its own (docs/performance.md). Other precisions are left to PyTorch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from cssformer.utils.context import bound


class OneDNNLinear(nn.Linear):
    """``nn.Linear``, and in a subclass the activation after it."""

    activation: ClassVar[str] = "none"

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(input, self.weight, self.bias, self.activation)


class OneDNNLinearReLU(OneDNNLinear):
    activation = "relu"


class OneDNNLinearGELU(OneDNNLinear):
    activation = "gelu"


def plain_inference() -> bool:
    """Whether nothing is to be differentiated, compiled or exported."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    # Derivatives in forward mode are taken without gradients too.
    return not torch.is_grad_enabled() and forward_ad._current_level < 0


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """``F.linear``, then the activation ("none", "relu" or "gelu", the exact one)."""
    dtype = _precision(input, weight)
    if dtype is None:
        return _ACTIVATIONS[activation](F.linear(input, weight, bias))
    rows = input.to(dtype).flatten(0, -2)
    bias = None if bias is None else bias.to(dtype)
    laid = _laid(weight, dtype, len(rows))
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, laid, bias, activation, [], "none")
    return product.view(*input.shape[:-1], weight.shape[0])


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda product: product, "relu": F.relu, "gelu": F.gelu}


Laid = dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]]
_laid_weights: ContextVar[Laid | None] = ContextVar("laid_weights", default=None)


def weights_laid_once() -> AbstractContextManager[Laid]:
    """Inside, a weight used again is not converted and laid out for the machine again. It must not change meanwhile."""
    return bound(_laid_weights, {})


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


def _precision(input: Tensor, weight: Tensor) -> torch.dtype | None:
    """In which precision oneDNN is to multiply; None leaves the product to PyTorch."""
    if not plain_inference() or input.device.type != "cpu" or input.ndim < 2 or input.numel() == 0:
        return None
    if type(input) is not Tensor or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return None
    autocast = torch.is_autocast_enabled("cpu")
    if torch.float64 in (input.dtype, weight.dtype) or (not autocast and input.dtype != weight.dtype):
        return None
    dtype = torch.get_autocast_dtype("cpu") if autocast else input.dtype
    if dtype == torch.float32 or (dtype == torch.bfloat16 and _multiplies_bfloat16()):
        return dtype
    return None


@cache
def _multiplies_bfloat16() -> bool:
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported
