"""From masks of every kind of file to labels: the drawn ones, or a sentence."""

import cv2
import numpy as np
import pytest

from cssformer.data import IGNORE, SegmentationFolder
from cssformer.prepare.folder import prepare_folder
from cssformer.utils.errors import UserError
from tests.data.drawn import SUFFIX, drawn_mask


def classes_of(drawn: list[np.ndarray], labels: list[np.ndarray]) -> dict[int, set[int]]:
    """The classes that each value or packed colour became."""
    found: dict[int, set[int]] = {}
    for values, label in zip(drawn, labels, strict=True):
        flat = (values if values.ndim == 2 else values @ (1 << 16, 1 << 8, 1)).ravel()
        for value in np.unique(flat):
            found.setdefault(int(value), set()).update(np.unique(label.ravel()[flat == value]).tolist())
    return found


@pytest.mark.parametrize("seed", range(10))
def test_labels_are_what_was_drawn_or_refused(tmp_path, seed):
    read = 0
    for number in range(12):
        root, drawn, may, must = tmp_path / f"in{number}", {}, False, False
        for index in range(4):
            of_kind, of_pixels = (np.random.default_rng((seed, number, of)) for of in (0, 1 + index))
            name, data, drawn[f"{index}"], maybe, surely = drawn_mask(of_kind, of_pixels, 4)
            may, must = may or maybe, must or surely
            for part in ("images", "masks"):
                (root / part).mkdir(parents=True, exist_ok=True)
            picture = of_pixels.integers(0, 256, (*drawn[f"{index}"].shape[:2], 3), dtype=np.uint8)
            cv2.imwrite(str(root / "images" / f"{index}.png"), picture)
            (root / "masks" / f"{index}{SUFFIX[name.split()[0]]}").write_bytes(data)
        output = tmp_path / f"out{number}"
        try:
            prepare_folder([root], output)
        except UserError as error:
            # Values can also be no classes: too many, or all ignored.
            assert may or must or "ignored" in str(error) or "too many" in str(error), f"{name}: {error}"
            continue
        assert not must, name
        read += 1
        samples = [sample for split in ("train", "val") for sample in SegmentationFolder(output, split)]
        found = classes_of([drawn[sample.name] for sample in samples], [sample.label for sample in samples])
        assert all(len(classes) == 1 for classes in found.values()), f"{name}: {found}"
        known = [classes for value, (classes,) in found.items() if classes != IGNORE]
        assert len(known) == len(set(known)), f"{name}: {found}"
        assert {value for value, (classes,) in found.items() if classes == IGNORE} <= {255, 65535}, name
    assert read >= 3
