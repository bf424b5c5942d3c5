"""One run of a study in a process of its own: ``python -m studies.worker RUN [PEER]``."""

import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

from cssformer.metrics.report import SCORES
from cssformer.training.recipe import RECIPE, Recipe
from cssformer.utils.errors import UserError
from cssformer.utils.malloc import keep_freed_memory


def main(folder: Path, peer: str | None) -> int:
    """Train, or continue, by the recipe in the run's folder. Returns 0, 2 for a user's mistake, 130 if stopped.

    Another study's worker may be at it, or one whose study was killed and that still writes where it stands; this one
    waits and takes over what is left to do.
    """
    from cssformer.training.run_folder import LAST, RunInUse
    from cssformer.training.stop import Interrupted
    from cssformer.training.train import train
    from studies.baselines.networks import build_baseline

    keep_freed_memory()
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    build = partial(build_baseline, peer) if peer else None
    while True:
        try:
            recipe = Recipe.load(folder / RECIPE)
            # Asked last: to read a recipe takes so long that the other one may have finished meanwhile.
            if not (folder / SCORES).exists():
                train(recipe, resume=(folder / LAST).exists(), build=build)
            return 0
        except RunInUse:
            time.sleep(1)
        except Interrupted:
            return 130
        except UserError as error:
            print(error, file=sys.stderr)
            return 2


def _stop_with_parent() -> None:
    """Nobody writes to standard input: it ends when the study that started this run is gone.

    Read below Python's buffer, whose lock the forked loaders would wait for for ever.
    """
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
