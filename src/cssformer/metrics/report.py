"""What an evaluation leaves behind: scores as JSON and CSV, the confusion matrix and example pictures to look at."""

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cssformer.data import IGNORE, DatasetInfo, Sample
from cssformer.data.stream import Samples
from cssformer.metrics.boundary import TRIMAP_WIDTH
from cssformer.metrics.confusion import percent
from cssformer.metrics.scoring import Evaluation, Scorer
from cssformer.utils.atomic import atomic_write
from cssformer.visualize.drawing import (
    UNKNOWN,
    WRONG,
    Labels,
    Picture,
    colourise,
    confusion_picture,
    legend,
    sheet,
    sheet_width,
)

SCORES, CLASSES, CONFUSION = "scores.json", "classes.csv", "confusion.png"
PICTURES, WORST = "pictures.png", "worst.png"
EXAMPLES = 6
"""Pictures on a sheet."""
TILE = 300
"""Their width in pixels."""
NAMED = 40
"""Classes named in the sheet's legend, those with the most pixels."""


def write_report(
    evaluation: Evaluation, dataset: Samples, labels_of: Callable[[Sample], Labels], folder: str | Path
) -> None:
    """Write ``classes.csv``, ``confusion.png``, ``pictures.png``, ``worst.png`` and ``scores.json`` into ``folder``.

    ``pictures.png`` shows pictures evenly spread over the data set, ``worst.png`` those of least mIoU.

    Args:
        evaluation: of the data set.
        dataset: where the pictures come from.
        labels_of: gives a picture the class indices (H, W) that were scored.
        folder: made if it is missing.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    info, scores = evaluation.info, evaluation.scores
    with atomic_write(folder / CLASSES) as path, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("index", "class", "iou", "accuracy", "boundary_iou", f"trimap_iou_{TRIMAP_WIDTH}px", "pixels"))
        trimap = evaluation.trimap[TRIMAP_WIDTH].iou
        columns = (info.classes, scores.iou, scores.accuracy, evaluation.boundary_iou, trimap, scores.pixels)
        for index, (name, *values, pixels) in enumerate(zip(*columns, strict=True)):
            writer.writerow((index, name, *("" if np.isnan(value) else f"{value:.6f}" for value in values), pixels))
    _write(folder / CONFUSION, confusion_picture(evaluation.matrix, info.classes))
    count = min(EXAMPLES, len(dataset))
    spread = [index * len(dataset) // count for index in range(count)]
    for name, indices in ((PICTURES, spread), (WORST, evaluation.worst(EXAMPLES) or spread)):
        samples = (dataset[index] for index in indices)
        _write(folder / name, contact_sheet(((sample, labels_of(sample)) for sample in samples), info))
    # Last: it tells a study that the run is finished.
    with atomic_write(folder / SCORES) as path:
        path.write_text(json.dumps(evaluation.as_dict(), indent=2) + "\n")


def contact_sheet(pairs: Iterable[tuple[Sample, Labels]], info: DatasetInfo) -> Picture:
    """A sheet to look at: a row per sample with picture, truth, prediction and, in red, what is wrong.

    Args:
        pairs: one or more samples with labels, and the class indices (H, W) predicted for each, ``IGNORE`` for none.
            Only one pair at a time is held.
        info: class names and colours; the legend shows the classes that occur, the most frequent first.

    Returns:
        RGB (height, width, 3).
    """
    rows, captions = [], []
    pixels = np.zeros(len(info.classes), np.int64)
    for (name, image, label), prediction in pairs:
        if label is None:
            raise ValueError(f"{name} has no label to show.")
        scorer = Scorer(info)
        scorer.add(name, scorer.count(prediction, label))
        scores = scorer.result().scores
        captions.append(
            f"{name} · mIoU {percent(scores.miou)} % · {percent(scores.pixel_accuracy)} % of the pixels are right"
        )
        # Pixels that a tile cannot show are left out before they are coloured.
        step = max(1, image.shape[1] // (4 * TILE))
        picture = np.ascontiguousarray(image[::step, ::step])
        truth, said = label[::step, ::step], prediction[::step, ::step]
        scored = truth != IGNORE
        for shown in (truth[scored], said[said != IGNORE]):
            pixels += np.bincount(shown, minlength=len(pixels))
        grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        errors = np.where(scored[..., None], grey // 2 + 96, np.array(UNKNOWN, np.uint8))
        errors[scored & (said != truth)] = WRONG
        row = [picture, colourise(truth, info.colours), colourise(said, info.colours), errors]
        rows.append([_tile(part, smooth=index == 0) for index, part in enumerate(row)])
    seen = [int(index) for index in np.argsort(-pixels, kind="stable") if pixels[index]]
    entries = [(info.classes[index], info.colours[index]) for index in seen[:NAMED]]
    if len(seen) > NAMED:
        entries.append((f"and {len(seen) - NAMED} more", (255, 255, 255)))
    entries += [("not scored", UNKNOWN), ("wrong", WRONG)]
    heads = ("picture", "truth", "prediction", "errors")
    return sheet(rows, heads, captions, legend(entries, sheet_width(TILE, len(heads))))


def _tile(picture: Picture, smooth: bool) -> Picture:
    height, width = picture.shape[:2]
    size = (TILE, max(1, round(TILE * height / width)))
    enlarged = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    how = cv2.INTER_AREA if width > TILE else enlarged
    return cv2.resize(picture.astype(np.uint8), size, interpolation=how).astype(np.uint8, copy=False)


def _write(path: Path, picture: Picture) -> None:
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary)
