"""The command ``cssformer predict``."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from cssformer.commands.command import LOADING, Command, arguments, write_json
from cssformer.commands.models import MODEL, note_unfinished
from cssformer.commands.studies import know_baselines
from cssformer.commands.views import VIEWS, add_views, note_cost
from cssformer.utils.console import counted, percentage, show
from cssformer.utils.processes import of_first, rank


def _add_predict(parser: ArgumentParser) -> None:
    from cssformer.inference.files import predict_files

    parser.add_argument("model", type=str, help=MODEL)
    parser.add_argument(
        "inputs",
        type=Path,
        nargs="+",
        help="Pictures, folders, videos, quoted patterns; - reads their paths from the standard input, one a line.",
    )
    parser.add_function_arguments(predict_files, skip={"model", "inputs", *VIEWS})
    add_views(parser)


def _predict(options: Namespace) -> int:
    from cssformer.inference.files import predict_files

    note_unfinished(options.model)
    note_cost(options)
    know_baselines()
    if Path("-") in options.inputs:
        # torchrun gives one standard input to all processes, of which the first to read would leave the others none.
        listed = of_first(lambda: [Path(line) for line in sys.stdin.read().splitlines() if line])
        options.inputs = [*(path for path in options.inputs if path != Path("-")), *listed]
    done = predict_files(**arguments(options))
    if rank() > 0:
        # The first process tells of all.
        return 1 if done["failed"] else 0
    rows = sorted(((part, name) for name, part in done["shares"].items() if part), reverse=True)
    show([("class", "share"), *((name, percentage(part)) for part, name in rows)])
    written = [counted(done[f"{kind}s"], kind) for kind in ("picture", "video") if done[f"{kind}s"]]
    print(f"{' and '.join(written) or 'nothing'} written to {done['output']}")
    if done["skipped"]:
        print(f"{counted(done['skipped'], 'file')} skipped, predicted before")
    if done["left_out"]:
        print(
            f"{counted(sum(done['left_out'].values()), 'other file')} left out ({', '.join(sorted(done['left_out']))})"
        )
    for note in done["notes"]:
        print(f"note: {note}", file=sys.stderr)
    for sentence in done["failed"].values():
        print(f"error: {sentence}", file=sys.stderr)
    write_json(options, done)
    return 1 if done["failed"] else 0


PREDICT = Command("Label pictures, folders of pictures and videos.", _add_predict, _predict, begins=LOADING)
