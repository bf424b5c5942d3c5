"""One decoder in three sizes, for programs and for recipes."""

import inspect
from pathlib import Path

import pytest
import torch

from cssformer import CSSFormer
from cssformer.metrics.profile import multiply_adds
from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError
from cssformer.weights.family import FAMILY, decoder_of


def test_base_is_the_papers_network() -> None:
    defaults = {name: given.default for name, given in inspect.signature(CSSFormer).parameters.items()}
    assert decoder_of("base").items() <= defaults.items()


@pytest.mark.parametrize("name", FAMILY)
def test_a_size_is_the_same_for_programs_and_recipes(name: str) -> None:
    recipe = vars(Recipe.load(name).model)
    assert {key: recipe[key] for key in decoder_of(name)} == decoder_of(name)
    with torch.device("meta"):
        network = CSSFormer.preset(name, 7, backbone="test_resnet", dropout=0.0)
    assert {**decoder_of(name), "num_classes": 7, "dropout": 0.0}.items() <= network.hparams.items()


def test_a_size_is_lighter_than_the_next_and_what_is_given_wins() -> None:
    networks = [CSSFormer.preset(name, 5, backbone="test_resnet", channels=64) for name in FAMILY]
    assert {network.hparams["channels"] for network in networks} == {64}
    costs = [sum(multiply_adds(network, (64, 64)).values()) for network in networks]
    assert costs == sorted(costs) and len(set(costs)) == 3


def test_hidden_width_of_the_feed_forward_layers(tmp_path: Path) -> None:
    network = CSSFormer("test_resnet", 3, channels=16, heads=2, points=1, ffn_ratio=2)
    for block in (network.msfe[0], network.csf[0]):
        assert [tuple(block.feed_forward[at].weight.shape) for at in (1, 3)] == [(32, 16), (16, 32)]
    network.save_pretrained(tmp_path)
    assert CSSFormer.from_pretrained(tmp_path).hparams["ffn_ratio"] == 2


def test_a_size_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match="no CSSFormer of the size 'tiny'; take nano, small, base"):
        CSSFormer.preset("tiny")
