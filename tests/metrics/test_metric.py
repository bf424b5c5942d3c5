"""Metrics fed batch by batch: against torchmetrics, against the definition, and by hand where libraries differ."""

import math

import numpy as np
import pytest
import torch

from cssformer.data import IGNORE
from cssformer.metrics import BoundaryIoU, MeanIoU
from tests.metrics.test_boundary import blobs, plain_areas
from tests.metrics.test_conventions import CASES, PAGE


def batches(classes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Predictions and truths (2, 30, 40), the truth in part 255; the last class is in neither."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(3):
        true = np.stack([blobs(rng, (30, 40), classes - 1) for _ in range(2)])
        said = np.where(rng.random(true.shape) < 0.8, true, blobs(rng, (30, 40), classes - 1))
        true[:, :4, :9] = 255
        made.append((torch.from_numpy(said), torch.from_numpy(true)))
    return made


def test_mean_iou_is_torchmetrics() -> None:
    reference = pytest.importorskip("torchmetrics.classification").MulticlassJaccardIndex(5, ignore_index=255)
    metric = MeanIoU(5)
    assert math.isnan(metric.compute())
    for said, true in batches(5):
        metric.update(said, true)
        reference.update(said, true)
    assert metric.compute() == pytest.approx(reference.compute().item(), abs=1e-6)
    metric.reset()
    metric.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.uint8))
    assert metric.compute() == 1 and metric.per_class().isnan().tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(("absent", "column"), [("skip", "ours"), ("one", "smp `iou_score`"), ("zero", "ADE20K")])
@pytest.mark.parametrize("case", CASES)
def test_conventions(case: str, absent: str, column: str) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines() if "|" in line]
    (heading,) = [row for row in rows if row[0] == "case"]
    (row,) = [row for row in rows if row[0] == case]
    metric = MeanIoU(3, absent=absent)  # type: ignore[arg-type]
    for true, said in zip(*CASES[case], strict=True):
        metric.update(torch.tensor(said)[None, None], torch.tensor(true)[None, None])
    cell = row[heading.index(column)]
    assert ("–" if math.isnan(metric.compute()) else f"{100 * metric.compute():.1f}") == cell


def test_boundary_iou_is_the_definition() -> None:
    metric, areas = BoundaryIoU(5), np.zeros((3, 5), np.int64)
    for said, true in batches(5):
        metric.update(said, true)
        for prediction, label in zip(said.numpy(), np.where(true == 255, IGNORE, true), strict=True):
            areas += plain_areas(prediction, label, 5)
    common, truth, predicted = areas
    expected = (common / np.maximum(truth + predicted - common, 1))[:4]
    assert metric.per_class()[:4].numpy() == pytest.approx(expected) and metric.per_class()[4].isnan()
    assert metric.compute() == pytest.approx(expected.mean())


def test_scores_and_mistakes() -> None:
    metric, true = MeanIoU(3), torch.tensor([[[0, 1], [2, 255]]])
    metric.update(torch.nn.functional.one_hot(true.clamp(max=2), 3).permute(0, 3, 1, 2).float(), true)
    assert metric.compute() == 1
    for said, wrong in (
        (torch.zeros(1, 2, 2, 2), "scores must be"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), "alike"),
        (torch.full((1, 2, 2), 3), "must lie in"),
    ):
        with pytest.raises(ValueError, match=wrong):
            metric.update(said, true)
