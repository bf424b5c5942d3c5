"""The command ``cssformer check``."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from cssformer.commands.command import Command, write_json
from cssformer.utils.atomic import require_writable
from cssformer.utils.console import counted, show
from cssformer.utils.errors import UserError
from cssformer.utils.options import add_device


def _add_check(parser: ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="A prepared data folder.")
    parser.add_argument(
        "--model",
        type=str | None,
        help="A run folder, a model folder, a bundled model or a Hugging Face model id: rank the labels that it "
        "contradicts with confidence.",
    )
    parser.add_argument("--output", type=Path | None, help="Write these as a table and a sheet into this folder.")
    parser.add_argument("--html", type=Path | None, help="Write all that is told, with pictures, into this one file.")
    add_device(parser)


def _check(options: Namespace) -> int:
    from cssformer.data.check import check

    if options.output is not None and options.model is None:
        raise UserError("--output takes what --model finds; give a model too.")
    if options.html is not None and options.html.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--html writes a page, but {options.html} does not end in .html.")
    for path in (options.html, options.output and options.output / "suspects.csv"):
        if path is not None:
            require_writable(path)
    predictor = None
    if options.model is not None:
        from cssformer.commands.studies import know_baselines
        from cssformer.inference import Predictor

        # Before the long reading of all files.
        know_baselines()
        predictor = Predictor.from_pretrained(options.model, options.device)
    report = check(options.data)
    show(report.table())
    show(report.channel_table())
    for sentence in report.errors:
        print(f"error: {sentence}")
    for sentence in report.warnings:
        print(f"warning: {sentence}")
    print(f"{counted(len(report.errors), 'error')}, {counted(len(report.warnings), 'warning')}.")
    result, shown = report.as_dict(), []
    if predictor is not None and report.errors:
        print("note: labels are compared with the model when there are no errors.", file=sys.stderr)
    elif predictor is not None:
        from cssformer.metrics.suspects import SHOWN, find_suspects, suspect_tiles, write_suspects

        info = report.info
        suspects = find_suspects(predictor, options.data)
        tiles = [suspect_tiles(each, predictor, info) for each in suspects[:SHOWN]]
        captions = [each.caption(info) for each in suspects[:SHOWN]]
        for number, caption in enumerate(captions[:10], 1):
            print(f"suspect {number}: {caption}")
        print(f"{counted(len(suspects), 'label')} contradicted by the model.")
        if options.output is not None:
            write_suspects(suspects, tiles, info, options.output)
        result["suspects"] = [each.as_dict(info) for each in suspects]
        shown = list(zip(captions, tiles, strict=True))
    if options.html is not None:
        from cssformer.visualize.check_page import write_page

        write_page(report, options.data, options.html, shown)
        print(f"Page: {options.html}")
    write_json(options, result)
    return 1 if report.errors else 0


CHECK = Command("Read every file of a data folder and tell what is wrong.", _add_check, _check)
