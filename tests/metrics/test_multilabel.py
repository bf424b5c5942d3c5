"""Scores of several classes a pixel: of each class against its absence, as torchmetrics has them."""

import csv
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cssformer.data import IGNORE, DatasetInfo, Sample
from cssformer.metrics import ConfusionMatrix, write_report
from cssformer.metrics.scoring import Evaluation, Scorer

CLASSES = 3
INFO = DatasetInfo(("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)), 65535, multilabel=True)
ONE_OF_TWO = DatasetInfo(("absent", "present"), ((0, 0, 0), (255, 255, 255)))


def fields(seed: int, count: int = 2, ignored: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and truth, bit fields in blocks (count, 24, 30)."""
    rng = np.random.default_rng(seed)
    said, true = (
        np.kron(rng.integers(0, 1 << CLASSES, (count, 8, 10)), np.ones((1, 3, 3), int)).astype(np.int32) for _ in "ab"
    )
    true[rng.random(true.shape) < ignored] = IGNORE
    return np.where(rng.random(true.shape) < 0.5, said, np.maximum(true, 0)), true


def scored(said: np.ndarray, true: np.ndarray, info: DatasetInfo = INFO) -> Evaluation:
    scorer = Scorer(info, regions=True)
    for number, (one, other) in enumerate(zip(said, true, strict=True)):
        scorer.add(str(number), scorer.count(one.astype(np.int32), other.astype(np.int32)))
    return scorer.result()


def plane(field: np.ndarray, index: int) -> np.ndarray:
    return np.where(field == IGNORE, IGNORE, field >> index & 1)


@settings(max_examples=15)
@given(st.integers(0, 9999), st.sampled_from([0, 0.1, 0.9]))
def test_iou_is_that_of_torchmetrics(seed: int, ignored: float) -> None:
    metrics = pytest.importorskip("torchmetrics.classification")
    said, true = fields(seed, ignored=ignored)
    peer = metrics.MultilabelJaccardIndex(CLASSES, average="none", ignore_index=-1)
    bits = torch.from_numpy(np.stack([np.where(true == IGNORE, -1, true >> k & 1) for k in range(CLASSES)], 1))
    peer.update(torch.from_numpy(np.stack([said >> k & 1 for k in range(CLASSES)], 1)), bits)
    expected = peer.compute().numpy()
    evaluation = scored(said, true)
    np.testing.assert_allclose(evaluation.scores.iou, expected, rtol=1e-6)
    matrix = ConfusionMatrix(CLASSES, multilabel=True)
    matrix.update(torch.from_numpy(said), torch.from_numpy(true))
    np.testing.assert_allclose(matrix.scores().iou, expected, rtol=1e-6)
    right = [(said >> k & 1 == true >> k & 1)[true != IGNORE] for k in range(CLASSES)]
    assert evaluation.scores.pixel_accuracy == pytest.approx(np.mean(right)) == matrix.scores().pixel_accuracy
    dice = metrics.MultilabelF1Score(CLASSES, average="none", ignore_index=-1)
    dice.update(torch.from_numpy(np.stack([said >> k & 1 for k in range(CLASSES)], 1)), bits)
    np.testing.assert_allclose(evaluation.scores.dice, dice.compute(), rtol=1e-6)


def test_each_class_scores_as_alone() -> None:
    said, true = fields(3)
    said[0, 5:9, 5:9] = IGNORE
    found = scored(said, true)
    for index in range(CLASSES):
        alone = scored(plane(said, index), plane(true, index), ONE_OF_TWO)
        assert found.scores.iou[index] == alone.scores.iou[1]
        assert found.scores.accuracy[index] == alone.scores.accuracy[1]
        assert found.boundary_iou[index] == alone.boundary_iou[1]
        assert found.regions is not None and alone.regions is not None
        np.testing.assert_array_equal(found.regions[:, index], alone.regions[:, 1])
        for width, scores in found.trimap.items():
            assert scores.iou[index] == alone.trimap[width].iou[1]
    low, high = found.interval
    assert low <= found.scores.miou <= high
    assert found.picture_miou[0] == pytest.approx(scored(said[:1], true[:1]).scores.miou)


def test_a_class_that_is_never_there_nor_predicted_does_not_count() -> None:
    field = np.full((1, 8, 8), 1, np.int32)
    scores = scored(field, field).scores
    assert scores.miou == 1 and np.isnan(scores.iou[1:]).all()
    assert np.isnan(scored(np.zeros_like(field), np.zeros_like(field)).scores.miou)


def test_values_beyond_the_bits_are_refused() -> None:
    field = np.full((8, 8), 1 << CLASSES, np.int32)
    for pair in ((field, field * 0), (field * 0, field)):
        with pytest.raises(ValueError, match=r"must lie in \[0, 8\)"):
            Scorer(INFO).count(*pair)


class Pictures:
    """The truth as a data set."""

    info = INFO

    def __init__(self, true: np.ndarray) -> None:
        self.true = true

    def __len__(self) -> int:
        return len(self.true)

    def __getitem__(self, index: int) -> Sample:
        return Sample(str(index), np.full((*self.true[index].shape, 3), 90, np.uint8), self.true[index])


def test_the_report_has_no_confusion_matrix(tmp_path) -> None:
    said, true = fields(4)
    scorer = Scorer(INFO)
    for number, pair in enumerate(zip(said, true, strict=True)):
        scorer.add(str(number), scorer.count(*pair))
    write_report(scorer.result(examples=dict(enumerate(said))), Pictures(true), tmp_path)
    tables = {"classes.csv", "pictures.csv"}
    assert {path.name for path in tmp_path.iterdir()} == {*tables, "pictures.png", "scores.json", "worst.png"}
    told = json.loads((tmp_path / "scores.json").read_text())
    with (tmp_path / "classes.csv").open() as file:
        table = {row["class"]: float(row["dice"]) for row in csv.DictReader(file)}
    assert table["b"] == pytest.approx(told["classes"]["b"]["dice"], abs=1e-6)
    assert told["classes"]["b"]["iou"] == pytest.approx(scorer.result().scores.iou[1])
