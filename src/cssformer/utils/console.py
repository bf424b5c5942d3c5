"""What people read in the terminal: names and paths come out as they are, never as markup."""

import logging
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from rich.console import Console


def show(table: Sequence[Sequence[str]]) -> None:
    """Print a table, one line a row; its heading, if it has one, is the first."""
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)).rstrip())


def percentage(value: float) -> str:
    """A share from 0 to 1 in percent. What is there at all never looks like nothing, nor nearly all like all."""
    if 0 < value < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= value < 1:
        return "> 99.9 %"
    return f"{100 * value:.1f} %" if 0 < value < 1 else f"{100 * value:.0f} %"


def _width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def counted(number: int, noun: str) -> str:
    """As in ``2 pictures``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def progress(title: str, items: Iterable[Any] | None = None, total: int | None = None) -> Any:
    """The items with a bar on standard error, where that is a terminal; see ``tqdm``."""
    return tqdm(items, title, total, leave=False, file=sys.stderr, disable=None)


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Within the block these loggers tell of nothing but errors."""
    levels = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def plain_console() -> "Console":
    """rich's console, which takes texts as they are and does not break lines outside of a terminal."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 10_000)
