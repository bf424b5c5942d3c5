"""What an evaluation leaves behind: scores as JSON and CSV, the confusion matrix and example pictures to look at."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn

from cssformer.data import IGNORE, DatasetInfo, Sample
from cssformer.data.stream import Samples
from cssformer.evaluation.confusion import percent
from cssformer.evaluation.drawing import (
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
from cssformer.evaluation.evaluate import Evaluation
from cssformer.evaluation.inference import predict
from cssformer.files import replacing

SCORES, CLASSES, CONFUSION, PICTURES = "scores.json", "classes.csv", "confusion.png", "pictures.png"
EXAMPLES = 6
"""Pictures on the sheet."""
TILE = 300
"""Their width in pixels."""
NAMED = 40
"""Classes named in the sheet's legend, those with the most pixels."""


def write_report(evaluation: Evaluation, model: nn.Module, dataset: Samples, folder: str | Path) -> None:
    """Write ``scores.json``, ``classes.csv``, ``confusion.png`` and ``pictures.png`` into ``folder``.

    Args:
        evaluation: of the model on the data set.
        model: predicts the example pictures, in the way the evaluation did.
        dataset: where they come from, evenly spread over it.
        folder: made if it is missing.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    info, scores = evaluation.info, evaluation.scores
    with replacing(folder / SCORES) as path:
        path.write_text(json.dumps(evaluation.as_dict(), indent=2) + "\n")
    with replacing(folder / CLASSES) as path, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("index", "class", "iou", "accuracy", "boundary_iou", "pixels"))
        columns = zip(info.classes, scores.iou, scores.accuracy, evaluation.boundary_iou, scores.pixels, strict=True)
        for index, (name, *values, pixels) in enumerate(columns):
            writer.writerow((index, name, *("" if np.isnan(value) else f"{value:.6f}" for value in values), pixels))
    _write(folder / CONFUSION, confusion_picture(evaluation.matrix, info.classes))
    count = min(EXAMPLES, len(dataset))
    samples = [dataset[index * len(dataset) // count] for index in range(count)]
    predictions = [
        predict(model, torch.from_numpy(sample.image).permute(2, 0, 1), **evaluation.options).labels.cpu().numpy()
        for sample in samples
    ]
    _write(folder / PICTURES, contact_sheet(samples, predictions, info))


def contact_sheet(samples: Sequence[Sample], predictions: Sequence[Labels], info: DatasetInfo) -> Picture:
    """A sheet to look at: a row per sample with picture, truth, prediction and, in red, what is wrong.

    Args:
        samples: one or more, with labels.
        predictions: class indices (H, W) for each.
        info: class names and colours; the legend shows the classes that occur, the most frequent first.

    Returns:
        RGB (height, width, 3).
    """
    rows, captions = [], []
    pixels = np.zeros(len(info.classes), np.int64)
    for (name, image, label), prediction in zip(samples, predictions, strict=True):
        if label is None:
            raise ValueError(f"{name} has no label to show.")
        scored = label != IGNORE
        wrong = scored & (prediction != label)
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        errors = np.where(scored[..., None], grey // 2 + 96, np.array(UNKNOWN, np.uint8))
        errors[wrong] = WRONG
        row = [image, colourise(label, info.colours), colourise(prediction, info.colours), errors]
        rows.append([_tile(picture, smooth=index == 0) for index, picture in enumerate(row)])
        right = 1 - wrong.sum() / scored.sum() if scored.any() else np.nan
        captions.append(f"{name} · {percent(right)} % of the pixels are right")
        pixels += np.bincount(label[scored], minlength=len(pixels)) + np.bincount(
            prediction.ravel(), minlength=len(pixels)
        )
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
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary)
