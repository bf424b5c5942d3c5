"""The commands ``cssformer study``, whose code lies beside the package in a clone, not in an installed one."""

import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from cssformer.commands.command import Command, write_json
from cssformer.utils.errors import UserError
from cssformer.utils.stop import Interrupted


def know_baselines() -> None:
    """Let the networks of studies be loaded by name, where there are studies."""
    with suppress(UserError):
        _from_studies("baselines.networks")


def _from_studies(module: str) -> Any:
    clone = Path(__file__).resolve().parents[3]
    if not (clone / "studies" / "__init__.py").is_file():
        raise UserError("Studies are not part of the installed package; clone the repository and install it with -e.")
    if str(clone) not in sys.path:
        sys.path.append(str(clone))
    return import_module(f"studies.{module}")


def _study(kind: str, summary: str) -> Command:
    def run(options: Namespace) -> int:
        try:
            write_json(options, _from_studies("cli").run(options, kind))
        except Interrupted as interrupted:
            print("Stopped; the same command goes on.", file=sys.stderr)
            return interrupted.code
        return 0

    return Command(summary, lambda parser: _from_studies("cli").add_arguments(parser, kind), run)


STUDIES: dict[str, Command] = {
    "study modules": _study("modules", "Train with and without the paper's modules."),
    "study points": _study("points", "Train with several numbers of points."),
    "study decoders": _study("decoders", "Train the decoder among its peers."),
    "study grid": _study("grid", "Train with every combination of some options' values."),
}
