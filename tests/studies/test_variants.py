"""What the studies compare: names that do not exist, values that are varied."""

import math

import pytest

from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError
from studies.variants import MODULES, choose, grid_variants, points_variants


def test_variants_that_do_not_exist() -> None:
    with pytest.raises(UserError, match="no variant 'csf'; it has baseline, cia, msfe-csf, cssformer"):
        choose(MODULES, ["csf"])


def test_a_number_of_points_asked_for_twice_is_one_variant() -> None:
    assert [variant.name for variant in points_variants([4, 1, 4])] == ["points-1", "points-4"]


def test_a_grid_is_the_product_of_the_values() -> None:
    variants = grid_variants(["training.lr=1e-3,3e-4", "model.points=4,16"])
    recipes = [variant.of(Recipe()) for variant in variants]
    assert [(recipe.training.lr, recipe.model.points) for recipe in recipes] == [
        (1e-3, 4),
        (1e-3, 16),
        (3e-4, 4),
        (3e-4, 16),
    ]
    # Nothing else differs.
    for recipe in recipes:
        recipe.training.lr, recipe.model.points = Recipe().training.lr, Recipe().model.points
        assert recipe == Recipe()
    assert variants[1].name == "training.lr=0.001,model.points=16"
    assert variants[1].title == "training.lr=0.001 model.points=16"


def test_a_value_given_twice_or_written_otherwise_is_one_variant() -> None:
    variants = grid_variants(["training.lr=1e-3,0.001", "training.lr=0.002"])
    assert [variant.changes for variant in variants] == [{"training.lr": 1e-3}, {"training.lr": 2e-3}]


@pytest.mark.parametrize(
    ("word", "values", "names"),
    [
        ("augment.crop=[64,64],[96,128]", [(64, 64), (96, 128)], ["[64,64]", "[96,128]"]),
        ("training.ema=null,0.99", [None, 0.99], ["null", "0.99"]),
        ("training.precision=32,bf16", ["32", "bf16"], ["32", "bf16"]),
        ("model.aux=true,false", [True, False], ["true", "false"]),
        ("data=a/b,c", ["a/b", "c"], ["a%2Fb", "c"]),
        ("model.backbone_args={a: 1, b: 2},{}", [{"a": 1, "b": 2}, {}], ["%7B%22a%22%3A1,%22b%22%3A2%7D", "%7B%7D"]),
    ],
)
def test_values_of_every_kind_are_varied(word: str, values: list[object], names: list[str]) -> None:
    variants, key = grid_variants([word]), word.partition("=")[0]
    assert [variant.changes for variant in variants] == [{key: value} for value in values]
    assert [variant.name for variant in variants] == [f"{key}={name}" for name in names]


def test_what_is_of_another_kind_is_no_value() -> None:
    for word in ("training.lr=", "training.lr=nan", f"training.lr={-math.inf}", "model.points=4.5", "augment.crop=64"):
        with pytest.raises(UserError, match=word.partition("=")[0]):
            grid_variants([word])
