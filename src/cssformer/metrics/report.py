"""What an evaluation leaves behind: scores as JSON and CSV, the confusion matrix and example pictures to look at."""

import csv
import heapq
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.data import IGNORE, DatasetInfo, Sample
from cssformer.data.channels import rgb_view
from cssformer.data.class_pixels import pixels_of
from cssformer.data.dataset import Samples
from cssformer.data.image_io import write_image
from cssformer.metrics.boundary import TRIMAP_WIDTH
from cssformer.metrics.confusion import intersection_over_union, mean_of_present
from cssformer.metrics.scoring import Evaluation
from cssformer.utils.atomic import atomic_csv, atomic_json
from cssformer.visualize.drawing import (
    PAPER,
    UNKNOWN,
    WRONG,
    Colour,
    Labels,
    Picture,
    colourise,
    confusion_picture,
    legend,
    pale,
    sheet,
)
from cssformer.weights.run_files import SCORES

CLASSES, CONFUSION = "classes.csv", "confusion.png"
TABLE, PICTURES, WORST = "pictures.csv", "pictures.png", "worst.png"
EXAMPLES = 6
"""Pictures on a sheet."""
TILE, TALLEST = 300, 450
"""A tile's width, and its greatest height, in pixels."""
NAMED = 40
"""Classes named in the sheet's legend, those with the most pixels."""


class Examples:
    """Keeps the predictions that a report shows, of pictures scored one by one, thinned to what a tile shows of them.

    Args:
        count: how many pictures come.
    """

    def __init__(self, count: int) -> None:
        self.spread = spread(count)
        self.count = 0
        self.labels: dict[int, Labels] = {}
        self.worst: list[tuple[float, int]] = []

    def add(self, labels: Labels, areas: NDArray[np.int64]) -> None:
        """Take the class indices (H, W) of the next picture, and the areas (3, C) of its classes."""
        index, self.count = self.count, self.count + 1
        miou = float(mean_of_present(intersection_over_union(areas)))
        if index in self.spread or not np.isnan(miou):
            self.labels[index] = thinned(labels).copy()
        if not np.isnan(miou):
            # The first to go is the best, of equal ones the last.
            heapq.heappush(self.worst, (-miou, -index))
            gone = -heapq.heappop(self.worst)[1] if len(self.worst) > EXAMPLES else None
            if gone is not None and gone not in self.spread:
                del self.labels[gone]


def spread(count: int) -> list[int]:
    """Indices of a sheet's pictures, evenly spread over so many."""
    shown = min(EXAMPLES, count)
    return [index * count // shown for index in range(shown)]


def thinned(pixels: NDArray[Any]) -> NDArray[Any]:
    """Every n-th row and column of pixels or labels (H, W, ...): as many as a tile can show."""
    step = max(1, max(pixels.shape[:2]) // (4 * TILE))
    return pixels[::step, ::step]


def write_report(evaluation: Evaluation, dataset: Samples, folder: str | Path) -> None:
    """Write tables (``classes.csv``, ``pictures.csv``), sheets (``pictures.png``, ``worst.png``) and ``scores.json``.

    ``pictures.csv`` has a row for each picture and each class in its truth or prediction; ``pictures.png`` shows
    pictures evenly spread over the data set, ``worst.png`` those of least mIoU. ``confusion.png`` is the confusion
    matrix, which multi-label data have not.

    Args:
        evaluation: of the data set.
        dataset: where the pictures come from.
        folder: made if it is missing.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    info, scores = evaluation.info, evaluation.scores
    with atomic_csv(folder / CLASSES) as file:
        writer = csv.writer(file)
        near = f"trimap_iou_{TRIMAP_WIDTH}px"
        writer.writerow(("index", "class", "iou", "dice", "accuracy", "boundary_iou", near, "pixels"))
        trimap = evaluation.trimap[TRIMAP_WIDTH].iou
        shares = (scores.iou, scores.dice, scores.accuracy, evaluation.boundary_iou, trimap)
        columns = (info.classes, *shares, scores.pixels)
        for index, (name, *values, pixels) in enumerate(zip(*columns, strict=True)):
            writer.writerow((index, name, *("" if np.isnan(value) else f"{value:.6f}" for value in values), pixels))
    with atomic_csv(folder / TABLE) as file:
        writer = csv.writer(file)
        writer.writerow(("picture", "class", "iou", "true_pixels", "predicted_pixels"))
        for name, areas in zip(evaluation.names, evaluation.areas, strict=True):
            writer.writerows((name, *row) for row in _of_picture(info.classes, areas))
    if not info.multilabel:
        write_image(folder / CONFUSION, confusion_picture(evaluation.matrix, info.classes))
    everywhere = spread(len(dataset))
    for name, indices in ((PICTURES, everywhere), (WORST, evaluation.worst(EXAMPLES) or everywhere)):
        rows = ((dataset[index], evaluation.examples[index], evaluation.caption(index)) for index in indices)
        write_image(folder / name, contact_sheet(rows, info))
    # Last: a folder that has scores has all of the report.
    atomic_json(folder / SCORES, evaluation.as_dict())


def _of_picture(classes: Sequence[str], areas: NDArray[np.int64]) -> Iterator[tuple[str, str, int, int]]:
    """Class, IoU, true and predicted pixels of the classes in a picture's areas (3, C)."""
    for name, iou, true, predicted in zip(classes, intersection_over_union(areas), *areas[1:].tolist(), strict=True):
        if true or predicted:
            yield name, f"{iou:.6f}", true, predicted


def contact_sheet(examples: Iterable[tuple[Sample, Labels, str]], info: DatasetInfo) -> Picture:
    """A sheet to look at: a row per sample with picture, truth, prediction and, in red, what is wrong.

    Args:
        examples: one or more samples with labels, the class indices predicted for each, ``IGNORE`` for none,
            :func:`thinned`, and a caption. Only one is held at a time.
        info: class names and colours; the legend shows the classes that occur, the most frequent first.

    Returns:
        RGB (height, width, 3).
    """
    rows, captions, palette = [], [], info.palette
    pixels = np.zeros(len(info.classes), np.int64)
    for (name, image, label), said, caption in examples:
        if label is None:
            raise ValueError(f"{name} has no label to show.")
        captions.append(caption)
        picture, truth = np.ascontiguousarray(rgb_view(thinned(image), info.channels)), thinned(label)
        scored = truth != IGNORE
        pixels += pixels_of(truth, info) + pixels_of(said, info)
        errors = np.where(scored[..., None], pale(picture), np.array(UNKNOWN, np.uint8))
        errors[scored & (said != truth)] = WRONG
        row = [picture, colourise(truth, palette), colourise(said, palette), errors]
        rows.append([tile(part, smooth=index == 0) for index, part in enumerate(row)])
    entries = [*legend_entries(pixels, info), ("not scored", UNKNOWN), ("wrong", WRONG)]
    heads = ("picture", "truth", "prediction", "errors")
    return sheet(rows, heads, captions, partial(legend, entries))


def legend_entries(pixels: NDArray[np.integer], info: DatasetInfo) -> list[tuple[str, Colour]]:
    """Name and colour of the classes that have pixels (C,), the most frequent first."""
    seen = [int(index) for index in np.argsort(-pixels, kind="stable") if pixels[index]]
    entries = [(info.classes[index], info.colours[index]) for index in seen[:NAMED]]
    more = [(f"and {len(seen) - NAMED} more", (255, 255, 255))] if len(seen) > NAMED else []
    return entries + more


def tile(picture: Picture, smooth: bool) -> Picture:
    """The picture (H, W, 3) at a tile's size."""
    height, width = picture.shape[:2]
    factor = min(TILE / width, TALLEST / height)
    size = (max(1, round(factor * width)), max(1, round(factor * height)))
    enlarged = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    tile = np.full((size[1], TILE, 3), PAPER, np.uint8)
    tile[:, : size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else enlarged)
    return tile
