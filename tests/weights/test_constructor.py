"""A network of the user's own keeps what it was made with, however its constructor takes it."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cssformer import CSSFormer
from cssformer.utils.errors import UserError

SMALL = {"channels": 8, "heads": 2, "points": 1}


class Passing(CSSFormer):
    def __init__(self, *args: Any, reach: float = 8.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reach = reach

    def decode(self, features: list[Tensor]) -> Tensor:
        return self.reach * super().decode(features)


class Leading(Passing):
    def __init__(self, name: str, backbone: str = "test_resnet", **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.name = name


class Choosing(CSSFormer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"fusion_stride": 8, **kwargs})


class Fixed(CSSFormer):
    def __init__(self, num_classes: int) -> None:
        super().__init__("test_resnet", num_classes, **SMALL)


@pytest.mark.parametrize(
    ("made", "own"),
    [
        (lambda: Passing("test_resnet", 3, **SMALL), {"reach": 8.0}),
        (lambda: Passing("test_resnet", num_classes=3, reach=0.5, **SMALL), {"reach": 0.5}),
        (lambda: Choosing("test_resnet", 3, **SMALL), {"fusion_stride": 8}),
        (lambda: Leading("x", num_classes=3, reach=2.0, **SMALL), {"name": "x", "reach": 2.0}),
    ],
)
def test_a_subclass_is_saved_with_its_own_arguments(tmp_path: Path, made: Any, own: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = made().eval()
    same = {"backbone": "test_resnet", "num_classes": 3, "fusion_stride": 4, "backbone_args": {}, **SMALL, **own}
    assert same.items() <= network.hparams.items()
    network.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 64, 64)
    for source in (type(network), CSSFormer):
        loaded = source.from_pretrained(tmp_path)
        assert type(loaded) is type(network) and loaded.hparams == network.hparams
        assert torch.equal(loaded(images), network(images))
    assert pickle.loads(pickle.dumps(network)).hparams == network.hparams


def test_of_two_classes_of_one_name_the_latest_is_taken(tmp_path: Path) -> None:
    """A notebook's cell that is run again."""

    def define() -> type[CSSFormer]:
        class Again(CSSFormer): ...

        return Again

    _first, second = define(), define()
    second("test_resnet", 3, **SMALL).save_pretrained(tmp_path)
    assert type(CSSFormer.from_pretrained(tmp_path)) is second


def test_what_cannot_be_made_again_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"A Fixed cannot be saved: .* take backbone, backbone_args, mean, std too"):
        Fixed(3).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"network\.name must be a number up to 65536, a word, or a short list"):
        Leading("x" * 100, num_classes=3, **SMALL).save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())


def test_who_does_not_know_the_class_is_told(tmp_path: Path) -> None:
    Passing("test_resnet", 3, **SMALL).save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text().replace('"Passing"', '"Theirs"')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"unknown key network\.reach; leave it out, or import the class of your own"):
        CSSFormer.from_pretrained(tmp_path)
