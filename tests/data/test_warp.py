"""Rotation, shear and perspective: picture and label stay together to the pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cssformer.data import IGNORE, Sample
from cssformer.data.corruptions import MEAN_COLOUR
from cssformer.data.transforms import Augment
from cssformer.data.warp import draw_warp

HEIGHT, WIDTH = 150, 240
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
# Picture and label both tell where each pixel comes from.
PICTURE = Sample(
    "x",
    np.stack([COLUMNS, ROWS, COLUMNS * 0], -1).astype(np.uint8),
    (COLUMNS + WIDTH * ROWS).astype(np.int32),
)
WARPS = {"rotate": {"rotate": 180}, "shear": {"shear": 40}, "perspective": {"perspective": 0.2}}
WARPS["all"] = {name: value for warp in WARPS.values() for name, value in warp.items()}


@pytest.mark.parametrize("warp", WARPS)
@settings(max_examples=12)
@given(st.integers(0, 999), st.sampled_from([0.5, 0.8, 1.0, 1.7]), st.sampled_from([(96, 80), (200, 64), (40, 300)]))
def test_picture_and_label_come_from_the_same_place(warp: str, seed: int, factor: float, crop: tuple[int, int]) -> None:
    augment = Augment(crop, (factor, factor), cat_max_ratio=1, photometric=False, **WARPS[warp])
    _, image, label = augment(PICTURE, np.random.default_rng(seed))
    assert image.shape == (*crop, 3) and label is not None and label.shape == crop and label.dtype == np.int32
    seen = label != IGNORE
    assert (image[~seen] == MEAN_COLOUR).all()
    source = np.stack([label % WIDTH, label // WIDTH], -1)
    # The label is of the nearest pixel, half a pixel away at most, and both are rounded.
    assert np.abs(image[..., :2].astype(int) - source)[seen].max(initial=0) <= 1


def test_nothing_moved_is_the_picture_itself() -> None:
    assert PICTURE.label is not None
    window = np.s_[10:106, 20:100]
    warp = draw_warp(window, (96, 80), (96, 80), 0, 0, 0, np.random.default_rng(0))
    box = warp.box(PICTURE.image.shape)
    assert np.array_equal(warp.image(PICTURE.image[box], box), PICTURE.image[window])
    assert np.array_equal(warp.label(PICTURE.label), PICTURE.label[window])
    assert not warp.outside(PICTURE.label.shape).any()


def test_a_turn_of_90_degrees_is_numpys() -> None:
    class Quarter(np.random.Generator):
        def uniform(self, low: float, high: float, size: object = None) -> object:
            return 90.0 if high == 180 else 0.0 if size is None else np.zeros(size)  # type: ignore[call-overload]

    rng, window = Quarter(np.random.PCG64(0)), np.s_[20:100, 30:110]
    warp = draw_warp(window, (80, 80), (80, 80), 180, 0, 0, rng)
    assert PICTURE.label is not None
    assert np.array_equal(warp.label(PICTURE.label), np.rot90(PICTURE.label[window]))
    box = warp.box(PICTURE.image.shape)
    assert np.array_equal(warp.image(PICTURE.image[box], box), np.rot90(PICTURE.image[window]))


def test_what_is_small_is_resized_before_it_is_turned() -> None:
    """Stripes of two pixels at a quarter of the size are grey; looked at between neighbours they stay stripes."""
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::4] = stripes[:, 1::4] = 255
    augment = Augment((64, 64), (0.25, 0.25), cat_max_ratio=1, photometric=False, rotate=30)
    for seed in range(3):
        _, image, label = augment(Sample("x", stripes, np.zeros((400, 400), np.int32)), np.random.default_rng(seed))
        assert label is not None and image[label == 0].std() < 12
