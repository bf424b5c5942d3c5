"""Classes are counted, and drawn the more often the rarer they are."""

from pathlib import Path

import numpy as np
import pytest

from cssformer.data import Sample, SegmentationFolder, SyntheticScenes
from cssformer.data.check import check
from cssformer.data.class_pixels import class_pixels, verify_labels
from cssformer.data.rare_classes import RareClasses
from cssformer.data.stream import TrainingStream
from cssformer.data.transforms import Augment

PIXELS = np.array([[900, 0, 0, 0], [800, 100, 0, 0], [890, 0, 10, 0], [880, 20, 0, 0]])


def test_counts_are_those_of_check(prepared: Path) -> None:
    pixels = class_pixels(SegmentationFolder(prepared))
    np.testing.assert_array_equal(verify_labels(prepared)["train"], pixels)
    report = check(prepared)
    assert pixels.shape == (4, 3) and (pixels.sum(axis=1) == 48 * 60).all()
    np.testing.assert_allclose(pixels.sum(axis=0) / pixels.sum(), report.shares)
    assert [(pixels[:, index] > 0).sum() for index in range(3)] == [each["train"] for each in report.present]
    scenes = SyntheticScenes(3, (32, 32))
    label = scenes[1].label
    assert label is not None
    assert class_pixels(scenes)[1].tolist() == [
        int((label == index).sum()) for index in range(len(scenes.info.classes))
    ]


def test_classes_are_drawn_by_inverse_frequency() -> None:
    rare, rng = RareClasses(PIXELS), np.random.default_rng(0)
    inverse = np.array([3600 / 3470, 3600 / 120, 3600 / 10, 0])
    np.testing.assert_allclose(rare.chances, inverse / inverse.sum())
    drawn = [rare.draw(rng) for _ in range(4000)]
    shares = np.bincount([index for _, index in drawn], minlength=4) / 4000
    np.testing.assert_allclose(shares, rare.chances, atol=0.03)
    assert all(PIXELS[picture, index] for picture, index in drawn)
    assert {picture for picture, index in drawn if index == 1} == {1, 3}
    # What hardly occurs is as if it had a thousandth.
    chances = RareClasses(np.array([[10**6, 10**5, 1]])).chances
    assert chances[2] / chances[1] == pytest.approx(1000 / 11, rel=1e-3)


def test_a_crop_holds_the_class_that_it_is_drawn_for() -> None:
    label = np.zeros((200, 300), np.int32)
    label[170, 290] = label[3, 1] = label[100:104, 150:154] = 1
    sample = Sample("x", np.zeros((200, 300, 3), np.uint8), label)
    places = set()
    for seed in range(60):
        augment = Augment((48, 64), (1, 1), cat_max_ratio=1, photometric=False)
        held = augment(sample, np.random.default_rng(seed), held=1).label
        assert held is not None and 1 in held and held.shape == (48, 64)
        places |= {tuple(place) for place in np.argwhere(held == 1)}
    # Anywhere in the crop, not in its middle alone.
    assert len(places) > 50
    turned = Augment((48, 64), (1, 1), cat_max_ratio=1, photometric=False, rotate=180)
    assert all(1 in turned(sample, np.random.default_rng(seed), held=1).label for seed in range(30))


def stream(**augment: float) -> TrainingStream:
    scenes = SyntheticScenes(6, (64, 64))
    rare = RareClasses(class_pixels(scenes))
    return TrainingStream(scenes, Augment((24, 24), (1, 1), photometric=False, **augment), 3, 40, rare)


def test_the_stream_gives_more_of_the_rare_classes() -> None:
    counts = class_pixels(SyntheticScenes(6, (64, 64))).sum(axis=0)
    rarest = int(np.argmin(np.where(counts > 0, counts, counts.max())))

    def share(**augment: float) -> float:
        items = stream(**augment)
        return float(np.mean([(items[index]["label"] == rarest).any() for index in range(40)]))

    assert share(rare_class_crops=1.0) > share() + 0.1
    assert share(paste=1.0) > share() + 0.1


@pytest.mark.parametrize("augment", [{"rare_class_crops": 0.5}, {"paste": 0.5}, {"cutmix": 0.5}])
def test_an_item_depends_on_seed_and_place_alone(augment: dict[str, float]) -> None:
    one, other, plain = stream(**augment), stream(**augment), stream()
    for index in range(12):
        one[index]
    differ = 0
    for index in (11, 3, 7, 8, 20, 31):
        assert all((one[index][key] == other[index][key]).all() for key in ("image", "label"))
        differ += not (one[index]["image"] == plain[index]["image"]).all()
    assert 0 < differ < 6
