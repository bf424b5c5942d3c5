"""Draws of classes that have few pixels."""

import numpy as np
from numpy.typing import NDArray

from cssformer.data.multilabel import with_class


class RareClasses:
    """Draws classes by inverse frequency, each with a picture that holds it.

    A class with less than a thousandth of the pixels is drawn as if it had so many: a class in one picture alone would
    else be nearly all that is drawn.

    Args:
        pixels: of :func:`cssformer.data.class_pixels.class_pixels`.

    Attributes:
        chances: how often each class is drawn, (C,).
    """

    def __init__(self, pixels: NDArray[np.int64]) -> None:
        held = with_class(pixels)
        shares = held.sum(axis=0) / held.sum()
        inverse = np.where(shares > 0, 1 / shares.clip(min=1e-3), 0)
        self.chances: NDArray[np.float64] = inverse / inverse.sum()
        self._pictures = [np.flatnonzero(column) for column in held.T]

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """The index of a picture, and a class in it."""
        index = int(rng.choice(len(self.chances), p=self.chances))
        return int(rng.choice(self._pictures[index])), index
