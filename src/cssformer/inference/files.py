"""Pictures, folders of pictures and videos, labelled and written out."""

import csv
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from cssformer.data.image_io import read_note
from cssformer.data.picture_facts import notes
from cssformer.inference.pipeline import Pipeline
from cssformer.inference.predictor import Predictor
from cssformer.inference.sources import CONFIDENCE, LABELS, LEGEND, OVERLAY, PROBABILITIES, find_sources, is_there
from cssformer.inference.views import Options
from cssformer.utils.atomic import atomic_csv, require_writable
from cssformer.utils.console import counted
from cssformer.utils.digest import digest
from cssformer.utils.errors import UserError
from cssformer.utils.processes import agree, gather, rank, share

Key = TypeVar("Key")
Value = TypeVar("Value")

FORMATS = ("coco", "geojson", "labelme", "label-studio", "cvat", "yolo")
"""What :class:`cssformer.inference.annotations.AnnotationFiles` writes."""
_BY_CLASS = ("coco", "geojson", "label-studio", "yolo")
"""The formats whose shapes may overlap."""
_COLUMNS = ("picture", "pixels", "pixel_m2")
"""Of a table, the classes' between them."""


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
    clear: list[str] | None = None,
    skip_existing: bool = False,
    table: Path | None = None,
    **views: Any,
) -> dict[str, Any]:
    """Predict pictures, folders of pictures and videos, and write what was found.

    Below ``output`` a picture becomes ``labels/NAME.png`` (class indices with a palette; of a multi-label model
    ``labels/CLASS/NAME.png``, 255 where the class is), ``overlay/NAME.jpg``, ``confidence/NAME.png`` (255 is certain)
    and ``probabilities/NAME.npy`` (float16 (C, H, W)); a video becomes ``overlay/NAME.mp4``; ``legend.png`` shows the
    colours. TIFFs with a place on the Earth, and those larger than memory, become TIFFs of these names
    (:mod:`cssformer.inference.rasters`). Folders are searched to the bottom, links too, and keep their layout; hidden
    files are left out, and the labels of prepared data. A file that cannot be read or written does not stop the others.
    A folder of predictions is added to, if they are of the same model and options: the legend keeps these. Annotations
    of ``save`` are described at :class:`cssformer.inference.annotations.AnnotationFiles`.

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
        clear: Names of classes that the overlay leaves uncoloured and annotations out; background by default.
        skip_existing: Leave out what the output holds already, to go on after a stop; not with annotations or a table.
        table: Also write this CSV file, a row for each picture: its pixels with data, those of each class, and of a
            GeoTIFF the square metres of a pixel; not of videos.
        **views: The device, and options of :class:`cssformer.inference.views.Options`, as of :class:`Predictor`.

    Returns:
        For JSON: "output", "pictures" and "videos" (how many were predicted), "skipped" (how many were there before),
        "shares" (class name -> share of the pixels, the mean over the files predicted that have data), "files" (a row
        for each, with its own shares and, but of videos, "known", how many pixels have data, and "pixels", how many of
        them each class; of a GeoTIFF "pixel_m2"), "failed" (file that could not be read to its end, or written -> why),
        "left_out" (suffix -> how many other files with it the folders hold), "notes" (what was read, but perhaps not as
        expected). Of several processes the first tells this of all, the others of their share.

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
    if table:
        if skip_existing:
            raise UserError("A table is of all pictures at once; leave out either table or skip_existing.")
        if table.suffix.lower() != ".csv":
            raise UserError(f"The table is CSV; give it a file that ends in .csv, not {table}.")
        require_writable(table)
    sources, left_out = find_sources(inputs, output)
    if "yolo" in (save or ()) and (kept := [source.path for source in sources if source.keeps_suffix]):
        raise UserError(
            f"YOLO knows pictures by their names without suffix, which {kept[0]} has in common with another; rename "
            "one, or leave yolo out."
        )
    alone = len(sources) == 1
    require_writable(output / LEGEND)
    predictor = Predictor.from_pretrained(model, **views)
    if predictor.multilabel and (raw or not set(_BY_CLASS).issuperset(save or ())):
        raise UserError(
            f"A multi-label model gives a mask for each class: leave out raw; annotations are {', '.join(_BY_CLASS)}."
        )
    if raw and predictor.raw_ids is None:
        raise UserError(
            "The model does not know the ids of its training data's source: it had colours or names, or the model was "
            "saved without; leave out raw."
        )
    if strange := set(clear or ()) - set(predictor.classes):
        raise UserError(
            f"The model has no class {min(strange)!r} to leave clear; it has {', '.join(predictor.classes)}."
        )
    if table and (taken := {*_COLUMNS} & {*predictor.classes}):
        raise UserError(
            f"The table has a column {min(taken)!r} of its own, so that the class of this name cannot have one; --json "
            "tells the same."
        )
    skipped = 0
    if skip_existing:
        kinds = [f"{LABELS}/{name}" for name in predictor.classes] if predictor.multilabel else [LABELS]
        wanted = [*((kind, ".png") for kind in kinds), *[(OVERLAY, ".jpg")] * overlay]
        wanted += [*[(CONFIDENCE, ".png")] * confidence, *[(PROBABILITIES, ".npy")] * probabilities]
        missing = [source for source in sources if not is_there(source, output, wanted)]
        sources, skipped = missing, len(sources) - len(missing)
    note = _note(predictor, raw)
    _require_own(output, note, save or ())
    uncoloured = ["background"] if clear is None else clear
    annotations = None
    if save:
        # Here, because it needs an extra.
        from cssformer.inference.annotations import AnnotationFiles

        look = (predictor.classes, predictor.colours, uncoloured, Path(model).name)
        annotations = AnnotationFiles(output, save, *look, tolerance, min_area)
    # No process writes before all have looked at what is there.
    asked = (note, output, overlay, confidence, probabilities, save, tolerance, min_area, uncoloured, *sources)
    agree(
        sha256("\n".join(map(str, asked)).encode()).hexdigest(),
        "The processes started together see different models, inputs or options; give all of them the same.",
    )
    ids = predictor.raw_ids if raw else None
    done = Pipeline(predictor, output, note, overlay, confidence, probabilities, uncoloured, ids, annotations, alone)
    done.run(share(sources))
    done.rows, done.failed, done.facts = (_of_all(found, sources) for found in (done.rows, done.failed, done.facts))
    if done.failed and not done.rows and rank() == 0:
        others = len(sources) - 1
        more = f" Nor can {counted(others, 'other file')}." if others else ""
        raise UserError(next(iter(done.failed.values())) + more)
    if annotations:
        annotations.entries = _of_all(annotations.entries, [source.place for source in sources])
        if rank() == 0:
            annotations.close()
    if table and rank() == 0:
        _write_table(table, done)
    return {**_report(done), "skipped": skipped, "left_out": left_out}


def _report(done: Pipeline) -> dict[str, Any]:
    """What was found in all files, and what there is to tell of them."""
    rows, classes = done.rows, done.predictor.classes
    videos = sum("frames" in row for row in rows.values())
    # Pictures without any data have no shares.
    known = sum(bool(row["shares"]) for row in rows.values())
    told = notes({source.path: each for source, each in done.facts.items()})
    if done.annotations and videos:
        told.append("Annotations are written of pictures alone, so the videos have none.")
    whole = done.predictor.options.get("mode") != "slide"
    if slid := [source.path for source, row in rows.items() if whole and "windows" in row]:
        height, width = next(row["windows"] for row in rows.values() if "windows" in row)
        told.append(
            f"A window of {width}x{height} pixels slid over {slid[0]}, too large to be looked at as a whole"
            f"{f', and over {len(slid) - 1} more' if len(slid) > 1 else ''}; --mode slide --crop sets another."
        )
    return {
        "output": str(done.output),
        "pictures": len(rows) - videos,
        "videos": videos,
        "shares": {name: sum(row["shares"].get(name, 0) for row in rows.values()) / max(1, known) for name in classes},
        "files": [{"input": str(source.path), **row} for source, row in rows.items()],
        "failed": {str(source.path): why for source, why in done.failed.items()},
        "notes": told,
    }


def _write_table(path: Path, done: Pipeline) -> None:
    classes = done.predictor.classes
    pictures = {source: row for source, row in done.rows.items() if "pixels" in row}
    with atomic_csv(path) as file:
        writer = csv.writer(file)
        writer.writerow((*_COLUMNS[:2], *classes, *_COLUMNS[2:]))
        for source, row in pictures.items():
            pixels = (row["pixels"].get(name, 0) for name in classes)
            writer.writerow((source.path, row["known"], *pixels, row.get("pixel_m2")))


def _note(predictor: Predictor, raw: bool) -> str:
    """What tells the predictions of a folder from those of other models and options."""
    weights, options = digest(dict(predictor.network.state_dict())), vars(Options(**predictor.options))
    made = {"classes": predictor.classes, "weights": weights, "options": options, "raw": raw}
    return json.dumps(made, sort_keys=True)


def _require_own(output: Path, note: str, save: Sequence[str]) -> None:
    """Raise UserError if a folder holds other predictions than those of the note, or what are none."""
    if (output / LEGEND).exists():
        if read_note(output / LEGEND) != note:
            raise UserError(
                f"{output} holds predictions of another model or of other options, as its {LEGEND} tells; give another "
                "output or remove it."
            )
        return
    for kind in (LABELS, OVERLAY, CONFIDENCE, PROBABILITIES, *save):
        if (output / kind).exists():
            raise UserError(
                f"{output / kind} is there already, and no {LEGEND} beside it tells that it holds predictions; give "
                "another output."
            )


def _of_all(found: dict[Key, Value], order: Sequence[Key]) -> dict[Key, Value]:
    """What all processes found, for the first of them, in this order."""
    union = {key: value for each in gather(found) for key, value in each.items()}
    return {key: union[key] for key in order if key in union}
