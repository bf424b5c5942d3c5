"""Low-rank adaptation of a backbone's attention (LoRA, Hu et al., 2021)."""

import copy
import math
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from cssformer.utils.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


class LowRank(nn.Module):
    """W (D, C) -> W + B·A, A (rank, C) uniform as nn.Linear's weights, B (D, rank) zero at the start."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def add_lora(trunk: nn.Module, rank: int) -> None:
    """Freeze a backbone and add :class:`LowRank` to the linear layers of its attention, in place.

    Raises:
        UserError: it has no attention, or none of its layers is larger than the rank.
    """
    trunk.requires_grad_(False)
    found = [
        layer
        for name, part in trunk.named_modules()
        if name.rsplit(".")[-1].startswith("attn")
        for layer in part.children()
        if isinstance(layer, nn.Linear)
    ]
    if not found:
        raise UserError("The backbone has no attention for training.lora; leave it out.")
    if rank >= (size := max(min(layer.weight.shape) for layer in found)):
        raise UserError(
            f"training.lora {rank} is no low rank, where the attention's weights have {size}; give a lower one."
        )
    for layer in found:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))


def merged(network: Network) -> Network:
    """The network itself, or with LoRA a copy of plain weights."""
    if not any(isinstance(part, LowRank) for part in network.modules()):
        return network
    network = copy.deepcopy(network)
    # Not by `remove_parametrizations`: it takes the weight from the layer's class, which copies share.
    for part in list(network.modules()):
        for name, layer in list(part.named_children()):
            if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer, "weight"):
                setattr(part, name, _plain(layer))
    return network


def _plain(layer: nn.Linear) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
    plain.bias = layer.bias
    return plain.train(layer.training)
