"""Confusion matrix and scores against torchmetrics, a plain numpy definition and hand-computed cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex

from cssformer.data import IGNORE
from cssformer.metrics.confusion import ConfusionMatrix, Scores, confusion


def mean_iou(prediction: np.ndarray, label: np.ndarray, classes: int) -> float:
    """The definition: per class, common pixels over pixels of either, among those that are not ignored."""
    prediction, label = prediction[label != IGNORE], label[label != IGNORE]
    ious = []
    for index in range(classes):
        either = np.sum((prediction == index) | (label == index))
        if either:
            ious.append(np.sum((prediction == index) & (label == index)) / either)
    return float(np.mean(ious)) if ious else math.nan


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Predictions and labels of a few small pictures in which some classes are rare or absent."""
    classes = draw(st.integers(2, 12))
    in_prediction, in_label = draw(st.integers(1, classes)), draw(st.integers(1, classes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    prediction = torch.randint(in_prediction, shape, generator=generator)
    label = torch.randint(in_label, shape, generator=generator)
    label[torch.rand(shape, generator=generator) < draw(st.floats(0, 1))] = IGNORE
    return prediction, label, classes


@settings(deadline=None)
@given(batches())
def test_mean_iou_is_the_definition_and_torchmetrics(batch: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    prediction, label, classes = batch
    matrix = ConfusionMatrix(classes)
    for one_prediction, one_label in zip(prediction, label, strict=True):
        matrix.update(one_prediction[None], one_label[None])
    ours = matrix.scores().miou
    assert ours == pytest.approx(mean_iou(prediction.numpy(), label.numpy(), classes), nan_ok=True)
    if (label != IGNORE).any():
        theirs = MulticlassJaccardIndex(classes, average="macro", ignore_index=IGNORE)(prediction, label)
        assert ours == pytest.approx(theirs.item(), abs=1e-6)


def test_mean_iou_of_a_smooth_prediction_equals_torchmetrics() -> None:
    """Large regions, a prediction that errs at their borders, an ignored band, classes that never occur."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.nn.functional.interpolate(
        torch.randn(2, 15, 7, 9, generator=generator), size=(130, 170), mode="bicubic"
    )
    label = scores.argmax(1)
    prediction = scores.roll((3, 5), (2, 3)).argmax(1)
    label[:, 60:70] = IGNORE
    matrix = ConfusionMatrix(19)
    matrix.update(prediction.to(torch.int32), label)
    theirs = MulticlassJaccardIndex(19, average="macro", ignore_index=IGNORE)(prediction, label).item()
    assert matrix.scores().miou == pytest.approx(theirs, abs=1e-6)
    assert matrix.scores().miou == pytest.approx(mean_iou(prediction.numpy(), label.numpy(), 19))


def test_scores_by_hand() -> None:
    """Four classes: 0 and 1 confused, 2 predicted but never true, 3 in neither."""
    matrix = np.array([[6, 2, 0, 0], [1, 5, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    scores = Scores.from_matrix(matrix)
    assert scores.iou[:3] == pytest.approx((6 / 9, 5 / 10, 0.0))
    assert math.isnan(scores.iou[3])
    assert scores.miou == pytest.approx((6 / 9 + 5 / 10) / 3)
    assert scores.accuracy[:2] == pytest.approx((6 / 8, 5 / 8))
    assert scores.mean_accuracy == pytest.approx((6 / 8 + 5 / 8) / 2)
    assert scores.pixel_accuracy == pytest.approx(11 / 16)
    assert scores.frequency_weighted_iou == pytest.approx(0.5 * 6 / 9 + 0.5 * 5 / 10)
    assert scores.pixels == (8, 8, 0, 0)
    assert scores.iou[:3] == (6 / 9, 0.5, 0.0) and math.isnan(scores.iou[3])
    assert scores.table(["a", "b", "c", "d"])[2:] == [("c", "0.00", "0.00", "–", "0.00"), ("d", "–", "–", "–", "0.00")]


def test_nothing_scored_gives_nan() -> None:
    scores = ConfusionMatrix(3).scores()
    assert all(math.isnan(value) for value in (scores.miou, scores.mean_accuracy, scores.pixel_accuracy))


def test_reduce_repeats() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
    assert matrix.reduce().tolist() == matrix.reduce().tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("prediction", "label"), [([0, 1], [0, 2]), ([0, 1], [-1, 0]), ([0, 255], [0, 1]), ([-1, 0], [0, 1])]
)
def test_class_out_of_range(prediction: list[int], label: list[int]) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 2\)"):
        confusion(torch.tensor(prediction), torch.tensor(label), 2)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        confusion(torch.zeros(1, 2, 3, dtype=torch.int64), torch.zeros(1, 3, 2, dtype=torch.int64), 2)


def _count_one_pixel(rank: int, rendezvous: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([[[rank]]]), torch.tensor([[[0]]]))
    assert matrix.reduce().tolist() == [[1, 1], [0, 0]]
    assert matrix.reduce().tolist() == [[1, 1], [0, 0]]
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_reduce_adds_the_processes(tmp_path: object) -> None:
    torch.multiprocessing.start_processes(
        _count_one_pixel, args=(f"{tmp_path}/rendezvous",), nprocs=2, start_method="fork"
    )
