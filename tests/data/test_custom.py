"""A user's own augmentation, called as albumentations' Compose is."""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cssformer.data import IGNORE, DatasetInfo, Sample
from cssformer.data.custom import CustomAugment
from cssformer.data.transforms import Augment
from cssformer.utils.errors import UserError

INFO = DatasetInfo(("road", "tree", "sky"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
SAMPLE = Sample("x", np.arange(60, dtype=np.uint8).reshape(4, 5, 3), np.array([[0, 1, 2, 0, IGNORE]] * 4, np.int32))


def mirrored(image: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    assert image.dtype == mask.dtype == np.uint8 and mask[0].tolist() == [0, 1, 2, 0, 255]
    return {"image": image[:, ::-1], "mask": mask[:, ::-1]}


def shaken(image: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    return {"image": image + np.uint8(random.randrange(90)) + np.random.randint(90, dtype=np.uint8), "mask": mask}


class Composed:
    """Has random numbers of its own."""

    def set_random_seed(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        return {"image": image + self.rng.integers(190, dtype=np.uint8), "mask": mask}


def custom(augment: Any, info: DatasetInfo = INFO) -> CustomAugment:
    return CustomAugment("mine.augment", augment, info)


def test_it_takes_and_gives_pictures_and_masks() -> None:
    before = SAMPLE.image.copy(), SAMPLE.label.copy()
    _, image, label = custom(mirrored)(SAMPLE, np.random.default_rng(0))
    assert np.array_equal(image, SAMPLE.image[:, ::-1]) and label is not None
    assert label.dtype == np.int32 and label[0].tolist() == [IGNORE, 0, 2, 1, 0]
    assert np.array_equal(SAMPLE.image, before[0]) and np.array_equal(SAMPLE.label, before[1])
    augment = Augment((4, 5), (1, 1), cat_max_ratio=1, flip=0, photometric=False, custom=custom(mirrored))
    assert np.array_equal(augment(SAMPLE, np.random.default_rng(0)).image, image)


@pytest.mark.parametrize("augment", [shaken, Composed()])
def test_the_same_sample_the_same_numbers(augment: Any) -> None:
    random.seed(5)
    np.random.seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist()
    images = [custom(augment)(SAMPLE, np.random.default_rng(seed)).image for seed in (1, 2, 1)]
    assert np.array_equal(images[0], images[2]) and not np.array_equal(images[0], images[1])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


def test_many_classes_have_16_bits() -> None:
    info = DatasetInfo(("x",) * 300, ((0, 0, 0),) * 300, ignore=65535)

    def same(image: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        assert mask.dtype == np.uint16 and mask.max() == 65535
        return {"image": image, "mask": mask}

    label = custom(same, info)(SAMPLE, np.random.default_rng(0)).label
    assert np.array_equal(label, SAMPLE.label)


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (lambda image, mask: (image, mask), "must give a dictionary with image and mask"),
        (lambda image, mask: {"image": image}, "must give a dictionary with image and mask"),
        (lambda image, mask: {"image": image / 255, "mask": mask}, r"image float64 \(4, 5, 3\)"),
        (lambda image, mask: {"image": image[1:], "mask": mask[1:]}, r"must be uint8 \(4, 5, 3\) and \(4, 5\)"),
        (lambda image, mask: {"image": image, "mask": mask // 2 + 3}, "mask with 3; the ids are 0 to 2"),
        (lambda image, mask: {"image": image, "mask": mask / 2}, "mask with 0.5; the ids"),
        (lambda image, mask: {"image": image, "mask": np.full((4, 5), None)}, "mask of object; it must hold numbers"),
        (lambda image, mask: {"image": [[1, 2], [3]], "mask": mask}, "must give a dictionary with image and mask"),
        (lambda image, mask: [][0], r"fails in .*test_custom\.py, line \d+: IndexError: list index out of range"),
        (lambda: {}, "fails in .*custom.py, line .* unexpected keyword argument 'image'"),
        (sys.exit, "fails in .*custom.py, line"),
        (lambda image, mask: sys.exit(3), r"fails in .*test_custom\.py, line \d+: SystemExit: 3"),
    ],
)
def test_what_it_may_not_give_is_told(result: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        custom(result)(SAMPLE, np.random.default_rng(0))


@pytest.mark.parametrize("line", ["raise RuntimeError('odd')", "def (", "raise SystemExit(3)"])
def test_a_module_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    (tmp_path / "breaks_at_import.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="cannot be imported: (RuntimeError: odd|SyntaxError: .*|SystemExit: 3); give"):
        CustomAugment.load("breaks_at_import.augment", INFO)


def test_it_is_imported_by_its_path() -> None:
    assert CustomAugment.load("os.path.join", INFO).path == "os.path.join"
    for path in ("augment", "no_such_package.augment", "os.no_such_function", "..augment"):
        with pytest.raises(UserError, match=f"augment.custom {path} cannot be imported.*mypackage.augment"):
            CustomAugment.load(path, INFO)
    with pytest.raises(UserError, match="is no function"):
        CustomAugment.load("os.sep", INFO)
