"""timm's whole network behind a feature extractor, whose parts have other names."""

from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import nn


def outline(name: str, arguments: dict[str, Any]) -> nn.Module:
    """timm's network with its classifier, of names and shapes alone: on the meta device."""
    with torch.device("meta"):
        return timm.create_model(name, **{key: arguments[key] for key in arguments.keys() - {"out_indices"}})


def flat(key: str) -> str:
    """A name that is alike in a network and in a feature extractor, which joins some of its parts or has a prefix."""
    return key.removeprefix("model.").replace(".", "_")


def layer_numbers(trunk: nn.Module, name: str, arguments: dict[str, Any]) -> dict[str, int]:
    """How deep each parameter of a feature extractor lies by timm's ``group_matcher``: 0 is the stem.

    Args:
        trunk: of ``timm.create_model(name, features_only=True, **arguments)``.
        name: timm's name of the network.
        arguments: others that it was created with.
    """
    network: Any = outline(name, arguments)
    numbers = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    own = {flat(key): number for key, number in numbers.items()}
    return {key: int(own[flat(key)]) for key, _ in trunk.named_parameters() if flat(key) in own}
