"""timm's whole network behind a feature extractor, whose parts have other names."""

from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import nn


def outline(name: str, arguments: dict[str, Any]) -> nn.Module:
    """timm's network with its classifier, for names and shapes: on the meta device where timm can build it there."""
    arguments = {key: arguments[key] for key in arguments.keys() - {"out_indices", "pyramid"}}
    try:
        with torch.device("meta"):
            return timm.create_model(name, **arguments)
    except (RuntimeError, NotImplementedError):
        with torch.random.fork_rng(devices=[]):
            return timm.create_model(name, **arguments)


def flat(key: str) -> str:
    """A name that is alike in a network and in a feature extractor, which joins some of its parts or has a prefix."""
    return key.removeprefix("model.").replace(".", "_")


def layers_above(trunk: nn.Module, name: str, arguments: dict[str, Any]) -> dict[str, int]:
    """How many layers, the decoder being one, lie above each parameter of a feature extractor by timm's groups.

    Args:
        trunk: of ``timm.create_model(name, features_only=True, **arguments)``.
        name: timm's name of the network.
        arguments: others that it was created with.
    """
    network: Any = outline(name, arguments)
    numbers = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    # The decoder stands in the place of the classifier, which some have not.
    top = max(numbers.values()) + (network.num_classes == 0)
    own = {flat(key): top - number for key, number in numbers.items()}
    return {key: int(own[flat(key)]) for key, _ in trunk.named_parameters() if flat(key) in own}
