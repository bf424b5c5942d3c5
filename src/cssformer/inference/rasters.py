"""Predictions that keep a TIFF's place on the Earth, and those of TIFFs larger than memory, made part by part."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cssformer import __version__
from cssformer.data.dataset import IGNORE
from cssformer.data.dataset_info import no_data
from cssformer.data.rasters import TILE, Raster, opened, pixel_area, write_raster
from cssformer.inference.labels import Block, assembled
from cssformer.inference.prediction import Counts, Prediction
from cssformer.inference.predictor import Predictor
from cssformer.inference.views import Options, predict_blocks
from cssformer.utils.atomic import TEMPORARY, atomic_text, atomic_write
from cssformer.utils.console import progress
from cssformer.utils.device import device_of
from cssformer.utils.errors import UserError
from cssformer.visualize import drawing

PARTS = f"{TEMPORARY}parts"
"""The folder, within the output, of what is done of TIFFs that are not."""

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


class Outputs(NamedTuple):
    """What is written of a TIFF.

    Attributes:
        labels: the file; no data are as :func:`cssformer.data.dataset_info.no_data`.
        overlay, confidence: files, None for none. The confidence of pixels without data is 0.
        clear: names of classes that the overlay leaves uncoloured.
        classes, colours, ids: of the classes.
    """

    labels: Path
    overlay: Path | None
    confidence: Path | None
    clear: Sequence[str]
    classes: Sequence[str]
    colours: Sequence[tuple[int, int, int]]
    ids: Sequence[int]


class _Strip(NamedTuple):
    """Rows of what was found: classes (h, W) or ``IGNORE``, confidence uint8 (h, W), the picture RGB (h, W, 3)."""

    labels: NDArray[np.int32]
    certain: NDArray[np.uint8] | None = None
    image: NDArray[np.uint8] | None = None


def write_georeferenced(prediction: Prediction, path: Path, outputs: Outputs) -> dict[str, Any]:
    """Write what was found in the TIFF ``path``; the row of the report. Raises as :func:`predict_raster`."""
    certain = None
    if prediction.confidence is not None:
        certain = as_grey(prediction.confidence)
        certain[prediction.labels == IGNORE] = 0
    strip = _Strip(prediction.labels, certain, prediction.image)
    with opened(path) as source:
        return _write(source, lambda certain, drawn: iter([strip]), outputs)


def predict_raster(predictor: Predictor, path: Path, outputs: Outputs, parts: Path, made: str) -> dict[str, Any]:
    """Predict a TIFF of any size; memory depends on its width, the window and the number of classes.

    A window slides over it, also where the predictor would look at whole pictures. Blocks that are done lie in a folder
    until all are, so that a call after one that was stopped goes on; its files are those of one that was not.

    Args:
        predictor: the network and its options.
        path: the file.
        outputs: what to write.
        parts: the folder for the blocks, of this file alone.
        made: tells model and options; blocks that others made are not used.

    Returns:
        The row of the report: "labels" (the file), those of :class:`Counts`, "pixel_m2" (:func:`pixel_area`),
        "windows" (their height and width), and "pages", of which the first is read.

    Raises:
        UserError: the file cannot be read to its end, has other channels or cannot be read in parts, or nothing can be
            written.
        ModuleNotFoundError: rasterio is not installed.
    """
    stat = path.stat()
    kept = None
    try:
        with opened(path) as source:
            raster = Raster(source, path, predictor.channels)
            looks = Options(**{**predictor.options, "mode": "slide"})
            device, confidence = device_of(predictor.model).type, outputs.confidence is not None
            file = str(path.resolve()), stat.st_size, stat.st_mtime_ns
            made = json.dumps([__version__, made, *file, device, confidence, vars(looks)])
            kept = _Parts(parts, made, source.height, source.width)
            with torch.inference_mode(), progress(path.name, total=source.height * source.width) as bar:
                bar.update(kept.done)
                strips = predict_blocks(predictor.model, raster, looks, kept.begin, confidence=confidence)
                for top, left, found in _gathered(strips):
                    labels, certain, *_ = (None if each is None else each[0].cpu().numpy() for each in found)
                    assert labels is not None
                    bottom, right = top + labels.shape[0], left + labels.shape[1]
                    missing = raster.missing(top, bottom, left, right)
                    labels[missing] = IGNORE
                    grey = None if certain is None else as_grey(certain) * ~missing
                    kept.add(top, left, labels, grey)
                    bar.update(labels.size)
            row = _write(source, partial(_strips, raster, kept), outputs)
            pages = max(1, len(source.subdatasets))
    except UserError as error:
        # Blocks of a damaged file serve nobody; on a full disk those that are there do.
        if kept is not None and not isinstance(error.__cause__, OSError):
            kept.remove()
        raise
    kept.remove()
    return {**row, "windows": list(looks.window[0]), "pages": pages}


def as_grey(confidence: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Confidence from 0 to 1 as it is written, from 0 to 255."""
    return cv2.convertScaleAbs(confidence, alpha=255).astype(np.uint8, copy=False)


def _gathered(strips: Iterator[Block]) -> Iterator[Block]:
    """Blocks of ``TILE`` rows, fewer at the bottom."""
    for _, group in groupby(strips, key=lambda block: (block.left, block.top // TILE)):
        first, *others = group
        bottom, _, last = others[-1] if others else first
        height, width = bottom + last.labels.shape[-2] - first.top, last.labels.shape[-1]
        moved = (Block(block.top - first.top, 0, block.found) for block in (first, *others))
        yield first._replace(found=assembled(moved, height, width))


class _Parts:
    """Blocks of labels, and of confidence, that are done, one file each: columns by columns, each from its top.

    Attributes:
        begin: row and column of the first one that is not done.
        done: how many pixels are.
    """

    def __init__(self, folder: Path, made: str, height: int, width: int) -> None:
        self.folder, note = folder, folder / "made.json"
        self.new_folders = [each for each in folder.parents if not each.exists()]
        if not note.is_file() or note.read_text(encoding="utf-8") != made:
            shutil.rmtree(folder, ignore_errors=True)
            atomic_text(note, made)
        self.begin, self.done = (0, 0), 0
        for path in sorted(folder.glob("[0-9]*.npz")):
            left, top, right, bottom = map(int, path.stem.split("-"))
            self.begin = (bottom, left) if bottom < height else (0, right)
            self.done += (bottom - top) * (right - left)

    def add(self, top: int, left: int, labels: NDArray[np.int32], certain: NDArray[np.uint8] | None) -> None:
        bottom, right = top + labels.shape[0], left + labels.shape[1]
        with atomic_write(self.folder / f"{left:08}-{top:08}-{right:08}-{bottom:08}.npz") as temporary:
            # 0 is where there are no data.
            arrays = {"labels": np.where(labels == IGNORE, 0, labels + 1).astype(np.uint16)}
            np.savez_compressed(temporary, **arrays if certain is None else {**arrays, "certain": certain})

    def rows(self, kind: str, top: int) -> NDArray[Any]:
        """The blocks that begin in a row, beside each other: labels or certain."""
        return np.concatenate([np.load(path)[kind] for path in sorted(self.folder.glob(f"*-{top:08}-*-*.npz"))], axis=1)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self.folder.parents:
            if folder in self.new_folders or PARTS in folder.parts:
                with suppress(OSError):
                    folder.rmdir()


def _strips(raster: Raster, kept: _Parts, certain: bool, drawn: bool) -> Iterator[_Strip]:
    """All rows from the top: of the labels, with confidence or with the picture."""
    height, width = raster.shape[2:]
    for top in range(0, height, TILE):
        labels = kept.rows("labels", top).astype(np.int32) - 1
        labels[labels < 0] = IGNORE
        image = raster.view(top, min(top + TILE, height), 0, width) if drawn else None
        yield _Strip(labels, kept.rows("certain", top) if certain else None, image)


def _write(
    source: "DatasetReader", strips: Callable[[bool, bool], Iterator[_Strip]], outputs: Outputs
) -> dict[str, Any]:
    """Write all files; the row of the report.

    Args:
        source: the TIFF.
        strips: all rows from the top; with confidence, with the picture.
        outputs: the files.
    """
    if outputs.overlay:
        write_raster(outputs.overlay, source, _overlays(strips(False, True), outputs))
    if outputs.confidence:
        certain = (strip.certain for strip in strips(True, False) if strip.certain is not None)
        write_raster(outputs.confidence, source, certain, nodata=0)
    nodata = no_data(outputs.ids)
    many = nodata != 255
    values = np.array([*outputs.ids, nodata], np.uint16 if many else np.uint8)
    counts = np.zeros(len(values), np.int64)

    def labels() -> Iterator[NDArray[Any]]:
        for strip in strips(False, False):
            indices = np.where(strip.labels == IGNORE, len(outputs.ids), strip.labels)
            counts[:] += np.bincount(indices.ravel(), minlength=len(counts))
            yield values[indices]

    write_raster(
        outputs.labels,
        source,
        labels(),
        colours={value: colour for value, colour in zip(outputs.ids, outputs.colours, strict=True) if not many},
        classes=dict(zip(outputs.ids, outputs.classes, strict=True)),
        nodata=nodata,
    )
    found = Counts.of(outputs.classes, counts[:-1], int(counts[:-1].sum()))
    return {"labels": str(outputs.labels), **found.row, "pixel_m2": pixel_area(source)}


def _overlays(strips: Iterator[_Strip], outputs: Outputs) -> Iterator[NDArray[np.uint8]]:
    clear = [index for index, name in enumerate(outputs.classes) if name in outputs.clear]
    above: _Strip | None = None
    for strip in strips:
        assert strip.image is not None
        image, labels = strip.image, strip.labels
        if above is not None and above.image is not None:
            # The line between classes is drawn on the lower row of two.
            image, labels = np.vstack([above.image[-1:], image]), np.vstack([above.labels[-1:], labels])
        yield drawing.overlay(image, labels, outputs.colours, clear=[*clear, IGNORE])[-len(strip.labels) :]
        above = strip
