"""The command line: argument parsing only. Nothing heavy is imported before a command is known."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cssformer.errors import UserError
from cssformer.options import nearest, parse
from cssformer.training.recipe import Recipe

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.table import Table


@dataclass(frozen=True)
class Command:
    """One word of the command line: what its help says, its options, and what it does (returning the exit code)."""

    summary: str
    add_arguments: "Callable[[ArgumentParser], None]"
    run: "Callable[[Namespace], int]"


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 well, 1 `check` found errors, 2 a user's mistake, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        words, command = _find_command(arguments)
        if command is None:
            return 0
        return command.run(_parse(command, " ".join(words), arguments[len(words) :]))
    except UserError as error:
        print(f"cssformer: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cssformer: interrupted.", file=sys.stderr)
        return 130


def _find_command(arguments: list[str]) -> tuple[list[str], Command | None]:
    """The command that the first words name, or None after help or the version was printed."""
    import cssformer

    if arguments[:1] == ["--version"]:
        print(f"cssformer {cssformer.__version__}")
        return [], None
    for count in (1, 2):
        words = arguments[:count]
        if " ".join(words) in COMMANDS:
            return words, COMMANDS[" ".join(words)]
    asked = not arguments or arguments[0] in ("-h", "--help") or arguments[1:2] in (["-h"], ["--help"])
    if asked:
        width = max(map(len, COMMANDS))
        print("usage: cssformer COMMAND ...\n\nSemantic segmentation with the Cross-Scale Sampling Transformer.\n")
        for name, command in COMMANDS.items():
            print(f"  {name:{width}}  {command.summary}")
        print("\n`cssformer COMMAND --help` tells a command's options.")
        return [], None
    near = nearest(" ".join(arguments[:2]), list(COMMANDS))
    raise UserError(f"There is no command {arguments[0]!r}; the nearest one is `cssformer {near}`.")


def _parse(command: Command, name: str, arguments: list[str]) -> "Namespace":
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=f"cssformer {name}", description=command.summary, exit_on_error=False)
    command.add_arguments(parser)
    parser.add_argument("--json", type=Path | None, default=None, help="Also write the result to this JSON file.")
    return parse(parser, arguments, f"cssformer {name}")


def _finish(options: "Namespace", table: "Table | None", result: Any) -> None:
    """Print the table, and write the result as JSON where asked."""
    from rich.console import Console

    from cssformer.files import replacing

    if table is not None:
        Console().print(table)
    if options.json is not None:
        with replacing(options.json) as path:
            path.write_text(json.dumps(result, indent=2) + "\n")


def _add_train(parser: "ArgumentParser") -> None:
    parser.add_argument("--resume", action="store_true", help="Continue the interrupted run in --output.")
    parser.add_argument("--config", action="config", help="A YAML recipe; options on the command line go before it.")
    parser.add_class_arguments(Recipe)


def _train(options: "Namespace") -> int: ...


COMMANDS: dict[str, Command] = {
    "train": Command("Train a network and score it.", _add_train, _train),
}
