"""Pictures of any number of channels: what is read, what is measured, what is shown."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cssformer.data.channels import Channels, from_bands, merged, moments, rgb_view, without_data
from cssformer.utils.errors import UserError


@given(st.integers(0, 2**32 - 1), st.sampled_from(["uint8", "int16", "uint16", "uint32", "float32", "float64"]))
def test_moments_of_parts_together_are_those_of_numpy(seed, values):
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, 100, (3, *rng.integers(1, 9, 2))).astype(values) for _ in range(rng.integers(1, 4))]
    nodata = (7, None, 50)
    found = merged([moments(part, without_data(part, nodata)) for part in parts])
    for index, value in enumerate(nodata):
        every = np.concatenate([part[index].ravel() for part in parts]).astype(float)
        kept = every[every != value]
        assert found.number[index] == kept.size
        if kept.size:
            own = kept.mean(), kept.std(), kept.min(), kept.max()
            assert np.allclose([each[index] for each in (found.mean, found.std, found.low, found.high)], own)


def test_values_beyond_float32_are_no_data() -> None:
    bands = np.array([[[1.0, -1.7e308, np.nan, 3e38]]])
    found = without_data(bands)
    assert found is not None and found.tolist() == [[[False, True, True, False]]]


def test_values_without_data_become_the_mean():
    channels = Channels("float32", (1.5, -2.0), (1.0, 1.0))
    bands = np.array([[[0, -9999, np.nan]], [[3, 4, -9999]]], np.float32)
    pixels, missing = from_bands(bands, channels, (-9999, -9999))
    assert np.array_equal(pixels, np.array([[[0, 3], [1.5, 4], [1.5, -2]]], np.float32))
    assert np.array_equal(missing, [[False, False, True]])
    assert from_bands(bands[:, :, :1], channels).missing is None
    with pytest.raises(
        UserError, match=r"^The array has 2 channels of float64, but 2 channels of float32 are wanted\.$"
    ):
        from_bands(bands.astype(float), channels)


def test_bands_of_photographs_are_rgb_of_8_bits():
    bands = np.arange(4 * 2 * 3, dtype=np.uint16).reshape(4, 2, 3) * 2700
    rgb, missing = from_bands(bands, None, (0, 2700 * 6, 2700 * 12, 2700 * 18))
    assert np.array_equal(rgb, np.moveaxis(bands[:3] // 256, 0, -1)) and rgb.dtype == np.uint8
    assert np.array_equal(missing, [[1, 0, 0], [0, 0, 0]])
    assert from_bands(bands, None, (0, 0, None, None)).missing is None
    assert np.array_equal(from_bands(bands[:1], None).pixels, np.repeat(bands[0, ..., None] // 256, 3, axis=2))
    with pytest.raises(UserError, match=r"5 channels of uint8 are no grey or RGB picture"):
        from_bands(np.zeros((5, 2, 2), np.uint8), None)


def test_views_stretch_what_is_no_photograph():
    photograph = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    assert rgb_view(photograph, None) is photograph
    bands = np.random.default_rng(1).normal((5, -300, 0, 7), (1, 100, 1e-3, 1), (40, 30, 4)).astype(np.float32)
    missing = np.zeros((40, 30), bool)
    missing[:5], bands[:5] = True, 1e9
    channels = Channels("float32", (0.0,) * 4, (1.0,) * 4)
    view = rgb_view(bands, channels, missing)
    low, high = np.percentile(bands[5:, :, :3], (2, 98), axis=(0, 1))
    assert np.abs(view[5:] - ((bands[5:, :, :3] - low) / (high - low) * 255).clip(0, 255)).max() <= 1.01
    fewer = replace(channels, mean=(0.0,) * 2, std=(1.0,) * 2)
    assert np.array_equal(rgb_view(bands[..., :2], fewer, missing), np.repeat(view[..., :1], 3, axis=2))


def test_the_channels_shown_can_be_chosen():
    bands = np.random.default_rng(1).normal(size=(20, 30, 5)).astype(np.float32)
    channels = Channels("float32", (0.0,) * 5, (1.0,) * 5)
    moved = rgb_view(bands[..., [4, 1, 0]], Channels("float32", (0.0,) * 3, (1.0,) * 3))
    assert np.array_equal(rgb_view(bands, replace(channels, shown=(4, 1, 0))), moved)
    assert np.array_equal(rgb_view(bands, replace(channels, shown=(4,))), np.repeat(moved[..., :1], 3, axis=2))
    stored = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    told = Channels("uint8", (0.0,) * 3, (1.0,) * 3, (2, 1, 0))
    assert np.array_equal(rgb_view(stored, told), stored[..., ::-1])
    assert Channels.read(yaml.safe_load("\n".join(told.lines()))["channels"]) == told
    for shown in ([0, 1], [0, 1, 3], [-1], ["0"], [True], "012"):
        with pytest.raises(ValueError, match="channels shown must be three, or one, of 0 to 2"):
            Channels.read({"values": "uint8", "mean": [0] * 3, "std": [1] * 3, "shown": shown})
