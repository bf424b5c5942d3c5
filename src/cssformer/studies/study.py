"""A whole study: its runs, then its table."""

from collections.abc import Sequence

from rich.console import Console

from cssformer.errors import UserError
from cssformer.studies.grid import execute, plan
from cssformer.studies.variants import DECODERS, MODULES, Kind, choose, points_variants
from cssformer.training.recipe import Recipe


def study(
    kind: Kind,
    recipe: Recipe,
    names: Sequence[str] | None,
    points: Sequence[int] | None,
    seeds: Sequence[int],
    parallel: int,
) -> None:
    """Run a study to its end, from wherever it stands, in the folder ``recipe.output``.

    Raises:
        UserError: the recipe, a name or a number asks for what cannot be, or runs failed.
        KeyboardInterrupt: someone asked to stop; the same call goes on.
    """
    if parallel < 1:
        raise UserError(f"--parallel is {parallel}; the least is one run at a time.")
    variants = points_variants(points) if points else choose(MODULES if kind == "modules" else DECODERS, names)
    execute(plan(recipe, variants, seeds), parallel, Console())
