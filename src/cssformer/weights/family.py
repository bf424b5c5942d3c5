"""The family: the same decoder in three sizes, each a file of ``cssformer/configs`` that recipes take too."""

from pathlib import Path
from typing import Any

from cssformer.utils.errors import UserError
from cssformer.utils.text import read_yaml

FAMILY = ("nano", "small", "base")
"""From the lightest to the paper's."""


def decoder_of(name: str) -> dict[str, Any]:
    """The decoder's arguments of :class:`cssformer.CSSFormer`.

    Raises:
        UserError: there is no such size.
    """
    if name not in FAMILY:
        raise UserError(f"There is no CSSFormer of the size {name!r}; take {', '.join(FAMILY)}.")
    arguments: dict[str, Any] = read_yaml(Path(__file__).parents[1] / "configs" / f"{name}.yaml")["model"]
    return arguments
