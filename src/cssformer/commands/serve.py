"""The command ``cssformer serve``."""

import sys

from jsonargparse import ArgumentParser, Namespace

from cssformer.commands.command import LOADING, Command, arguments, write_json
from cssformer.commands.models import MODEL, note_unfinished
from cssformer.commands.studies import know_baselines
from cssformer.commands.views import VIEWS, add_views


def _add_serve(parser: ArgumentParser) -> None:
    from cssformer.serve.serve import serve

    parser.add_argument("model", type=str, help=MODEL)
    parser.add_function_arguments(serve, skip={"model", "views", "begun"})
    add_views(parser)


def _serve(options: Namespace) -> int:
    from cssformer.serve.serve import serve

    note_unfinished(options.model)
    know_baselines()

    def begun(address: str) -> None:
        print(f"{options.model} is served at {address}, for programs described at {address}docs; Ctrl-C ends.")
        if options.host not in ("127.0.0.1", "localhost", "::1") and options.token is None:
            print("note: everyone who reaches this machine may use it; --token WORD asks for a word.", file=sys.stderr)
        sys.stdout.flush()
        write_json(options, {"address": address})

    given = arguments(options)
    serve(views={name: given.pop(name) for name in VIEWS}, begun=begun, **given)
    return 0


SERVE = Command("Serve a page for people and an endpoint for programs.", _add_serve, _serve, begins=LOADING)
