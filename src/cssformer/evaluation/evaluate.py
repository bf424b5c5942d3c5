"""Score a network, or anybody's predictions, on a data set at the pictures' own size."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from os import cpu_count
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

from cssformer.data import DatasetInfo
from cssformer.data.stream import Samples
from cssformer.errors import UserError
from cssformer.evaluation.boundary import boundary_areas, boundary_band
from cssformer.evaluation.confusion import (
    Scores,
    areas_of,
    confusion,
    intersection_over_union,
    mean_of_present,
    number,
    percent,
)
from cssformer.evaluation.inference import predict

RESAMPLINGS = 1000
"""Bootstrap samples for the confidence interval."""

MOST_WORKERS = 8
"""Processes that decode ahead; more than a device can be fed with."""


@dataclass(frozen=True)
class Evaluation:
    """What scoring a data set found.

    Attributes:
        info: the data set's classes and colours.
        names: the pictures, n of them.
        matrix: (C, C) int64 confusion matrix; rows are the truth, columns the prediction.
        areas: (n, 3, C) int64, per picture and class the pixels in common, in the truth and in the prediction.
        boundary: the same near the contours, see :mod:`cssformer.evaluation.boundary`.
        options: how the pictures were predicted, arguments of :func:`cssformer.evaluation.predict`.
    """

    info: DatasetInfo
    names: tuple[str, ...]
    matrix: NDArray[np.int64]
    areas: NDArray[np.int64]
    boundary: NDArray[np.int64]
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def scores(self) -> Scores:
        return Scores.from_matrix(self.matrix)

    @cached_property
    def boundary_iou(self) -> tuple[float, ...]:
        """Boundary IoU of each class over the data set, NaN for a class in neither truth nor prediction."""
        return tuple(intersection_over_union(self.boundary.sum(axis=0)).tolist())

    @cached_property
    def mean_boundary_iou(self) -> float:
        return float(mean_of_present(intersection_over_union(self.boundary.sum(axis=0))))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Percentile bootstrap over pictures: the 95 % confidence interval of the mIoU."""
        return bootstrap_interval(self.areas)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; fractions from 0 to 1, None where a class has no score."""
        return {
            **self.scores.as_dict(),
            "miou_interval": [number(value) for value in self.interval],
            "mean_boundary_iou": number(self.mean_boundary_iou),
            "boundary_iou": [number(value) for value in self.boundary_iou],
            "classes": list(self.info.classes),
            "pictures": len(self.names),
            "partial": self.info.partial,
            "options": {name: str(value) if name == "precision" else value for name, value in self.options.items()},
        }

    def summary(self) -> list[tuple[str, str]]:
        """Name and value in percent of each score of the whole data set."""
        low, high = self.interval
        return [
            ("mIoU", f"{percent(self.scores.miou)}  (95 %: {percent(low)} to {percent(high)})"),
            ("mean accuracy", percent(self.scores.mean_accuracy)),
            ("pixel accuracy", percent(self.scores.pixel_accuracy)),
            ("frequency-weighted IoU", percent(self.scores.frequency_weighted_iou)),
            ("mean Boundary IoU", percent(self.mean_boundary_iou)),
            *([("note", "partial data, not comparable with published scores")] if self.info.partial else []),
        ]


class Scorer:
    """Collects predictions picture by picture; knows nothing of networks.

    Args:
        info: the classes and colours of the data set.
    """

    def __init__(self, info: DatasetInfo) -> None:
        classes = len(info.classes)
        self.info = info
        self.matrix = np.zeros((classes, classes), np.int64)
        self.names: list[str] = []
        self.areas: list[NDArray[np.int64]] = []
        self.boundary: list[NDArray[np.int64]] = []

    def add(
        self,
        name: str,
        prediction: NDArray[np.integer],
        label: NDArray[np.integer],
        band: NDArray[np.bool_] | None = None,
    ) -> None:
        """Score one picture.

        Args:
            name: of the picture.
            prediction: class indices (H, W).
            label: the truth (H, W) with ``IGNORE``.
            band: the truth's :func:`cssformer.evaluation.boundary.boundary_band`, if it is known already.

        Raises:
            ValueError: the shapes differ, or a class index lies outside the classes.
        """
        classes = len(self.info.classes)
        matrix = confusion(torch.from_numpy(prediction), torch.from_numpy(label), classes).numpy()
        self.matrix += matrix
        self.names.append(name)
        self.areas.append(areas_of(matrix))
        band = boundary_band(label) if band is None else band
        self.boundary.append(boundary_areas(prediction, label, band, classes))

    def result(self, **options: Any) -> Evaluation:
        """The evaluation of all pictures added so far; ``options`` say how they were predicted."""
        return Evaluation(
            self.info, tuple(self.names), self.matrix, np.stack(self.areas), np.stack(self.boundary), options
        )


def evaluate(
    model: nn.Module,
    dataset: Samples,
    *,
    batch_size: int = 1,
    workers: int | None = None,
    console: Console | None = None,
    **options: Any,
) -> Evaluation:
    """Predict and score every picture of a data set at its own size, on the model's device.

    Args:
        model: a ``CSSFormer``, or whatever :func:`cssformer.evaluation.predict` takes.
        dataset: ``SegmentationFolder``, ``Scenes`` or the like, with labels.
        batch_size: neighbours in the data set that have one size are predicted together, up to so many.
        workers: processes that decode ahead and prepare the truth's contours; by default one per core, at most 8.
        console: where progress goes if it is a terminal; standard error by default.
        options: of :func:`cssformer.evaluation.predict`: mode, crop, stride, scales, flip, short_side, precision.

    Raises:
        UserError: a picture cannot be read, has no label, or the model and the data have different classes.
    """
    known, classes = getattr(model, "classes", None), dataset.info.classes
    count = getattr(model, "num_classes", len(classes))
    if count != len(classes):
        raise UserError(f"The model knows {count} classes but the data has {len(classes)}; evaluate on data it is for.")
    if known is not None and known != classes:
        index = next(index for index in range(count) if known[index] != classes[index])
        raise UserError(f"Class {index} is {known[index]!r} for the model but {classes[index]!r} in the data.")
    if not len(dataset):
        raise UserError("There is no picture to evaluate on.")
    scorer = Scorer(dataset.info)
    with _progress(console or Console(stderr=True)) as progress:
        task = progress.add_task("evaluate", total=len(dataset), score="")
        for group in _same_size(_decoded(dataset, workers), batch_size):
            images = torch.stack([truth.image for truth in group]).permute(0, 3, 1, 2)
            labels = predict(model, images, **options).labels.cpu().numpy()
            for prediction, (name, _, label, band) in zip(labels, group, strict=True):
                scorer.add(name, prediction, label.numpy(), band.numpy())
            score = Scores.from_matrix(scorer.matrix).miou
            progress.update(task, advance=len(group), score=f"mIoU {percent(score)}")
    return scorer.result(**options)


def bootstrap_interval(areas: NDArray[np.int64], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Confidence interval of the mIoU if other pictures of the same kind had been drawn.

    Each of 1000 resamplings draws as many pictures as there are, with replacement, and takes the mIoU of their summed
    areas; the interval runs between the percentiles of these scores.

    Args:
        areas: (n, 3, C), see :class:`Evaluation`.
        level: share of the resamplings inside.
        seed: of the draws.
    """
    pictures = len(areas)
    rng = np.random.default_rng(seed)
    times_drawn = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLINGS)
    resampled = (times_drawn @ areas.reshape(pictures, -1).astype(np.float64)).reshape(-1, *areas.shape[1:])
    scores = mean_of_present(intersection_over_union(resampled))
    low, high = np.nanquantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class _Truth(NamedTuple):
    """A sample as tensors, which cross from a worker without a copy, and its contours."""

    name: str
    image: Tensor
    label: Tensor
    band: Tensor


class _Truths(Dataset[_Truth | UserError]):
    """Samples with their contours. An error is an item: raised in a worker it would come back as a traceback."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> _Truth | UserError:
        if get_worker_info() is not None:
            cv2.setNumThreads(0)
        try:
            name, image, label = self.samples[index]
            if label is None:
                raise UserError(f"The picture {name} has no label; evaluate on a split that has labels.")
        except UserError as error:
            return error
        return _Truth(name, *(torch.from_numpy(part) for part in (image, label, boundary_band(label))))


def _decoded(dataset: Samples, workers: int | None) -> Iterator[_Truth]:
    """The samples in order, decoded ahead."""
    workers = min(cpu_count() or 1, MOST_WORKERS, len(dataset)) if workers is None else workers
    for item in DataLoader(_Truths(dataset), batch_size=None, num_workers=workers):
        if isinstance(item, UserError):
            raise item
        yield item


def _same_size(truths: Iterator[_Truth], most: int) -> Iterator[list[_Truth]]:
    """Runs of up to ``most`` neighbours with one picture size."""
    group: list[_Truth] = []
    for truth in truths:
        if group and (len(group) == most or truth.image.shape != group[0].image.shape):
            yield group
            group = []
        group.append(truth)
    yield group


def _progress(console: Console) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[score]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
