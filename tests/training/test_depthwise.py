"""Depthwise convolutions that a CPU trains in float32 under autocast."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from cssformer.training.depthwise import keep_depthwise_float32

BFLOAT16 = torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("name", ["test_efficientnet", "convnext_atto", "tf_mobilenetv3_small_minimal_100"])
def test_they_compute_what_float32_does_and_the_rest_is_as_before(name: str) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name, features_only=True).eval()
    ours = copy.deepcopy(plain)
    keep_depthwise_float32(ours)
    assert list(ours.state_dict()) == list(plain.state_dict())
    image = torch.rand(1, 3, 64, 64)
    assert all(torch.equal(one, other) for one, other in zip(ours(image), plain(image), strict=True))
    pairs = list(zip(ours.modules(), plain.modules(), strict=True))
    changed = [(one, other) for one, other in pairs if type(one) is not type(other)]
    assert changed
    for one, other in changed:
        assert isinstance(one, nn.Conv2d) and one.groups == one.in_channels > 1
        given = torch.randn(2, one.in_channels, 15, 15).bfloat16()
        with BFLOAT16:
            output, rounded = one(given), other(given)
        expected = other(given.float())
        assert torch.equal(output, expected) and not torch.equal(rounded.float(), expected)
        gradients = [
            torch.autograd.grad(y.square().sum(), layer.weight) for y, layer in ((output, one), (expected, other))
        ]
        assert torch.equal(*gradients[0], *gradients[1])


def test_other_convolutions_stay() -> None:
    layers = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(1, 4, 5)
    )
    keep_depthwise_float32(layers)
    assert all(type(layer) is nn.Conv2d for layer in layers)


def test_pictures_of_bfloat16_without_autocast_are_left_to_the_layer() -> None:
    layer = nn.Sequential(nn.Conv2d(4, 4, 5, groups=4)).bfloat16()
    keep_depthwise_float32(layer)
    assert layer(torch.rand(1, 4, 8, 8).bfloat16()).dtype == torch.bfloat16


def test_a_network_may_be_prepared_again_and_pickled() -> None:
    layer = nn.Sequential(nn.Conv2d(4, 4, 5, groups=4))
    keep_depthwise_float32(layer)
    kind = type(layer[0])
    keep_depthwise_float32(layer)
    assert type(layer[0]) is kind is type(pickle.loads(pickle.dumps(layer))[0]) is not nn.Conv2d
