"""Copies of a network that take no memory for weights."""

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def sharing_weights(model: Network) -> Network:
    """A copy of the network that has its very parameters, buffers and other tensors, and its hooks."""
    shared: list[Any] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        # What pruning and weight norm compute is no parameter, and a hook's object is to hear of the copy too.
        shared += [value for value in vars(module).values() if isinstance(value, Tensor)]
        shared += [hook for kind in hooks(module) for hook in kind.values()]
    return copy.deepcopy(model, {id(value): value for value in shared})


def hooks(module: nn.Module) -> list[dict[int, Any]]:
    """A module's hooks, by kind."""
    return [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]
