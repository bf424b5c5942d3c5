"""One run of a study in a process of its own: ``python -m studies.worker RECIPE [PEER]``."""

import sys
from functools import partial
from pathlib import Path

from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError
from cssformer.utils.malloc import keep_freed_memory
from cssformer.utils.stop import Interrupted, Stop, signals_later


def main(path: Path, peer: str | None = None) -> int:
    """Train, or continue, by the recipe in a file.

    Args:
        path: of the recipe.
        peer: whose decoder the network has, see :data:`studies.baselines.networks.DECODERS`; CSSFormer's if None.

    Returns:
        0, 2 for a user's mistake, as shells know it for a signal.
    """
    keep_freed_memory()
    try:
        with Stop().listening():
            # An import that is interrupted may leave half a library.
            with signals_later():
                from cssformer.training.run_folder import LAST
                from cssformer.training.train import train
                from studies.baselines.networks import build_baseline
            recipe = Recipe.load(path)
            resume = (Path(recipe.output) / LAST).exists()
            train(recipe, resume, build=partial(build_baseline, peer) if peer else None)
    except Interrupted as interrupted:
        return interrupted.code
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
