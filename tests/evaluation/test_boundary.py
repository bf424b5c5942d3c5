"""Boundary IoU against the plain definition: distances to the contour, class by class."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cssformer.data import IGNORE
from cssformer.evaluation.boundary import boundary_areas, boundary_band


def plain_band(mask: np.ndarray, distance: int) -> np.ndarray:
    """Pixels of the mask with a pixel outside it, or the picture's edge, within ``distance`` rows and columns."""
    height, width = mask.shape
    band = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            top, left = y - distance, x - distance
            bottom, right = y + distance + 1, x + distance + 1
            inside = top >= 0 and left >= 0 and bottom <= height and right <= width
            window = mask[max(top, 0) : bottom, max(left, 0) : right]
            band[y, x] = mask[y, x] and not (inside and window.all())
    return band


def plain_areas(prediction: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    distance = max(1, round(0.02 * math.hypot(*label.shape)))
    prediction = np.where(label == IGNORE, IGNORE, prediction)
    areas = []
    for index in range(classes):
        truth, predicted = plain_band(label == index, distance), plain_band(prediction == index, distance)
        areas.append([(truth & predicted).sum(), truth.sum(), predicted.sum()])
    return np.array(areas).T


def blobs(rng: np.random.Generator, size: tuple[int, int], classes: int) -> np.ndarray:
    cells = rng.integers(classes, size=(-(-size[0] // 7), -(-size[1] // 7)))
    return np.kron(cells, np.ones((7, 7), np.int32))[: size[0], : size[1]].astype(np.int32)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(3, 130), st.integers(3, 40), st.integers(1, 5), st.booleans())
def test_areas_are_the_definition(seed: int, height: int, width: int, classes: int, ignored: bool) -> None:
    rng = np.random.default_rng(seed)
    label, prediction = blobs(rng, (height, width), classes), blobs(rng, (height, width), classes)
    # Largely right, as predictions are.
    right = rng.random() < 0.5
    if right:
        prediction = np.roll(label, 1, axis=1)
    if ignored:
        label[rng.integers(height) :, : rng.integers(width)] = IGNORE
    ours = boundary_areas(prediction, label, boundary_band(label), classes)
    np.testing.assert_array_equal(ours, plain_areas(prediction, label, classes))


def test_band_by_hand() -> None:
    """A 5x5 square of class 1 in a 41x41 picture, whose band is one pixel wide."""
    label = np.zeros((41, 41), np.int32)
    label[10:15, 10:15] = 1
    band = boundary_band(label)
    assert band[10:15, 10:15].sum() == 25 - 9
    assert band[9:16, 9:16].sum() == 49 - 9
    assert band[0].all() and band[:, 40].all()
    assert not band[20:30, 20:30].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_any_integer_type(dtype: type) -> None:
    label = blobs(np.random.default_rng(0), (30, 30), 4)
    np.testing.assert_array_equal(boundary_band(label.astype(dtype)), boundary_band(label))
