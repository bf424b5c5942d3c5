"""Pictures, folders of pictures and videos, labelled and written out."""

import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cssformer.data import rasters
from cssformer.data.bands import read_pixels
from cssformer.data.channels import Pixels
from cssformer.data.formats import tiff_head
from cssformer.data.image_io import read_note, write_image
from cssformer.data.picture_facts import PictureFacts, notes
from cssformer.inference.predictor import Prediction, Predictor
from cssformer.inference.rasters import PARTS, Outputs, as_grey, predict_raster, write_georeferenced
from cssformer.inference.sources import (
    CONFIDENCE,
    LABELS,
    LEGEND,
    OVERLAY,
    PROBABILITIES,
    Source,
    find_sources,
    is_there,
    named,
)
from cssformer.inference.video import predict_video
from cssformer.inference.views import Mode, Precision
from cssformer.utils.atomic import atomic_write, require_writable
from cssformer.utils.console import progress
from cssformer.utils.digest import digest
from cssformer.utils.errors import UserError
from cssformer.utils.parallel import ahead, behind
from cssformer.utils.processes import agree, gather, rank, share
from cssformer.visualize import drawing

Key = TypeVar("Key")
Value = TypeVar("Value")

FORMATS = ("coco", "geojson", "labelme", "label-studio", "cvat", "yolo")
"""What :class:`cssformer.inference.annotations.AnnotationFiles` writes."""
_BY_CLASS = ("coco", "geojson", "label-studio", "yolo")
"""The formats whose shapes may overlap."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors after which no other file can be written either."""


def predict_files(
    model: str,
    inputs: Sequence[Path],
    output: Path,
    *,
    overlay: bool = False,
    confidence: bool = False,
    probabilities: bool = False,
    raw: bool = False,
    save: list[str] | None = None,
    tolerance: float = 1.0,
    min_area: float = 0.0,
    mode: Mode | None = None,
    crop: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    short_side: int | None = None,
    precision: Precision | None = None,
    threshold: float | None = None,
    clear: list[str] | None = None,
    skip_existing: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Predict pictures, folders of pictures and videos, and write what was found.

    Below ``output`` a picture becomes ``labels/NAME.png`` (class indices with a palette; of a multi-label model
    ``labels/CLASS/NAME.png``, 255 where the class is), ``overlay/NAME.jpg``,
    ``confidence/NAME.png`` (255 is certain) and ``probabilities/NAME.npy`` (float16 (C, H, W)); a video becomes
    ``overlay/NAME.mp4``; ``legend.png`` shows the colours. TIFFs with a place on the Earth, and those larger than
    memory, become TIFFs of these names (:mod:`cssformer.inference.rasters`).
    Folders are searched to the bottom, links too, and keep their layout; hidden files are left out, and the labels of
    prepared data. A file that cannot
    be read or written does not stop the others. A folder of predictions is added to, if they are of the same model and
    options: the legend keeps these. Annotations of ``save`` are described at
    :class:`cssformer.inference.annotations.AnnotationFiles`.

    Processes started together by ``torchrun`` or ``srun`` share the inputs and write the same files as one.

    Args:
        model: A run or model folder, a bundled model, a Hugging Face model id, or an exported .onnx or .xml file.
        inputs: Pictures, videos, or folders of them.
        output: The folder to write into.
        overlay: Also write each picture under its classes' colours.
        confidence: Also write the probability of the class chosen, as grey values.
        probabilities: Also write those of every class, as NumPy's arrays (classes, height, width); not of videos.
        raw: Write the ids that the classes had in the source of the training data, not the classes' indices.
        save: Also write annotations of pictures, as coco, geojson, labelme, label-studio, cvat or yolo.
        tolerance: How far, in pixels, the outlines of annotations may be moved to have fewer corners.
        min_area: Regions of fewer pixels get no outline.
        mode: Whole pictures, or a window that slides over them; by default as the model was trained for.
        crop: Height and width of the sliding window.
        stride: From window to window, down and across; 2/3 of the crop by default.
        scales: Average over the picture at these sizes.
        flip: Average over the mirror image too.
        short_side: First resize so that the shorter side has this many pixels; by default as the model was trained for.
        precision: Numbers of the network, bf16 and 16 (bits) are faster on GPUs; 32 by default.
        threshold: Of networks of several classes a pixel: those of this probability are there; 0.5 by default.
        clear: Names of classes that the overlay leaves uncoloured and annotations out; background by default.
        skip_existing: Leave out what the output holds already, to go on after a stop; not with annotations.
        device: Such as cuda or cpu; auto takes the best there is.

    Returns:
        For JSON: "output", "pictures" and "videos" (how many were predicted), "skipped" (how many were there before),
        "shares" (class name -> share of the pixels, the mean over the files predicted that
        have data), "files" (a row for each, with
        its own shares), "failed" (file that could not be read to its end, or written -> why), "left_out" (how many
        other files the folders hold), "notes" (what was read, but perhaps not as expected). Of several processes the
        first tells this of all, the others of their share.

    Raises:
        UserError: an input or the model is missing, no input can be predicted, two inputs have one name, a format, a
            class to be left clear or the raw ids are unknown, or the output cannot be written, holds predictions of
            another model or has folders of these names that are no predictions. Files written before that are whole.
    """
    if unknown := [each for each in save or () if each not in FORMATS]:
        raise UserError(
            f"Predictions cannot be saved as {unknown[0]!r}; there are {', '.join(FORMATS)}, as separate words."
        )
    if skip_existing and save:
        raise UserError("Annotations are of all pictures at once; leave out either save or skip_existing.")
    sources, left_out = find_sources(inputs, output)
    require_writable(output / LEGEND)
    predictor = Predictor.from_pretrained(
        model,
        device,
        mode=mode,
        crop=crop,
        stride=stride,
        scales=scales,
        flip=flip,
        short_side=short_side,
        precision=precision,
        threshold=threshold,
    )
    if predictor.multilabel and (raw or not set(_BY_CLASS).issuperset(save or ())):
        raise UserError(
            f"A multi-label model gives a mask for each class: leave out raw; annotations are {', '.join(_BY_CLASS)}."
        )
    skipped = 0
    if skip_existing:
        kinds = [f"{LABELS}/{name}" for name in predictor.classes] if predictor.multilabel else [LABELS]
        wanted = [*((kind, ".png") for kind in kinds), *[(OVERLAY, ".jpg")] * overlay]
        wanted += [*[(CONFIDENCE, ".png")] * confidence, *[(PROBABILITIES, ".npy")] * probabilities]
        missing = [source for source in sources if not is_there(source, output, wanted)]
        sources, skipped = missing, len(sources) - len(missing)
    ids = predictor.raw_ids if raw else None
    if raw and ids is None:
        raise UserError(
            "The model does not know the ids of its training data's source: it had colours or names, or the model was "
            "saved without; leave out raw."
        )
    if strange := set(clear or ()) - set(predictor.classes):
        raise UserError(
            f"The model has no class {min(strange)!r} to leave clear; it has {', '.join(predictor.classes)}."
        )
    made = {"weights": digest(dict(predictor.network.state_dict())), "options": predictor.options, "raw": raw}
    note = json.dumps({"classes": predictor.classes, **made}, sort_keys=True)
    if not (output / LEGEND).exists():
        for kind in (LABELS, OVERLAY, CONFIDENCE, PROBABILITIES, *(save or ())):
            if (output / kind).exists():
                raise UserError(
                    f"{output / kind} is there already, and no {LEGEND} beside it tells that it holds predictions; "
                    "give another output."
                )
    elif read_note(output / LEGEND) != note:
        raise UserError(
            f"{output} holds predictions of another model or of other options, as its {LEGEND} tells; give another "
            "output or remove it."
        )
    uncoloured = ["background"] if clear is None else clear
    annotations = None
    if save:
        # Here, because it needs an extra.
        from cssformer.inference.annotations import AnnotationFiles

        look = (predictor.classes, predictor.colours, uncoloured, Path(model).name)
        annotations = AnnotationFiles(output, save, *look, tolerance, min_area)
    rows: dict[Source, dict[str, Any]] = {}
    failed: dict[Source, str] = {}
    facts: dict[Source, PictureFacts] = {}
    # No process writes before all have looked at what is there.
    asked = (note, output, overlay, confidence, probabilities, save, tolerance, min_area, uncoloured, *sources)
    agree(
        sha256("\n".join(map(str, asked)).encode()).hexdigest(),
        "The processes started together see different models, inputs or options; give all of them the same.",
    )
    own = share(sources)

    @contextmanager
    def failing(source: Source) -> Iterator[None]:
        """Keep what is wrong with a file for the end."""
        try:
            yield
        except UserError as error:
            if getattr(error.__cause__, "errno", None) in FULL:
                raise
            failed[source] = str(error)

    def read(index: int) -> tuple[Pixels, PictureFacts, bool] | None:
        """A picture, its facts, and whether it has a place on the Earth; None for what is not read as a whole."""
        source = own[index]
        with failing(source):
            page = None if source.is_video else tiff_head(source.path)
            if source.is_video or (page and page.width * page.height > rasters.LARGE):
                if page and page.orientation != 1:
                    raise UserError(
                        f"{source.path} is too large to be turned as its orientation says; store it upright."
                    )
                return None
            pixels, of_file = read_pixels(source.path, predictor.channels)
            # The place is that of the pixels as they are stored.
            placed = page is not None and page.is_georeferenced and page.orientation == 1
            if placed and predictor.multilabel:
                raise UserError(f"{source.path} is a GeoTIFF, whose place the masks of several classes would lose.")
            return rasters.with_mask(pixels, source.path, predictor.channels) if placed else pixels, of_file, placed
        return None

    def predictions() -> Iterator[tuple[Source, Prediction, bool]]:
        pictures = ahead(read, len(own), lambda picture: picture[0].pixels.nbytes if picture else 0)
        for source, picture in zip(progress("predict", own), pictures, strict=True):
            prediction = None
            with failing(source):
                if picture:
                    ranked = len(predictor.classes) if probabilities else 1
                    prediction = predictor(picture[0], confidence or bool(save), ranked)
                    facts[source] = picture[1]
                elif source in failed:
                    continue
                elif source.is_video:
                    overlaid = named(output / OVERLAY / source.place, ".mp4")
                    rows[source] = predict_video(predictor, source.path, overlaid, uncoloured)
                elif save or probabilities:
                    kind = "annotations" if save else "probabilities"
                    raise UserError(f"{source.path} is too large for {kind}; leave them out, or cut it.")
                elif predictor.multilabel:
                    raise UserError(f"{source.path} is too large for masks of several classes a pixel; cut it.")
                else:
                    parts = output / PARTS / source.place
                    rows[source] = predict_raster(predictor, source.path, outputs(source), parts, note)
                    facts[source] = PictureFacts(1, rows[source].pop("pages"), None)
            if not (output / LEGEND).exists() and (prediction or source in rows):
                # Before the labels, so that who goes on after a stop finds whose they are.
                entries = list(zip(predictor.classes, predictor.colours, strict=True))
                write_image(output / LEGEND, drawing.legend(entries, 900), note)
            if picture and prediction:
                yield source, prediction, picture[2]

    def outputs(source: Source) -> Outputs:
        labels, drawn, certain = (named(output / kind / source.place, ".tif") for kind in (LABELS, OVERLAY, CONFIDENCE))
        return Outputs(
            labels,
            drawn if overlay else None,
            certain if confidence else None,
            uncoloured,
            predictor.classes,
            predictor.colours,
            ids or range(len(predictor.classes)),
        )

    def write(found: tuple[Source, Prediction, bool]) -> tuple[Source, Prediction, dict[str, Any] | None]:
        source, prediction, placed = found
        with failing(source):
            if probabilities and (of_classes := prediction.probabilities) is not None:
                with atomic_write(named(output / PROBABILITIES / source.place, ".npy"), sync=False) as working:
                    np.save(working, of_classes.astype(np.float16))
            if placed:
                return source, prediction, write_georeferenced(prediction, source.path, outputs(source))
            look = uncoloured if overlay else None
            return source, prediction, _write(prediction, source.place, output, confidence, look, ids)
        return source, prediction, None

    def held(found: tuple[Source, Prediction, bool]) -> int:
        """The bytes of a prediction, about."""
        ranked = found[1].top_probabilities
        return 3 * found[1].image.nbytes + (0 if ranked is None else 4 * ranked.nbytes)

    for source, prediction, row in behind(write, predictions(), held):
        with failing(source):
            if row and annotations:
                annotations.add(prediction, source.path, source.place)
            if row:
                rows[source] = row
    for source in own:
        announced, frames = (rows.get(source, {}).get(key, 0) for key in ("announced_frames", "frames"))
        # The count of some containers is an estimate.
        if frames < announced - max(2, announced // 50):
            failed[source] = f"{source.path} ends after {frames} of {announced} frames."
    rows, failed, facts = (_of_all(found, sources) for found in (rows, failed, facts))
    if failed and not rows and rank() == 0:
        others = len(sources) - 1
        more = f" Nor can {others} other file{'' if others == 1 else 's'}." if others else ""
        raise UserError(next(iter(failed.values())) + more)
    if annotations:
        annotations.entries = _of_all(annotations.entries, [source.place for source in sources])
        if rank() == 0:
            annotations.close()
    videos = sum("frames" in row for row in rows.values())
    # Pictures without any data have no shares.
    known = sum(bool(row["shares"]) for row in rows.values())
    slid = [source for source, row in rows.items() if "windows" in row and predictor.options.get("mode") != "slide"]
    told = notes({source.path: each for source, each in facts.items()})
    if save and videos:
        told.append("Annotations are written of pictures alone, so the videos have none.")
    if slid:
        height, width = rows[slid[0]]["windows"]
        told.append(
            f"A window of {width}x{height} pixels slid over {slid[0].path}, too large to be looked at as a whole"
            f"{f', and over {len(slid) - 1} more' if len(slid) > 1 else ''}; --mode slide --crop sets another."
        )
    return {
        "output": str(output),
        "pictures": len(rows) - videos,
        "videos": videos,
        "skipped": skipped,
        "shares": {
            name: sum(row["shares"].get(name, 0) for row in rows.values()) / max(1, known) for name in predictor.classes
        },
        "files": [{"input": str(source.path), **row} for source, row in rows.items()],
        "failed": {str(source.path): why for source, why in failed.items()},
        "left_out": left_out,
        "notes": told,
    }


def _of_all(found: dict[Key, Value], order: Sequence[Key]) -> dict[Key, Value]:
    """What all processes found, for the first of them, in this order."""
    union = {key: value for each in gather(found) for key, value in each.items()}
    return {key: union[key] for key in order if key in union}


def _write(
    prediction: Prediction,
    place: Path,
    output: Path,
    confidence: bool,
    clear: Sequence[str] | None,
    ids: Sequence[int] | None,
) -> dict[str, Any]:
    """Write what was asked for, an overlay unless ``clear`` is None; the row of the picture."""
    labels = output / LABELS if prediction.multilabel else named(output / LABELS / place, ".png")
    if prediction.multilabel:
        prediction.save_masks(labels, place.as_posix())
    else:
        prediction.save(labels, ids)
    if clear is not None:
        write_image(named(output / OVERLAY / place, ".jpg"), prediction.overlay(clear=clear))
    if confidence and prediction.confidence is not None:
        write_image(named(output / CONFIDENCE / place, ".png"), as_grey(prediction.confidence))
    return {"labels": str(labels), "shares": prediction.shares}
