"""Boundary IoU and trimaps against plain definitions: class by class, pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from cssformer.data import IGNORE
from cssformer.metrics.boundary import TRIMAP_WIDTHS, boundary_width, contour_distance, count_by_distance
from cssformer.metrics.confusion import confusion


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


def count(prediction: np.ndarray, label: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    return count_by_distance(prediction, label, classes)


@st.composite
def pictures(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """A prediction and a truth of blobs, in part ignored; in part of the predictions, too, there is none."""
    height, width, classes = draw(st.integers(1, 130)), draw(st.integers(1, 40)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    label, prediction = blobs(rng, (height, width), classes), blobs(rng, (height, width), classes)
    # Largely right, as predictions are.
    if draw(st.booleans()):
        prediction = np.roll(label, 1, axis=1)
    if draw(st.booleans()):
        prediction[: rng.integers(height), rng.integers(width) :] = IGNORE
    if draw(st.booleans()):
        label[rng.integers(height) :, : rng.integers(width)] = IGNORE
    return prediction, label, classes


@settings(deadline=None, max_examples=30)
@given(pictures())
def test_boundary_areas_are_the_definition(picture: tuple[np.ndarray, np.ndarray, int]) -> None:
    prediction, label, classes = picture
    np.testing.assert_array_equal(count(*picture)[1], plain_areas(prediction, label, classes))


@settings(deadline=None, max_examples=30)
@given(pictures())
def test_boundary_areas_are_those_of_the_published_erosion(picture: tuple[np.ndarray, np.ndarray, int]) -> None:
    """Each class's mask without what is left of it after d erosions by 3x3 pixels, outside being no class."""
    prediction, label, classes = picture
    prediction = np.where(label == IGNORE, IGNORE, prediction)
    times = max(1, round(0.02 * np.sqrt(label.shape[0] ** 2 + label.shape[1] ** 2)))

    def band(mask: np.ndarray) -> np.ndarray:
        return mask & ~binary_erosion(mask, np.ones((3, 3)), times)

    for index in range(classes):
        truth, predicted = band(label == index), band(prediction == index)
        assert count(*picture)[1][:, index].tolist() == [(truth & predicted).sum(), truth.sum(), predicted.sum()]


@settings(deadline=None, max_examples=30)
@given(pictures())
def test_trimaps_are_the_definition(picture: tuple[np.ndarray, np.ndarray, int]) -> None:
    """The pixels that have one of another label within so many rows and columns."""
    prediction, label, classes = picture
    within = count(*picture)[0].cumsum(axis=0)
    height, width = label.shape
    for place, distance in enumerate(TRIMAP_WIDTHS):
        expected = np.zeros((classes, classes + 1), np.int64)
        for y in range(height):
            for x in range(width):
                near = label[max(y - distance, 0) : y + distance + 1, max(x - distance, 0) : x + distance + 1]
                if label[y, x] != IGNORE and (near != label[y, x]).any():
                    expected[label[y, x], classes if prediction[y, x] == IGNORE else prediction[y, x]] += 1
        np.testing.assert_array_equal(within[place], expected)


@settings(deadline=None, max_examples=30)
@given(pictures())
def test_all_distances_together_are_the_confusion_matrix(picture: tuple[np.ndarray, np.ndarray, int]) -> None:
    prediction, label, classes = picture
    matrix = count(*picture)[0].sum(axis=0)
    scored = label != IGNORE
    assert matrix[:, -1].sum() == (scored & (prediction == IGNORE)).sum()
    said = scored & (prediction != IGNORE)
    expected = confusion(torch.from_numpy(prediction[said]), torch.from_numpy(label[said]), classes)
    np.testing.assert_array_equal(matrix[:, :-1], expected)


def test_distance_by_hand() -> None:
    """A 5x5 square of class 1 in a 41x41 picture; an ignored pixel has a contour, too."""
    label = np.zeros((41, 41), np.int32)
    label[10:15, 10:15] = 1
    label[30, 5] = IGNORE
    distance = contour_distance(label, label)
    assert distance[12, 8:16].tolist() == [2, 1, 1, 2, 3, 2, 1, 1]
    assert distance[9, 9] == distance[30, 5] == distance[31, 6] == 1
    assert distance[8, 20] == 6 and distance[0, 40] == 26
    # The prediction has the truth's ignored pixels.
    assert contour_distance(np.zeros((41, 41), np.int32), label)[30, 5:9].tolist() == [1, 1, 2, 3]


def test_widths_by_hand() -> None:
    assert boundary_width((1024, 2048)) == 46
    assert boundary_width((1024, 2048), 0.005) == 11
    assert boundary_width((3, 4)) == 1


def test_the_width_of_the_bands_can_be_chosen() -> None:
    label = blobs(np.random.default_rng(0), (90, 120), 3)
    for ratio, distance in ((0.01, 2), (0.04, 6)):
        _, areas = count_by_distance(label, label, 3, ratio)
        assert areas[1].tolist() == [plain_band(label == index, distance).sum() for index in range(3)]


@pytest.mark.parametrize(("prediction", "label"), [(5, 0), (-1, 0), (0, 5), (0, -1)])
def test_impossible_classes(prediction: int, label: int) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 5\)"):
        count(np.full((4, 4), prediction, np.int32), np.full((4, 4), label, np.int32), 5)
