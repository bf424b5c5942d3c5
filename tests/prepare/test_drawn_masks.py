"""From masks of every kind of file to labels: the drawn ones, or a sentence."""

import shutil

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cssformer.data import IGNORE, SegmentationFolder
from cssformer.prepare.folder import prepare_folder
from cssformer.prepare.survey import TRANSPARENT
from cssformer.utils.errors import UserError
from tests.data.drawn import CONTENTS, FORMS, SUFFIX, Drawn, drawn_mask

KINDS = [(form, bits, content) for form, depths in FORMS.items() for bits in depths for content in CONTENTS]


def values_of(drawn: Drawn) -> np.ndarray:
    """Ids, packed colours, or ``TRANSPARENT``."""
    values = drawn.values if drawn.values.ndim == 2 else drawn.values @ (1 << 16, 1 << 8, 1)
    return np.where(drawn.transparent, TRANSPARENT, values)


@pytest.mark.parametrize("transparent", ["background", "ignore"])
@settings(max_examples=100, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), orientation=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_labels_are_what_was_drawn_or_refused(tmp_path, transparent, kind, orientation, seed):
    root, output = tmp_path / "in", tmp_path / "out"
    for path in (root, output):
        shutil.rmtree(path, ignore_errors=True)
    drawn = {}
    for index in range(3):
        alike, own = np.random.default_rng(seed), np.random.default_rng((seed, index))
        drawn[f"{index}"] = mask = drawn_mask(*kind, orientation, alike, own, 4)
        for part in ("images", "masks"):
            (root / part).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f"images/{index}.png"), np.full((*mask.values.shape[:2], 3), index * 60, np.uint8))
        (root / "masks" / f"{index}{SUFFIX[kind[0][0]]}").write_bytes(mask.data)
    refused = {mask.refused for mask in drawn.values()}
    try:
        prepare_folder([root], output, transparent=transparent)
    except UserError as error:
        # Values can also be no classes: all ignored, or one beside 255.
        assert refused != {False} or any(words in str(error) for words in ("ignored", "throughout", "alone")), error
        assert not refused <= {None, True} or "masks/" in str(error)
        return
    assert True not in refused
    samples = [sample for split in ("train", "val") for sample in SegmentationFolder(output, split)]
    found: dict[int, set[int]] = {}
    for sample in samples:
        values = values_of(drawn[sample.name])
        for value in np.unique(values):
            found.setdefault(int(value), set()).update(np.unique(sample.label[values == value]).tolist())
    assert all(len(classes) == 1 for classes in found.values()), found
    known = [classes for value, (classes,) in found.items() if classes != IGNORE]
    assert len(known) == len(set(known)), found
    ignored = {value for value, (classes,) in found.items() if classes == IGNORE}
    assert ignored <= {255, 65535, *([TRANSPARENT] if transparent == "ignore" else [])}
    assert transparent == "ignore" or found.get(TRANSPARENT, {0}) == {0}
