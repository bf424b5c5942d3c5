"""The first pictures as the network sees them, to look at before a long training."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from cssformer.data import DatasetInfo
from cssformer.data.channels import rgb_view
from cssformer.data.class_pixels import pixels_of
from cssformer.data.image_io import write_image
from cssformer.metrics.report import legend_entries, tile
from cssformer.visualize.drawing import UNKNOWN, Picture, legend, overlay, sheet

AUGMENTED = "augmented.png"
SHOWN = 12


class AugmentedSheet(Callback):
    """Writes ``augmented.png`` at the first step: the pictures of its first pass, up to twelve."""

    def __init__(self, run: Path, info: DatasetInfo) -> None:
        self.path, self.info = run / AUGMENTED, info

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0 and trainer.is_global_zero:
            images, labels = (batch[key][:SHOWN].cpu().numpy() for key in ("image", "label"))
            write_image(self.path, augmented_sheet(images.transpose(0, 2, 3, 1), labels, self.info))


def augmented_sheet(images: NDArray[Any], labels: NDArray[np.integer], info: DatasetInfo) -> Picture:
    """Two pictures in a row, each beside itself with its labels over it: RGB (height, width, 3).

    Args:
        images: (n, h, w, C) of photographs or other channels.
        labels: class indices (n, h, w), ``IGNORE`` where ignored.
        info: class names and colours; the legend shows the classes that occur.
    """
    tiles = []
    for pixels, label in zip(images, labels, strict=True):
        image = np.ascontiguousarray(rgb_view(pixels, info.channels))
        tiles += [
            tile(image, smooth=True),
            tile(overlay(image, label, info.palette, clear=[0] * info.multilabel), smooth=True),
        ]
    across = min(4, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % across)
    rows = [tiles[start : start + across] for start in range(0, len(tiles), across)]
    heads = ("picture", "labels over it") * (across // 2)
    pixels = pixels_of(labels, info)
    entries = [*legend_entries(pixels, info), ("ignored", UNKNOWN)]
    return sheet(rows, heads, [""] * len(rows), partial(legend, entries))
