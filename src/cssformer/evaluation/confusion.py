"""The confusion matrix of a whole data set and the scores of the field that follow from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

IGNORE = -100
"""Label of pixels that are not scored: the same value as ``cssformer.data.IGNORE`` and torch's cross entropy."""


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
    truth, predicted = label.flatten().to(torch.int32), prediction.flatten().to(torch.int32)
    known = (truth >= 0) & (truth < num_classes) & (predicted >= 0) & (predicted < num_classes)
    # Two more cells, for ignored and for impossible pixels, save a pass over the picture and, on CUDA, a wait.
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


class ConfusionMatrix(nn.Module):
    """A confusion matrix that lives on the device of the predictions and grows batch by batch.

    It is a module so that ``.to(device)`` of whatever owns it takes it along; it is not part of the state dict.

    Attributes:
        matrix: (C, C) int64, pixels of this process; rows are the truth, columns the prediction.
    """

    matrix: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("matrix", torch.zeros(num_classes, num_classes, dtype=torch.int64), persistent=False)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Add the pixels of a batch: prediction and label (B, H, W), see :func:`confusion`."""
        self.matrix += confusion(prediction, label, self.num_classes).to(self.matrix.device)

    def reduce(self) -> Tensor:
        """The (C, C) matrix of all processes together; this process's own counts stay as they are."""
        total = self.matrix.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        return total

    def reset(self) -> None:
        self.matrix.zero_()

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
    def from_matrix(cls, matrix: Tensor | np.ndarray) -> "Scores":
        """Scores of a (C, C) confusion matrix with the truth in its rows."""
        counts = matrix.detach().cpu().numpy() if isinstance(matrix, Tensor) else np.asarray(matrix)
        correct, true = counts.diagonal(), counts.sum(axis=1)
        iou = _ratio(correct, true + counts.sum(axis=0) - correct)
        accuracy = _ratio(correct, true)
        scored = true.sum()
        return cls(
            miou=_mean(iou),
            mean_accuracy=_mean(accuracy),
            pixel_accuracy=float(_ratio(correct.sum(), scored)),
            frequency_weighted_iou=float(_ratio(np.nansum(iou * true), scored)),
            iou=tuple(iou.tolist()),
            accuracy=tuple(accuracy.tolist()),
            pixels=tuple(true.tolist()),
        )

    def as_dict(self) -> dict[str, float | list[float | None] | list[int] | None]:
        """Plain values for JSON, with None for NaN."""
        return {
            "miou": _number(self.miou),
            "mean_accuracy": _number(self.mean_accuracy),
            "pixel_accuracy": _number(self.pixel_accuracy),
            "frequency_weighted_iou": _number(self.frequency_weighted_iou),
            "iou": [_number(value) for value in self.iou],
            "accuracy": [_number(value) for value in self.accuracy],
            "pixels": list(self.pixels),
        }

    def table(self, classes: Sequence[str]) -> list[tuple[str, str, str, str]]:
        """One row of text per class: name, IoU in percent, accuracy in percent, share of the true pixels in percent."""
        scored = sum(self.pixels)
        return [
            (name, percent(iou), percent(accuracy), percent(pixels / scored if scored else math.nan))
            for name, iou, accuracy, pixels in zip(classes, self.iou, self.accuracy, self.pixels, strict=True)
        ]


def percent(fraction: float) -> str:
    """A fraction as percent with two digits, "–" for NaN."""
    return "–" if math.isnan(fraction) else f"{100 * fraction:.2f}"


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole in float64, NaN where the whole is 0."""
    whole = np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN if nothing is left."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
