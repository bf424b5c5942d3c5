"""Score a network, or anybody's predictions, on a data set at the pictures' own size."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cssformer.data import DatasetInfo
from cssformer.data.dataset import Samples
from cssformer.inference import Predictor, predict
from cssformer.inference.side_by_side import predicted
from cssformer.inference.views import telling_of
from cssformer.metrics.boundary import DILATION_RATIO
from cssformer.metrics.confusion import Scores, percent
from cssformer.metrics.label_files import Truth
from cssformer.metrics.predictions import Predictions, Submission
from cssformer.metrics.report import Examples, thinned
from cssformer.metrics.scoring import Counts, Evaluation, Scorer
from cssformer.model import Metadata
from cssformer.utils.console import progress
from cssformer.utils.errors import UserError
from cssformer.utils.parallel import ahead

Labels = NDArray[np.int32]


def evaluate(
    model: nn.Module | Predictor,
    dataset: Samples,
    *,
    batch_size: int = 1,
    workers: int | None = None,
    dilation_ratio: float = DILATION_RATIO,
    regions: bool = False,
    submission: Path | None = None,
    **options: Any,
) -> Evaluation:
    """Predict and score every picture of a data set at its own size, on the model's device.

    Args:
        model: a ``Predictor``, or whatever :func:`cssformer.inference.predict` takes, such as a ``CSSFormer``.
        dataset: ``SegmentationFolder``, ``SyntheticScenes`` or the like, with labels.
        batch_size: neighbours in the data set that have one size are predicted together, up to so many.
        workers: threads that decode ahead and prepare the truth's contours; by default one per core.
        dilation_ratio: width of Boundary IoU's bands as a share of the picture's diagonal.
        regions: also count the regions of each size, see :class:`cssformer.metrics.Scorer`.
        submission: also write the predictions into this folder, see :func:`submit`.
        options: of :func:`cssformer.inference.predict`: mode, crop, stride, scales, flip, short_side, precision;
            those of a ``Predictor`` are its own where they are not given.

    Raises:
        UserError: a picture cannot be read, has no label, or the model and the data have different classes or channels.
    """
    network, options = _network(model, options)
    require_fitting(network, dataset.info)
    scorer, examples = Scorer(dataset.info, dilation_ratio, regions), Examples(len(dataset))
    written = Submission(submission, dataset.info) if submission is not None else None

    def load(index: int) -> _Item:
        name, image, label = dataset[index]
        if label is None:
            raise UserError(
                f"The picture {name} has no label; evaluate on a split that has labels, "
                "or write a submission of this one."
            )
        return _Item(name, image, label, scorer.distance(label))

    with _progress("evaluate", len(dataset)) as advance:
        for item, labels in _predicted(network, ahead(load, len(dataset), _bytes, workers), batch_size, options):
            assert item.label is not None
            scorer.add(item.name, scorer.count(labels, item.label, item.distance))
            examples.add(labels, scorer.areas[-1])
            if written is not None:
                written.write(item.name, labels)
            advance(scorer)
    return scorer.result(options=options, examples=examples.labels)


def submit(
    model: nn.Module | Predictor,
    dataset: Samples,
    folder: Path,
    *,
    batch_size: int = 1,
    workers: int | None = None,
    **options: Any,
) -> int:
    """Write what the model predicts for every picture as the data set's test server takes it; returns how many.

    A PNG per picture, named like it, holds the raw ids of the data set's source, see
    :class:`cssformer.metrics.predictions.Submission`.

    Args:
        model: see :func:`evaluate`.
        dataset: labels are not needed.
        folder: made if it is missing.
        batch_size, workers, options: see :func:`evaluate`.

    Raises:
        UserError: a picture cannot be read, a file cannot be written, the model and the data have different classes,
            or the data set does not tell its raw ids.
    """
    network, options = _network(model, options)
    require_fitting(network, dataset.info)
    submission = Submission(folder, dataset.info)

    def load(index: int) -> _Item:
        sample = dataset[index]
        return _Item(sample.name, sample.image)

    with _progress("predict", len(dataset)) as advance:
        for item, labels in _predicted(network, ahead(load, len(dataset), _bytes, workers), batch_size, options):
            submission.write(item.name, labels)
            advance(None)
    return len(dataset)


def evaluate_predictions(
    predictions: Predictions,
    truth: Truth,
    *,
    workers: int | None = None,
    dilation_ratio: float = DILATION_RATIO,
    regions: bool = False,
) -> Evaluation:
    """Score label maps that any program predicted.

    Args:
        predictions: those for the data set.
        truth: a split with labels, or label files.
        workers: threads that read and count; by default one per core.
        dilation_ratio: width of Boundary IoU's bands as a share of the picture's diagonal.
        regions: also count the regions of each size, see :class:`cssformer.metrics.Scorer`.

    Raises:
        UserError: a file cannot be read, has another size than its picture, or values that are no class.
    """
    scorer, examples = Scorer(truth.info, dilation_ratio, regions), Examples(len(truth))

    def load(index: int) -> tuple[str, Labels, Counts]:
        name, label = truth.names[index], truth.label(index)
        if label is None:
            raise UserError(f"The picture {name} has no label to score against.")
        labels = predictions.read(name, label.shape)
        return name, thinned(labels).copy(), scorer.count(labels, label)

    with _progress("score", len(truth)) as advance:
        for name, labels, counts in ahead(load, len(truth), lambda _: 0, workers):
            scorer.add(name, counts)
            examples.add(labels, scorer.areas[-1])
            advance(scorer)
    return scorer.result(examples=examples.labels)


class _Item(NamedTuple):
    """A picture with its truth and the distances from its contours, where they are needed."""

    name: str
    image: NDArray[np.uint8]
    label: Labels | None = None
    distance: NDArray[np.uint16] | None = None


def _bytes(item: _Item) -> int:
    return sum(part.nbytes for part in item if isinstance(part, np.ndarray))


def _network(model: nn.Module | Predictor, options: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    return (model.model, {**model.options, **options}) if isinstance(model, Predictor) else (model, options)


def require_fitting(model: nn.Module, info: DatasetInfo) -> None:
    """Raise UserError unless the model is for the classes and the channels of the data, as far as it tells."""
    metadata, classes = getattr(model, "metadata", None), info.classes
    count = getattr(model, "num_classes", len(classes))
    if count != len(classes):
        raise UserError(f"The model knows {count} classes but the data has {len(classes)}; evaluate on data it is for.")
    if (several := getattr(metadata, "multilabel", False)) != info.multilabel:
        kinds = {True: "several classes a pixel (multi-label)", False: "one class a pixel"}
        raise UserError(f"The model gives {kinds[several]}, but the data has {kinds[info.multilabel]}.")
    if not isinstance(metadata, Metadata) or metadata.classes is None:
        return
    if metadata.classes != classes:
        index = next(index for index in range(count) if metadata.classes[index] != classes[index])
        raise UserError(
            f"Class {index} is {metadata.classes[index]!r} for the model but {classes[index]!r} in the data."
        )
    taken, given = (str(each or "RGB") for each in (metadata.channels, info.channels))
    if taken != given:
        raise UserError(f"The model takes {taken} but the data has {given}; evaluate on data it is for.")


def _predicted(
    model: nn.Module, items: Iterator[_Item], batch_size: int, options: dict[str, Any]
) -> Iterator[tuple[_Item, Labels]]:
    def look(network: nn.Module, group: list[_Item]) -> Labels:
        # No copy of a single picture, which may be large.
        images = np.stack([item.image for item in group]) if len(group) > 1 else group[0].image[None]
        with telling_of(*(item.name for item in group)):
            return predict(network, torch.from_numpy(images).permute(0, 3, 1, 2), **options).labels.cpu().numpy()

    def shape(group: list[_Item]) -> tuple[int, int, int]:
        height, width = group[0].image.shape[:2]
        return len(group), height, width

    for group, labels in predicted(model, look, _same_size(items, batch_size), shape, 16, options):
        yield from zip(group, labels, strict=True)


def _same_size(items: Iterator[_Item], most: int) -> Iterator[list[_Item]]:
    """Runs of up to ``most`` neighbours with one picture size."""
    group: list[_Item] = []
    for item in items:
        if group and item.image.shape != group[0].image.shape:
            yield group
            group = []
        group.append(item)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[Scorer | None], None]]:
    """A bar in the terminal; the function it gives counts one more picture and shows the score so far."""
    if not total:
        raise UserError("There is no picture to evaluate on.")
    with progress(title, total=total) as bar:

        def advance(scorer: Scorer | None) -> None:
            if scorer is not None and not bar.disable:
                bar.set_postfix_str(f"mIoU {percent(Scores.from_matrix(scorer.bands.sum(axis=0)).miou)}", refresh=False)
            bar.update()

        yield advance
