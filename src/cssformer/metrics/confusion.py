"""The confusion matrix of a whole data set and the scores of the field that follow from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cssformer.data import IGNORE
from cssformer.data.multilabel import presence


def confusion(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Count the pairs (true class, predicted class) of all pixels whose label is not ``IGNORE``.

    Args:
        prediction: class indices, any shape, any integer type.
        label: the truth, same shape; ``IGNORE`` where there is none.
        num_classes: C.

    Returns:
        (C, C) int64 on the label's device; rows are the truth, columns the prediction.

    Raises:
        ValueError: shapes differ, or a class index lies outside [0, C).
    """
    if prediction.shape != label.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape.")
    truth, predicted = label.flatten().int(), prediction.flatten().to(label.device).int()
    known = (truth >= 0) & (truth < num_classes) & (predicted >= 0) & (predicted < num_classes)
    # Two more cells, for ignored and for impossible pixels, save passes over the picture.
    cells = num_classes**2
    pair = torch.where(known, truth * num_classes + predicted, cells + 1)
    pair.masked_fill_(truth == IGNORE, cells)
    counts = torch.bincount(pair, minlength=cells + 2)
    if counts[-1]:
        scored = label[label != IGNORE]
        raise ValueError(
            f"Class indices must lie in [0, {num_classes}): labels reach from {scored.min().item()} to "
            f"{scored.max().item()}, predictions from {prediction.min().item()} to {prediction.max().item()}."
        )
    return counts[:cells].view(num_classes, num_classes)


def multilabel_confusion(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """:func:`confusion` of bit fields, of each class against its absence: (C, 2, 2), absent before present."""
    classes = range(num_classes)
    return torch.stack([confusion(presence(prediction, index), presence(label, index), 2) for index in classes])


class ConfusionMatrix:
    """A confusion matrix that lives on the device of the predictions and grows batch by batch.

    It is no module: weight averaging swaps a module's buffers, and this is none of the weights.

    Attributes:
        matrix: (C, C) int64, pixels of this process; rows are the truth, columns the prediction. Multi-label (C, 2, 2),
            see :func:`multilabel_confusion`.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu", multilabel: bool = False) -> None:
        self.num_classes, self.count = num_classes, multilabel_confusion if multilabel else confusion
        shape = (num_classes, 2, 2) if multilabel else (num_classes, num_classes)
        self.matrix = torch.zeros(shape, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Add the pixels of a batch: prediction and label (B, H, W), see :func:`confusion`."""
        self.matrix += self.count(prediction, label, self.num_classes).to(self.matrix.device)

    def reduce(self) -> Tensor:
        """The matrix of all processes together; this process's own counts stay as they are."""
        total = self.matrix.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        return total

    def scores(self) -> "Scores":
        """The scores of all processes' pixels."""
        return Scores.from_matrix(self.reduce())


@dataclass(frozen=True)
class Scores:
    """The scores of a data set; all but the pixel counts are fractions from 0 to 1.

    With intersection I, true pixels T and predicted pixels P of a class, its IoU is I / (T + P - I) and its accuracy
    I / T. A class that is neither in the truth nor in the prediction has no IoU (NaN) and is left out of the mean; one
    that is predicted but never true has IoU 0 and counts, as in mmsegmentation, the Cityscapes scripts and
    torchmetrics' ``MulticlassJaccardIndex(average="macro")``. The mean accuracy is over the classes in the truth.

    Attributes:
        miou: mean of the classes' IoU (mIoU).
        mean_accuracy: mean of the classes' accuracy (mAcc).
        pixel_accuracy: correct pixels / scored pixels (aAcc).
        frequency_weighted_iou: IoU weighted by the class's share of the true pixels.
        iou: IoU of each class, NaN where it has none.
        accuracy: accuracy of each class, NaN where the truth has no such pixel.
        pixels: true pixels of each class.
    """

    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    frequency_weighted_iou: float
    iou: tuple[float, ...]
    accuracy: tuple[float, ...]
    pixels: tuple[int, ...]

    @classmethod
    def from_matrix(cls, matrix: Tensor | NDArray[np.int64]) -> "Scores":
        """Scores of a (C, C) confusion matrix with the truth in its rows, or multi-label (C, 2, 2), a matrix a class.

        It may have one more column, of pixels to which the prediction gave no class: these are wrong for the true
        class and count for no other, as in the Cityscapes and ADE20K scripts. A multi-label pixel is as often right as
        there are classes for which it is.
        """
        counts = matrix.detach().cpu().numpy() if isinstance(matrix, Tensor) else np.asarray(matrix)
        correct, true, _ = areas = areas_of(counts)
        iou, accuracy = intersection_over_union(areas), ratio(correct, true)
        scored = true.sum()
        right, answers = (counts[:, [0, 1], [0, 1]], counts.sum()) if counts.ndim == 3 else (correct, scored)
        return cls(
            miou=float(mean_of_present(iou)),
            mean_accuracy=float(mean_of_present(accuracy)),
            pixel_accuracy=float(ratio(right.sum(), answers)),
            frequency_weighted_iou=float(ratio(np.nansum(iou * true), scored)),
            iou=tuple(iou.tolist()),
            accuracy=tuple(accuracy.tolist()),
            pixels=tuple(true.tolist()),
        )

    @property
    def dice(self) -> tuple[float, ...]:
        """Dice of each class (its F1), 2·I / (T + P) = 2·IoU / (1 + IoU), NaN where it has no IoU."""
        return tuple(2 * iou / (1 + iou) for iou in self.iou)

    def as_dict(self) -> dict[str, float | None]:
        """The scores over all classes for JSON, with None for NaN."""
        return {
            "miou": number(self.miou),
            "mean_accuracy": number(self.mean_accuracy),
            "pixel_accuracy": number(self.pixel_accuracy),
            "frequency_weighted_iou": number(self.frequency_weighted_iou),
            "mean_dice": number(float(mean_of_present(np.array(self.dice)))),
        }

    def table(self, classes: Sequence[str]) -> list[tuple[str, ...]]:
        """One row of text per class: name, IoU, Dice, accuracy and share of the true pixels, all in percent."""
        scored = sum(self.pixels)
        return [
            (name, *map(percent, values), percent(pixels / scored if scored else math.nan))
            for name, *values, pixels in zip(classes, self.iou, self.dice, self.accuracy, self.pixels, strict=True)
        ]


def percent(fraction: float) -> str:
    """A fraction as percent with two digits, "–" for NaN."""
    return "–" if math.isnan(fraction) else f"{100 * fraction:.2f}"


def number(value: float) -> float | None:
    """The value for JSON, which knows no NaN."""
    return None if math.isnan(value) else value


def areas_of(matrix: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels of each class in common, in the truth, and in the prediction: (C, C) or (C, C + 1) -> (3, C).

    Multi-label: (C, 2, 2) or (C, 2, 3) -> (3, C).
    """
    if matrix.ndim == 3:
        return np.stack([matrix[:, 1, 1], matrix[:, 1].sum(axis=1), matrix[:, :, 1].sum(axis=1)])
    return np.stack([matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)[: len(matrix)]])


def intersection_over_union(areas: NDArray[np.number]) -> NDArray[np.float64]:
    """IoU of each class, NaN for one in neither truth nor prediction: (..., 3, C) of :func:`areas_of` -> (..., C)."""
    common, true, predicted = np.moveaxis(areas, -2, 0)
    return ratio(common, true + predicted - common)


def mean_of_present(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean along the last axis of what is not NaN; NaN if nothing is left."""
    return ratio(np.nansum(values, axis=-1), np.sum(~np.isnan(values), axis=-1))


def ratio(part: NDArray[np.number], whole: NDArray[np.number]) -> NDArray[np.float64]:
    """part / whole, NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
