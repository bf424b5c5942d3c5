"""The command ``cssformer evaluate``, and the options and tables of scores that it shares."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from cssformer.commands.command import LOADING, Command, require_report, write_json
from cssformer.commands.models import MODEL, note_unfinished
from cssformer.commands.studies import know_baselines
from cssformer.commands.views import VIEWS, add_views, note_cost
from cssformer.utils.console import show
from cssformer.utils.errors import UserError
from cssformer.utils.options import Share
from cssformer.weights.run_files import SCORES

if TYPE_CHECKING:
    from cssformer.data.dataset import Samples
    from cssformer.metrics import Evaluation


def add_scoring(parser: ArgumentParser) -> None:
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


def add_by(parser: ArgumentParser) -> None:
    """The option ``--by``, tables of :mod:`cssformer.metrics.breakdown`."""
    from cssformer.metrics.breakdown import By

    parser.add_argument(
        "--by",
        type=list[By] | None,
        help="Tables of where the errors are: by size of the regions, by class, by distance from the boundaries.",
    )


def counts_regions(options: Namespace) -> bool:
    """Whether one of the tables is of regions."""
    return bool({"size", "class"} & set(options.by or ()))


def show_scores(evaluation: "Evaluation") -> None:
    """Print the table of classes and the scores of all."""
    heading = ("class", "IoU %", "Dice %", "accuracy %", "pixels %")
    show([heading, *evaluation.scores.table(evaluation.info.classes)])
    print()
    show(evaluation.summary())


def tell_scores(evaluation: "Evaluation", data: "Samples", options: Namespace) -> None:
    """Print and write an evaluation as ``--output`` and ``--json`` say."""
    from cssformer.metrics import write_report
    from cssformer.metrics.breakdown import table

    show_scores(evaluation)
    for by in options.by or ():
        print()
        show(table(evaluation, by))
    if options.output is not None:
        write_report(evaluation, data, options.output)
    write_json(options, evaluation.as_dict())


def _add_evaluate(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=str, help=MODEL)
    parser.add_argument("--data", type=Path | None, help="A prepared data folder; by default the run's own.")
    parser.add_argument("--split", type=str, default="val", help="Which split is scored.")
    parser.add_argument("--output", type=Path | None, help="Write scores, tables and pictures into this folder.")
    parser.add_argument(
        "--submission",
        type=Path | None,
        help="Write PNGs with the source's ids into this folder, as test servers take them; needs no labels.",
    )
    add_views(parser)
    add_scoring(parser)
    add_by(parser)


def _evaluate(options: Namespace) -> int:
    from cssformer.data import SegmentationFolder
    from cssformer.metrics import evaluate, submit
    from cssformer.metrics.scoring import groups_of
    from cssformer.training.score import about, open_model

    know_baselines()
    require_report(options.output, SCORES)
    note_unfinished(options.model)
    note_cost(options)
    views = {name: options[name] for name in VIEWS}
    predictor, data, folder = open_model(options.model, options.data, options.split, **views)
    if options.submission is not None and isinstance(data, SegmentationFolder) and data.labels is None:
        if options.output is not None:
            raise UserError(f"The split {options.split} has no labels, so there are no scores for --output.")
        count = submit(predictor, data, options.submission)
        print(f"{count} files written to {options.submission}; without labels there is no score.")
        write_json(options, {"submission": str(options.submission), "pictures": count})
        return 0
    groups = groups_of(data.names, options.group_by)
    evaluation = evaluate(
        predictor,
        data,
        dilation_ratio=options.dilation_ratio,
        regions=counts_regions(options),
        submission=options.submission,
    )
    scored = about(options.model, folder, options.split)
    tell_scores(replace(evaluation, about=scored, groups=groups), data, options)
    return 0


EVALUATE = Command("Score a trained network.", _add_evaluate, _evaluate, begins=LOADING)
