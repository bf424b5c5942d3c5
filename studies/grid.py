"""A study as a grid of runs, variant × seed: each an ordinary run folder, skipped if done, resumed if begun."""

import csv
import dataclasses
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from cssformer.training.recipe import Recipe
from cssformer.training.run_folder import LAST, METRICS
from cssformer.utils.errors import UserError
from cssformer.utils.stop import Stop
from cssformer.weights.run_files import RECIPE, SCORES
from studies.variants import Variant

LOG = "log.txt"
"""What a run printed, in its folder."""
POLL_SECONDS = 0.5
KILLED = -9
"""The exit code of a process that SIGKILL ended, which Windows does not have."""


@dataclass(frozen=True)
class Run:
    """One cell of the grid."""

    variant: Variant
    recipe: Recipe

    @property
    def folder(self) -> Path:
        return Path(self.recipe.output)

    @property
    def name(self) -> str:
        return f"{self.variant.name}/{self.recipe.seed}"

    @property
    def finished(self) -> bool:
        return (self.folder / SCORES).is_file()

    def metrics(self) -> list[dict[str, str]]:
        """The rows of its metrics file so far."""
        try:
            with (self.folder / METRICS).open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError:
            return []

    def require_same_recipe(self) -> None:
        """See that what its folder holds was trained by its recipe.

        Raises:
            UserError: it was trained by another one.
        """
        if not (self.finished or (self.folder / LAST).exists()):
            return
        begun, wanted = (dict(_keys(recipe)) for recipe in (Recipe.load(self.folder / RECIPE).located(), self.recipe))
        # What decides how fast a run goes and what it prints, but not where it ends.
        for key in begun.keys() - {"output", "training.workers", "training.log_every"}:
            if begun[key] != wanted[key]:
                raise UserError(
                    f"The run {self.folder} was begun with {key} {begun[key]}, not {wanted[key]}; "
                    "give the study another --output."
                )


def _keys(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    for name, value in vars(recipe).items():
        if dataclasses.is_dataclass(value):
            yield from ((f"{name}.{key}", item) for key, item in vars(value).items())
        else:
            yield name, value


def plan(recipe: Recipe, variants: Sequence[Variant], seeds: Sequence[int]) -> list[Run]:
    """The runs of a study, seed after seed, each in ``recipe.output/VARIANT/SEED``.

    Raises:
        UserError: one's options contradict each other, one was begun by another recipe, or the recipe starts from a
            trained network.
    """
    if recipe.model.init is not None:
        raise UserError(
            f"A study begins anew, but model.init is {recipe.model.init}: its weights would fit some decoders only; "
            "leave it out, or give its backbone's weights by model.weights."
        )
    runs = []
    for seed in dict.fromkeys(seeds):
        for variant in variants:
            output = str(Path(recipe.output) / variant.name / str(seed))
            own = variant.of(recipe)
            own.require_sound()
            runs.append(Run(variant, dataclasses.replace(own, seed=seed, output=output).located()))
    for run in runs:
        run.require_same_recipe()
    return runs


def execute(runs: Sequence[Run], parallel: int, console: Console) -> None:
    """Train what is not finished, ``parallel`` runs at one time, each in a process of its own, see :func:`environment`.

    Ctrl-C, or a termination signal, lets each run write where it stands; the same call goes on from there.

    Raises:
        UserError: runs failed; the others were finished all the same.
        Interrupted: someone asked to stop.
    """
    waiting = [run for run in runs if not run.finished]
    console.print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished already.")
    stopping = threading.Event()
    places: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(parallel):
        places.put(place)

    def train(run: Run) -> None:
        place = places.get()
        try:
            _train(run, environment(place, parallel), stopping, progress)
        except UserError:
            progress.print(f"{run.name}: failed")
            raise
        finally:
            places.put(place)

    with Stop().listening(), Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        pool = ThreadPoolExecutor(parallel)
        try:
            results = [pool.submit(train, run) for run in waiting]
            # Not without end: Windows tells of Ctrl-C in between.
            while wait(results, POLL_SECONDS).not_done:
                pass
        except KeyboardInterrupt:
            console.print("Stopping; the runs write where they stand.")
            raise
        finally:
            stopping.set()
            pool.shutdown(cancel_futures=True)
    failed: dict[str, list[str]] = {}
    for run, result in zip(waiting, results, strict=True):
        error = result.exception()
        if isinstance(error, UserError):
            failed.setdefault(str(error), []).append(run.name)
        elif error is not None:
            raise error
    if failed:
        said = " ".join(f"{', '.join(names)}: {why}" for why, names in failed.items())
        raise UserError(f"{sum(map(len, failed.values()))} of {len(runs)} runs failed. {said}")


def environment(place: int, parallel: int) -> dict[str, str]:
    """The environment of one of ``parallel`` runs: its share of the cores and of the GPUs, ``place`` from 0 on.

    Threads that the user has set stay as they are, and GPUs are taken from those that the user lets be seen.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // parallel))
    # GNU's OpenMP threads would otherwise spin on cores that other runs need.
    own = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "GOMP_SPINCOUNT": "0", **os.environ}
    count = torch.cuda.device_count()
    if parallel > 1 and count > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
        own["CUDA_VISIBLE_DEVICES"] = ",".join(seen[place::parallel] or [seen[place % len(seen)]])
    # Where a worker finds this folder.
    clone = str(Path(__file__).resolve().parents[1])
    own["PYTHONPATH"] = os.pathsep.join([clone, *filter(None, [os.environ.get("PYTHONPATH")])])
    return own


def _train(run: Run, environment: dict[str, str], stopping: threading.Event, progress: Progress) -> None:
    """Begin or continue a run in a process of its own, and tell of each validation.

    Raises:
        UserError: another study has begun it by another recipe meanwhile, or it has failed.
    """
    run.require_same_recipe()
    if run.finished:
        return
    rows = run.metrics()
    progress.print(f"{run.name}: {'continued' if rows else 'begun'}")
    task = progress.add_task(run.name, total=run.recipe.training.steps)
    with TemporaryDirectory() as temporary:
        # Not in the run folder, which another study may be training into.
        recipe = Path(temporary) / RECIPE
        run.recipe.save(recipe)
        process = _start(run, recipe, environment)
        ended = False
        while not ended:
            ended = process.poll() is not None or stopping.wait(POLL_SECONDS)
            before, rows = len(rows), run.metrics()
            progress.update(task, completed=int(rows[-1]["step"]) if rows else 0)
            for row in rows[before:]:
                if row["mIoU"]:
                    progress.print(f"{run.name}: step {row['step']}  mIoU {100 * float(row['mIoU']):.2f} %")
        if stopping.is_set() and os.name != "nt":
            # On Windows a terminal's Ctrl-C has reached it already; all else would kill it.
            process.terminate()
        code = process.wait()
    progress.remove_task(task)
    if run.finished:
        progress.print(f"{run.name}: finished")
    elif code == KILLED:
        raise UserError(
            "It was killed; if not by you, the memory was full: let fewer runs go at one time (--parallel)."
        )
    elif not stopping.is_set():
        lines = (run.folder / LOG).read_text(errors="replace").split("\n")
        raise UserError(next((line.strip() for line in reversed(lines) if line.strip()), f"see {run.folder / LOG}"))


def _start(run: Run, recipe: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "studies.worker", str(recipe), *filter(None, [run.variant.peer])]
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / LOG).open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
    except OSError as error:
        raise UserError(f"Cannot begin the run {run.folder}: {error.strerror or error}.") from error
