"""The recipe for who names none: one of the package's own, by the data and the machine."""

from collections.abc import Set
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from cssformer.data import SegmentationFolder
from cssformer.data.class_pixels import class_pixels, class_shares
from cssformer.data.image_io import read_size
from cssformer.training.recipe import ModelConfig
from cssformer.utils.device import best_device
from cssformer.utils.options import PRESETS, written
from cssformer.weights.family import FAMILY, decoder_of
from cssformer.weights.hub import load

SMALL, LARGE = 192, 2000
"""Up to the first longer side, in pixels, the demonstration's crops of 128x128 show most of a picture; from the second
on a picture that is resized to a shorter side of 512 loses much."""
FEW, RARE = 100, 0.005
"""Fewer pictures are few; a class with a smaller share of the labelled pixels is rare."""
SOONER = "In minutes instead of hours: --model.init animals --training.steps 100 begins with the bundled network."
"""What to do on a CPU, where the recipe's own steps take long and its first weights are downloaded."""


@dataclass(frozen=True)
class DataFacts:
    """What a recipe is chosen by.

    Attributes:
        pictures: of the training split.
        width, height: their median in pixels.
        classes: how many there are.
        rarest: the class with the least share of the labelled pixels, of those that have any, and the share.
    """

    pictures: int
    width: int
    height: int
    classes: int
    rarest: tuple[str, float] | None

    @classmethod
    def of(cls, folder: Path) -> "DataFacts":
        """By all training labels of a prepared folder and the headers of their pictures.

        Raises:
            UserError: it is none, or one of them cannot be read.
        """
        data = SegmentationFolder(folder, "train")
        sizes = [read_size(path) for path in data.images.values()]
        width, height = (round(median(sides)) for sides in zip(*sizes, strict=True))
        shares = class_shares(class_pixels(data))
        return cls(len(data), width, height, len(shares), _rarest(data.info.classes, shares))

    def __str__(self) -> str:
        rarest = f", the rarest, {self.rarest[0]}, with {self.rarest[1]:.2%} of the pixels" if self.rarest else ""
        return f"{self.pictures} pictures of about {self.width}x{self.height}, {self.classes} classes{rarest}"


def _rarest(classes: tuple[str, ...], shares: NDArray[np.float64]) -> tuple[str, float] | None:
    there = [(float(share), name) for share, name in zip(shares, classes, strict=True) if share > 0]
    return (min(there)[1], min(there)[0]) if there else None


def choose_preset(facts: DataFacts, device: str) -> tuple[str, str]:
    """The name of a preset, and what it is taken for."""
    if max(facts.width, facts.height) <= SMALL:
        return "demo", "small pictures"
    if device == "cpu":
        return "cpu", "photographs on a CPU"
    if max(facts.width, facts.height) >= LARGE:
        return "large_pictures", "large pictures"
    if facts.pictures < FEW:
        return "few_pictures", f"fewer than {FEW} pictures"
    if facts.classes == 2:
        return "binary", "one thing and the rest"
    if facts.rarest and facts.rarest[1] < RARE:
        return "rare_classes", f"a class with less than {RARE:.1%} of the pixels"
    return "photos", "photographs"


def preset_words(data: Path | None, init: str | None, sizes: Set[str] = frozenset()) -> list[str]:
    """The words that choose a preset by the data, which is told, and the network of the one to start from.

    Args:
        data: a prepared folder.
        init: the network to start from.
        sizes: of the family, asked for besides: what they say of the decoder goes over that network.

    Raises:
        UserError: the data, or the network to start from, cannot be read.
    """
    words: list[str] = []
    if data is not None:
        facts = DataFacts.of(data)
        name, reason = choose_preset(facts, best_device())
        network = "" if init is None else f", with the network of {init}"
        others = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml") if path.stem not in FAMILY))
        print(f"The data choose --config {name}, for {reason} ({facts}){network}.")
        print(f"--config {others} or FILE chooses another.")
        if name == "cpu" and init is None:
            print(SOONER)
        words += ["--config", name]
    if init is not None:
        saved = load(init)[0]["network"]
        # The first weights come from there too.
        left_out = {"pretrained", "weights", "init", "in_channels", "mean", "std"}.union(*map(decoder_of, sizes))
        own = {item.name for item in fields(ModelConfig)} - left_out
        words += [f"--model.{name}={written(value)}" for name, value in saved.items() if name in own]
    return words
