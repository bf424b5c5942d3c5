"""Generated scenes: the same everywhere, of any size, and as hard as they claim to be."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cssformer.data import IGNORE, SyntheticScenes
from cssformer.utils.errors import UserError

DIGEST = """
import hashlib
from cssformer.data import SyntheticScenes
scenes = SyntheticScenes(3, (50, 70), 7)
print(hashlib.sha256(b"".join(s.image.tobytes() + s.label.tobytes() for s in scenes)).hexdigest())
"""


def test_another_process_draws_the_same():
    here = b"".join(sample.image.tobytes() + sample.label.tobytes() for sample in SyntheticScenes(3, (50, 70), 7))
    there = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True).stdout.strip()
    assert hashlib.sha256(here).hexdigest() == there


def test_a_picture_depends_on_seed_and_index_alone():
    few, many = SyntheticScenes(2, seed=3), SyntheticScenes(9, seed=3)
    assert np.array_equal(few[1].image, many[1].image) and np.array_equal(few[1].label, many[1].label)
    assert not np.array_equal(few[0].image, few[1].image)
    assert not np.array_equal(few[0].image, SyntheticScenes(2, seed=4)[0].image)
    assert np.array_equal(many[-1].image, many[8].image)
    with pytest.raises(IndexError):
        few[2]


@settings(max_examples=25, deadline=None)
@given(st.integers(32, 200), st.integers(32, 200), st.integers(0, 10**6))
def test_any_size(height, width, seed):
    scenes = SyntheticScenes(1, (height, width), seed)
    name, image, label = scenes[0]
    assert name == "scene00000" and image.shape == (height, width, 3) and image.dtype == np.uint8
    assert label.shape == (height, width) and label.dtype == np.int32
    assert set(np.unique(label)) <= {IGNORE, *range(len(scenes.info.classes))}


@pytest.fixture(scope="module")
def many() -> tuple[np.ndarray, np.ndarray]:
    """Images (80, H, W, 3) and labels (80, H, W)."""
    samples = list(SyntheticScenes(80))
    return np.stack([sample.image for sample in samples]), np.stack([sample.label for sample in samples])


def test_every_class_and_ignored_pixels_occur(many):
    _, labels = many
    shares = np.bincount(labels[labels >= 0], minlength=len(SyntheticScenes(1).info.classes)) / labels.size
    assert shares.min() > 0.002 and shares.max() < 0.3
    assert 0.005 < (labels == IGNORE).mean() < 0.1


@pytest.mark.parametrize(
    ("one", "other"),
    [("wheat", "vineyard"), ("woodland", "orchard"), ("meadow", "pasture"), ("lake", "river"), ("house", "barn")],
)
def test_confusable_classes_share_their_colours(many, one, other):
    images, labels = many
    ones, others = (
        images[labels == SyntheticScenes(1).info.classes.index(name)].astype(float) for name in (one, other)
    )
    # The typical colours differ by much less than the spread within one class.
    assert (np.abs(np.median(ones, 0) - np.median(others, 0)) < 0.5 * ones.std(0)).all()


@pytest.mark.parametrize("arguments", [(0, (64, 64)), (5, (31, 64))])
def test_impossible_scenes(arguments):
    with pytest.raises(UserError, match="SyntheticScenes need"):
        SyntheticScenes(*arguments)
