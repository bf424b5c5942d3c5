"""The commands ``cssformer score`` and ``compare``, and what they share with ``evaluate``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cssformer.utils.atomic import require_writable
from cssformer.utils.command import Command, write_json
from cssformer.utils.console import show
from cssformer.utils.options import Share

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from cssformer.data.stream import Samples
    from cssformer.metrics import Evaluation
    from cssformer.metrics.label_files import Truth


def add_scoring(parser: "ArgumentParser") -> None:
    """What is counted, beside the classes."""
    parser.add_argument(
        "--dilation_ratio", type=Share, default=0.02, help="Width of Boundary IoU's bands, of the picture's diagonal."
    )
    parser.add_argument(
        "--group_by",
        type=str | None,
        help="A regular expression; pictures in whose names it finds the same text, such as frames of a video, count "
        "as one for the 95 % interval.",
    )


def show_scores(evaluation: "Evaluation") -> None:
    """Print the table of classes and the scores of all."""
    show(evaluation.scores.table(evaluation.info.classes), ("class", "IoU %", "accuracy %", "pixels %"))
    print()
    show(evaluation.summary())


def tell_scores(evaluation: "Evaluation", data: "Samples", options: "Namespace") -> None:
    """Print and write an evaluation as ``--group_by``, ``--output`` and ``--json`` say."""
    from cssformer.metrics import write_report

    if options.group_by is not None:
        evaluation = evaluation.grouped(options.group_by)
    show_scores(evaluation)
    if options.output is not None:
        write_report(evaluation, data, options.output)
    write_json(options, evaluation.as_dict())


def _add_truth(parser: "ArgumentParser") -> None:
    from cssformer.metrics.label_files import open_truth

    parser.add_argument("--split", type=str | None, help="Of a prepared folder: which split is scored; val by default.")
    parser.add_argument("--classes", type=list[str] | None, help="Names of the classes, in the order of their ids.")
    parser.add_argument(
        "--ignore", type=list[str] | None, help="Ids, or names of COCO's categories, that are no class; 255 is anyway."
    )
    parser.add_function_arguments(open_truth, skip={"path", "split", "classes", "ignore"})
    parser.add_argument(
        "--raw",
        type=bool,
        default=False,
        help="The predictions hold the ids of a prepared folder's source, or of COCO's categories, not class indices.",
    )
    add_scoring(parser)


def _truth(options: "Namespace") -> "Truth":
    from cssformer.metrics.label_files import open_truth

    given = ("classes", "class_file", "ignore", "label_suffix")
    return open_truth(options.truth, options.split, **{name: options[name] for name in given})


def _add_score(parser: "ArgumentParser") -> None:
    parser.add_argument(
        "predictions",
        type=Path,
        help="A folder of PNG, TIFF, BMP, .npy or .npz files with the class of each pixel, one .npz or .npy of all, or "
        "a COCO JSON (panoptic or run lengths).",
    )
    parser.add_argument("truth", type=Path, help="The true classes: a prepared folder, or what predictions may be.")
    parser.add_argument("--output", type=Path | None, help="Write scores, tables and pictures into this folder.")
    _add_truth(parser)


def _score(options: "Namespace") -> int:
    from cssformer.data import SegmentationFolder
    from cssformer.metrics import Predictions, evaluate_predictions
    from cssformer.metrics.report import SCORES

    if options.output is not None:
        # Not only after hours of work.
        require_writable(options.output / SCORES)
    truth = _truth(options)
    evaluation = evaluate_predictions(
        Predictions(options.predictions, truth, options.raw), truth, dilation_ratio=options.dilation_ratio
    )
    about = {"model": str(options.predictions), "data": str(options.truth)}
    if isinstance(truth, SegmentationFolder):
        about["split"] = truth.split
    tell_scores(replace(evaluation, about=about), truth, options)
    return 0


SCORE: dict[str, Command] = {
    "score": Command("Score label files of any program.", _add_score, _score),
}
