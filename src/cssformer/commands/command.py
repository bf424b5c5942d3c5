"""What a command of the command line is, and what all of them do."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from cssformer.utils.atomic import atomic_json, require_writable

LOADING = "Loading PyTorch and the network ..."


@dataclass(frozen=True)
class Command:
    """One word of the command line: what its help says, its options, and what it does (returning the exit code)."""

    summary: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    presets: Callable[[Namespace], list[str]] | None = None
    """Words for those who give none, by the options that they do give."""
    begins: str = ""
    """What a terminal is told at once, because the first imports take seconds."""


def arguments(options: Namespace) -> dict[str, Any]:
    """The options that are arguments of the command's function."""
    return {name: value for name, value in options.as_dict().items() if name != "json"}


def require_report(output: Path | None, name: str) -> None:
    """Raise UserError now, not only after hours of work, if a report's file cannot be written into the folder."""
    from cssformer.data.dataset import require_outside_splits

    if output is not None:
        require_outside_splits(output)
        require_writable(output / name)


def write_json(options: Namespace, result: dict[str, Any]) -> None:
    """Write a command's result where ``--json`` says, if it is given."""
    if options.json is not None:
        atomic_json(options.json, result)
