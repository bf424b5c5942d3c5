"""The study's sheet: the pictures on which its networks disagree most, chosen by count and not by hand."""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from cssformer.data import IGNORE, DatasetInfo, Sample
from cssformer.data.dataset import Samples
from cssformer.data.image_io import write_image
from cssformer.inference import predict
from cssformer.model import SegmentationNetwork
from cssformer.utils.device import best_device
from cssformer.visualize.drawing import UNKNOWN, WRONG, Picture, colourise, legend, sheet

PICTURES = 6
TILE = 300
STRIPE = (WRONG, WRONG, (255, 255, 255))
"""The stripes over what is wrong, pixel by pixel: the white edge shows them on red classes."""
PERIOD = 9
"""Their distance in pixels."""


def write_sheet(
    models: dict[str, SegmentationNetwork], dataset: Samples, info: DatasetInfo, path: Path, console: Console
) -> None:
    """Predict the data set with every network and draw the pictures on which they disagree most.

    Args:
        models: trained networks by title, two at least.
        dataset: with labels.
        info: class names and colours.
        path: the PNG to write.
        console: where progress goes if it is a terminal.
    """
    device = best_device()
    for model in models.values():
        model.to(device)
    found: list[tuple[float, int, list[NDArray[np.integer]]]] = []
    for index in track(
        range(len(dataset)), "pictures", console=console, transient=True, disable=not console.is_terminal
    ):
        _, image, label = dataset[index]
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        predictions = [
            predict(model, pixels, **model.metadata.inference).labels.cpu().numpy() for model in models.values()
        ]
        assert label is not None
        # Not more predictions are kept than shown.
        found = sorted([*found, (-disagreement(predictions, label), index, predictions)], key=lambda item: item[:2])
        found = found[:PICTURES]
    chosen = [(dataset[index], -share, predictions) for share, index, predictions in found]
    write_image(path, draw(chosen, list(models), info))


def disagreement(predictions: Sequence[NDArray[np.integer]], label: NDArray[np.integer]) -> float:
    """The chance that two networks, drawn at random, differ on a scored pixel drawn at random; 0 if none is scored."""
    scored = label != IGNORE
    if not scored.any():
        return 0.0
    pairs = list(combinations(predictions, 2))
    return float(sum((one != other)[scored].mean() for one, other in pairs) / len(pairs))


def draw(
    chosen: Sequence[tuple[Sample, float, Sequence[NDArray[np.integer]]]], titles: Sequence[str], info: DatasetInfo
) -> Picture:
    """A row for each sample with its disagreement: picture, truth, then each network's prediction, striped where wrong.

    Returns:
        RGB (height, width, 3).
    """
    rows, captions = [], []
    seen = np.zeros(len(info.classes), np.int64)
    for (name, image, label), share, predictions in chosen:
        assert label is not None
        scored = label != IGNORE
        height = max(1, round(TILE * image.shape[0] / image.shape[1]))
        row = [_tile(image, height, cv2.INTER_AREA if image.shape[1] > TILE else cv2.INTER_LINEAR)]
        row.append(_tile(colourise(label, info.colours), height))
        for prediction in predictions:
            tile = _tile(colourise(prediction, info.colours), height)
            wrong = _tile((scored & (prediction != label)).astype(np.uint8), height).astype(bool)
            phase = np.add(*np.indices(wrong.shape)) % PERIOD
            for place, colour in enumerate(STRIPE):
                tile[wrong & (phase == place)] = colour
            row.append(tile)
            seen += np.bincount(prediction.ravel(), minlength=len(seen))
        seen += np.bincount(label[scored], minlength=len(seen))
        rows.append(row)
        right = ", ".join(
            f"{title} {100 * (prediction == label)[scored].mean():.1f} %"
            for title, prediction in zip(titles, predictions, strict=True)
        )
        captions.append(f"{name} · two networks differ on {100 * share:.1f} % of the pixels · right: {right}")
    heads = ("picture", "truth", *titles)
    entries = [(info.classes[index], info.colours[index]) for index in np.argsort(-seen, kind="stable") if seen[index]]
    entries += [("not scored", UNKNOWN), ("striped: wrong", WRONG)]
    return sheet(rows, heads, captions, partial(legend, entries))


def _tile(picture: NDArray[np.uint8], height: int, how: int = cv2.INTER_NEAREST) -> Picture:
    return cv2.resize(picture, (TILE, height), interpolation=how).astype(np.uint8, copy=False)
