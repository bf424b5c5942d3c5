"""The commands ``cssformer score`` and ``cssformer compare``."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from cssformer.commands.command import Command, require_report, write_json
from cssformer.commands.evaluate import add_by, add_scoring, counts_regions, tell_scores
from cssformer.utils.atomic import atomic_json
from cssformer.utils.console import show
from cssformer.utils.errors import UserError
from cssformer.utils.options import add_device
from cssformer.weights.run_files import SCORES

if TYPE_CHECKING:
    from cssformer.metrics import Evaluation, Predictions
    from cssformer.metrics.label_files import Truth

COMPARISON = "comparison.json"
TRUTH = ("classes", "class_file", "ignore", "label_suffix")
"""Options of a truth that is no prepared folder."""


def _add_truth(parser: ArgumentParser) -> None:
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


def _truth(options: Namespace) -> "Truth":
    from cssformer.metrics.label_files import LabelSet, open_truth

    truth = open_truth(options.truth, options.split, **{name: options[name] for name in TRUTH})
    masks = isinstance(truth, LabelSet) and options.output is not None
    if masks and options.output.resolve().is_relative_to(truth.root.resolve()):
        # The pictures of a report would be label maps to whoever scores next.
        raise UserError(f"{options.output} lies in {options.truth}, which holds the truth; give another output.")
    return truth


def _add_score(parser: ArgumentParser) -> None:
    parser.add_argument(
        "predictions",
        type=Path,
        help="A folder of PNG, TIFF, BMP, .npy or .npz files with the class of each pixel, one .npz or .npy of all, or "
        "a COCO JSON (panoptic or run lengths).",
    )
    parser.add_argument("truth", type=Path, help="The true classes: a prepared folder, or what predictions may be.")
    parser.add_argument("--output", type=Path | None, help="Write scores, tables and pictures into this folder.")
    add_by(parser)
    _add_truth(parser)


def _tell_doubt(said: "Predictions") -> None:
    if doubt := said.doubt():
        print(f"note: {doubt}", file=sys.stderr)


def _score(options: Namespace) -> int:
    from cssformer.data import SegmentationFolder
    from cssformer.metrics import Predictions, evaluate_predictions
    from cssformer.metrics.scoring import groups_of

    require_report(options.output, SCORES)
    truth = _truth(options)
    groups = groups_of(truth.names, options.group_by)
    said = Predictions(options.predictions, truth, options.raw)
    evaluation = evaluate_predictions(
        said, truth, dilation_ratio=options.dilation_ratio, regions=counts_regions(options)
    )
    about = {"model": str(options.predictions), "data": str(options.truth)}
    if isinstance(truth, SegmentationFolder):
        about["split"] = truth.split
    tell_scores(replace(evaluation, about=about, groups=groups), truth, options)
    _tell_doubt(said)
    return 0


def _add_compare(parser: ArgumentParser) -> None:
    parser.add_argument("first", type=str, help="A: a model, as of `evaluate`, or with TRUTH its predictions.")
    parser.add_argument("second", type=str, help="B: the same.")
    parser.add_argument("truth", type=Path | None, nargs="?", help="The truth of two predictions, as of `score`.")
    parser.add_argument("--data", type=Path | None, help="A prepared data folder for two models; by default their own.")
    parser.add_argument("--output", type=Path | None, help="Write comparison.json and differences.png there.")
    _add_truth(parser)
    add_device(parser)


def _compare(options: Namespace) -> int:
    from cssformer.commands.studies import know_baselines
    from cssformer.data.image_io import write_image
    from cssformer.metrics import Predictions, evaluate, evaluate_predictions
    from cssformer.metrics.compare import Chosen, Comparison, differences_sheet, require_comparable
    from cssformer.metrics.scoring import groups_of
    from cssformer.training.score import about, open_model

    require_report(options.output, COMPARISON)
    split = options.split or "val"
    if options.truth is None and (needless := next((name for name in (*TRUTH, "raw") if options[name]), None)):
        raise UserError(f"Two models are compared on prepared data; leave out --{needless}, or give TRUTH.")
    both: list[tuple[Callable[[Any], Evaluation], Any]] = []
    read: list[Predictions] = []
    if options.truth is None:
        know_baselines()
        for model in (options.first, options.second):
            predictor, data, folder = open_model(model, options.data, split, options.device)
            both.append((partial(evaluate, predictor, dilation_ratio=options.dilation_ratio), data))
            print(f"{'AB'[len(both) - 1]}: {model} on {about(model, folder, split)['data']}")
    elif options.data is not None:
        raise UserError("Give --data for two models, or TRUTH for two predictions, not both.")
    else:
        truth = _truth(options)
        for path in map(Path, (options.first, options.second)):
            read.append(said := Predictions(path, truth, options.raw))
            both.append((partial(evaluate_predictions, said, dilation_ratio=options.dilation_ratio), truth))
            print(f"{'AB'[len(both) - 1]}: {path} on {options.truth}")
    groups = [groups_of(data.names, options.group_by) for _, data in both]
    require_comparable(*(data for _, data in both))
    # What only shows when it is scored shows by one picture of each.
    for score, data in both:
        score(Chosen(data, [0]))
    evaluations = [score(data) for score, data in both]
    named = zip(evaluations, (options.first, options.second), groups, strict=True)
    comparison = Comparison(*(replace(each, about={"model": name}, groups=own) for each, name, own in named))
    for table in comparison.tables():
        print()
        show(table)
    print()
    print(*comparison.sentences(), sep="\n")
    for said in read:
        _tell_doubt(said)
    if options.output is not None:
        picture = differences_sheet(comparison, both[0][1], [score for score, _ in both])
        write_image(options.output / "differences.png", picture)
        atomic_json(options.output / COMPARISON, comparison.as_dict())
    write_json(options, comparison.as_dict())
    return 0


SCORE = Command("Score label files of any program.", _add_score, _score)
COMPARE = Command("Tell whether one of two models or predictions is better.", _add_compare, _compare)
