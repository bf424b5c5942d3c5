"""All files in order: pictures are read ahead by threads, predicted, and written by threads behind."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cssformer.data import rasters
from cssformer.data.bands import read_pixels
from cssformer.data.channels import Pixels
from cssformer.data.files import read_bytes, world_file
from cssformer.data.formats import tiff_head
from cssformer.data.image_io import write_image
from cssformer.data.picture_facts import PictureFacts
from cssformer.inference.prediction import Prediction
from cssformer.inference.predictor import Predictor
from cssformer.inference.rasters import PARTS, Outputs, as_grey, predict_raster, write_georeferenced
from cssformer.inference.side_by_side import predicted
from cssformer.inference.sources import CONFIDENCE, LABELS, LEGEND, OVERLAY, PROBABILITIES, Source, named
from cssformer.inference.video import predict_video
from cssformer.utils.atomic import atomic_write
from cssformer.utils.console import progress
from cssformer.utils.errors import UserError, is_full_disk
from cssformer.utils.parallel import ahead, behind
from cssformer.visualize import drawing

if TYPE_CHECKING:
    from cssformer.inference.annotations import AnnotationFiles


class _Picture(NamedTuple):
    """A picture that was read, the facts of its file, and whether it has a place on the Earth."""

    pixels: Pixels
    facts: PictureFacts
    placed: bool


class _Read(NamedTuple):
    """A file, and the picture that was read; None for what is not read as a whole, and for what cannot be read."""

    source: Source
    picture: _Picture | None


class _Predicted(NamedTuple):
    """What was found in a picture, and whether that has a place on the Earth."""

    source: Source
    prediction: Prediction
    placed: bool


@dataclass
class Pipeline:
    """Predicts files and writes what was found; one that fails does not stop the others.

    Attributes:
        predictor: the network and its options.
        output: the folder to write into.
        note: what its legend keeps, see :func:`cssformer.data.image_io.read_note`.
        overlay, confidence, probabilities: whether these are written beside the labels.
        clear: names of classes that the overlay leaves uncoloured.
        ids: what is written for each class; its index if None.
        annotations: of pictures, None for none.
        alone: there is one file in all, which has all threads however small it is.
        rows: what the report tells of each file that was predicted.
        failed: why a file could not be read to its end, or written.
        facts: what is worth telling of pictures' files.
    """

    predictor: Predictor
    output: Path
    note: str
    overlay: bool
    confidence: bool
    probabilities: bool
    clear: Sequence[str]
    ids: Sequence[int] | None
    annotations: "AnnotationFiles | None"
    alone: bool
    rows: dict[Source, dict[str, Any]] = field(default_factory=dict)
    failed: dict[Source, str] = field(default_factory=dict)
    facts: dict[Source, PictureFacts] = field(default_factory=dict)

    def run(self, sources: Sequence[Source]) -> None:
        """Do the files; raises UserError where no other could be written either."""
        for (source, prediction, placed), row in behind(self._write, self._predictions(sources), _held):
            with self._failing(source):
                if row and self.annotations:
                    self.annotations.add(prediction, source.path, source.place, placed)
                if row:
                    self.rows[source] = row
        for source in sources:
            announced, frames = (self.rows.get(source, {}).get(key, 0) for key in ("announced_frames", "frames"))
            # The count of some containers is an estimate.
            if frames < announced - max(2, announced // 50):
                self.failed[source] = f"{source.path} ends after {frames} of {announced} frames."

    @contextmanager
    def _failing(self, source: Source) -> Iterator[None]:
        """Keep what is wrong with a file for the end."""
        try:
            yield
        except UserError as error:
            if is_full_disk(error):
                # No other file can be written either.
                raise
            sentence = str(error)
            self.failed[source] = sentence if str(source.path) in sentence else f"{source.path}: {sentence}"

    def _read(self, source: Source) -> _Picture | None:
        """None for what is not read as a whole, and for what cannot be read."""
        with self._failing(source):
            page = None if source.is_video else tiff_head(source.path)
            if source.is_video or (page and page.width * page.height > rasters.LARGE):
                if page and page.orientation != 1:
                    raise UserError(
                        f"{source.path} is too large to be turned as its orientation says; store it upright."
                    )
                return None
            channels = self.predictor.channels
            pixels, facts = read_pixels(source.path, channels)
            # The place is that of the pixels as they are stored.
            world = page is not None and world_file(source.path) is not None
            placed = page is not None and (page.is_georeferenced or world) and page.orientation == 1
            if placed and self.predictor.multilabel:
                raise UserError(f"{source.path} is a GeoTIFF, whose place the masks of several classes would lose.")
            return _Picture(rasters.with_mask(pixels, source.path, channels) if placed else pixels, facts, placed)
        return None

    def _predictions(self, sources: Sequence[Source]) -> Iterator[_Predicted]:
        """Of pictures; videos, and TIFFs larger than memory, are predicted and written here."""
        pictures = ahead(lambda index: _Read(sources[index], self._read(sources[index])), len(sources), _bytes)
        each = 9 + 16 * self._ranked  # bytes a pixel, about
        found = predicted(self.predictor.model, self._look, pictures, self._shape, each, self.predictor.options)
        for (source, picture), prediction in progress("predict", found, len(sources)):
            with self._failing(source):
                if picture and prediction:
                    self.facts[source] = picture.facts
                elif source in self.failed:
                    continue
                elif source.is_video:
                    overlaid = named(self.output / OVERLAY / source.place, ".mp4")
                    self.rows[source] = predict_video(self.predictor, source.path, overlaid, self.clear)
                else:
                    self.rows[source] = self._predict_in_parts(source)
                if not (self.output / LEGEND).exists():
                    # Before the labels, so that who goes on after a stop finds whose they are.
                    entries = list(zip(self.predictor.classes, self.predictor.colours, strict=True))
                    write_image(self.output / LEGEND, drawing.legend(entries, 900), self.note)
            if picture and prediction:
                yield _Predicted(source, prediction, picture.placed)

    @property
    def _ranked(self) -> int:
        return len(self.predictor.classes) if self.probabilities else 1

    def _look(self, network: Any, read: _Read) -> Prediction | None:
        source, picture = read
        if picture is None:
            return None
        predictor = copy(self.predictor)
        predictor.model = network
        with self._failing(source):
            return predictor(picture.pixels, self.confidence or self.annotations is not None, self._ranked)
        return None

    def _shape(self, read: _Read) -> tuple[int, int, int] | None:
        return (1, *read.picture.pixels.pixels.shape[:2]) if read.picture and not self.alone else None

    def _predict_in_parts(self, source: Source) -> dict[str, Any]:
        """The row of a TIFF that is larger than memory."""
        if self.annotations is not None or self.probabilities:
            kind = "annotations" if self.annotations is not None else "probabilities"
            raise UserError(f"{source.path} is too large for {kind}; leave them out, or cut it.")
        if self.predictor.multilabel:
            raise UserError(f"{source.path} is too large for masks of several classes a pixel; cut it.")
        parts = self.output / PARTS / source.place
        row = predict_raster(self.predictor, source.path, self._tiffs(source), parts, self.note)
        self.facts[source] = PictureFacts(1, row.pop("pages"), None)
        return row

    def _tiffs(self, source: Source) -> Outputs:
        labels, drawn, certain = (
            named(self.output / kind / source.place, ".tif") for kind in (LABELS, OVERLAY, CONFIDENCE)
        )
        classes, colours = self.predictor.classes, self.predictor.colours
        return Outputs(
            labels,
            drawn if self.overlay else None,
            certain if self.confidence else None,
            self.clear,
            classes,
            colours,
            self.ids or range(len(classes)),
        )

    def _write(self, found: _Predicted) -> tuple[_Predicted, dict[str, Any] | None]:
        """Write what was found in a picture; with its row, None where that failed."""
        source, prediction, placed = found
        with self._failing(source):
            if self.probabilities and (of_classes := prediction.probabilities) is not None:
                path = named(self.output / PROBABILITIES / source.place, ".npy")
                halves = np.ascontiguousarray(of_classes, np.float16)
                with atomic_write(path, sync=False) as working, working.open("wb") as file:
                    # Not by np.save, whose error on a full disk does not tell that it is one.
                    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(halves))
                    file.write(halves.data)
            if placed:
                return found, write_georeferenced(prediction, source.path, self._tiffs(source))
            world = world_file(source.path) if self.facts[source].orientation == 1 else None
            return found, self._write_pictures(prediction, source.place, world)
        return found, None

    def _write_pictures(self, prediction: Prediction, place: Path, world: Path | None) -> dict[str, Any]:
        """The row of a picture; its ``world`` file is copied beside each PNG and JPEG."""
        labels = self.output / LABELS
        if prediction.multilabel:
            written = [named(labels / name / place, ".png") for name in prediction.classes]
            prediction.save_masks(labels, place.as_posix())
        else:
            written = [labels := named(labels / place, ".png")]
            prediction.save(labels, self.ids)
        if self.overlay:
            written.append(named(self.output / OVERLAY / place, ".jpg"))
            write_image(written[-1], prediction.overlay(clear=self.clear))
        if self.confidence and prediction.confidence is not None:
            written.append(named(self.output / CONFIDENCE / place, ".png"))
            write_image(written[-1], as_grey(prediction.confidence))
        if world is not None:
            told = read_bytes(world)
            for path in written:
                with atomic_write(path.with_suffix(f"{path.suffix[:2]}{path.suffix[-1]}w")) as temporary:
                    temporary.write_bytes(told)
        return {"labels": str(labels), **prediction.counts.row}


def _bytes(read: _Read) -> int:
    return read.picture.pixels.pixels.nbytes if read.picture else 0


def _held(found: _Predicted) -> int:
    """The bytes of a prediction, about."""
    ranked = found.prediction.top_probabilities
    return 3 * found.prediction.image.nbytes + (0 if ranked is None else 4 * ranked.nbytes)
