"""What spoils pictures does what it says, and leaves labels and the source alone."""

import cv2
import numpy as np
import pytest

from cssformer.data import IGNORE, Sample, corruptions
from cssformer.data.corruptions import MEAN_COLOUR
from cssformer.data.mixing import cutmix, paste
from cssformer.data.transforms import Augment

IMAGE = cv2.resize(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8), (90, 70)) // 2
IMAGE += np.random.default_rng(1).integers(30, dtype=np.uint8, size=IMAGE.shape)
LABEL = np.random.default_rng(1).integers(0, 3, (70, 90)).astype(np.int32)


@pytest.mark.parametrize("name", ["grey", "blur", "noise", "jpeg"])
def test_pixels_change_and_labels_stay(name: str) -> None:
    plain = {"crop": (70, 90), "scale": (1, 1), "cat_max_ratio": 1, "flip": 0, "photometric": False}
    source = IMAGE.copy()
    for chance in (0.0, 1.0):
        augment = Augment(**plain, **{name: chance})
        _, image, label = augment(Sample("x", IMAGE, LABEL), np.random.default_rng(0))
        assert np.array_equal(label, LABEL) and np.array_equal(IMAGE, source)
        assert image.dtype == np.uint8 and np.array_equal(image, IMAGE) == (not chance)
    difference = np.abs(image.astype(int) - IMAGE)
    assert (np.ptp(image, axis=2) == 0).all() if name == "grey" else difference.mean() < 20
    often = Augment(**plain, **{name: 0.5})
    changed = [
        not np.array_equal(often(Sample("x", IMAGE, LABEL), np.random.default_rng(i)).image, IMAGE) for i in range(60)
    ]
    assert 15 < sum(changed) < 45


def test_noise_has_the_deviation_it_says() -> None:
    flat = np.full((64, 64, 3), 128, np.uint8)
    deviations = [corruptions.noise(flat, np.random.default_rng(seed)).std() for seed in range(40)]
    assert 1.9 < min(deviations) < 6 and 16 < max(deviations) < 20.5
    assert corruptions.noise(flat * 0, np.random.default_rng(0)).max() < 110


def test_what_is_erased_is_ignored() -> None:
    shares = []
    for seed in range(50):
        _, image, label = corruptions.erase(Sample("x", IMAGE, LABEL), np.random.default_rng(seed))
        assert label is not None
        gone = label == IGNORE
        rows, columns = np.nonzero(gone)
        assert gone[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        assert (image[gone] == MEAN_COLOUR).all()
        assert np.array_equal(image[~gone], IMAGE[~gone]) and np.array_equal(label[~gone], LABEL[~gone])
        shares.append(gone.mean())
    assert 0.015 < min(shares) < 0.05 and 0.15 < max(shares) < 0.21


def test_what_comes_from_another_picture_brings_its_labels() -> None:
    sample = Sample("x", np.repeat(LABEL[..., None], 3, 2).astype(np.uint8), LABEL)
    other = Sample("y", sample.image + 10, LABEL[::-1] + 10)
    other.image[:] = other.label[..., None]
    for seed in range(20):
        mixed = cutmix(sample, other, np.random.default_rng(seed))
        assert np.array_equal(mixed.image[..., 0], mixed.label) and 0.09 < (mixed.label >= 10).mean() < 0.51
    pasted = paste(sample, other, 11)
    assert np.array_equal(pasted.image[..., 0], pasted.label)
    assert np.array_equal(pasted.label == 11, other.label == 11)
    assert np.array_equal(pasted.label[other.label != 11], LABEL[other.label != 11])
    assert pasted.image.dtype == np.uint8 and pasted.label.dtype == np.int32
