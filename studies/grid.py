"""A study as a grid of runs, variant × seed: each an ordinary run folder, skipped if done, resumed if begun."""

import csv
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cssformer.metrics.report import SCORES
from cssformer.training.recipe import RECIPE, Recipe
from cssformer.training.run_folder import LAST, METRICS, in_use
from cssformer.utils.errors import UserError
from studies.variants import Variant

LOG = "log.txt"
"""What a run printed, in its folder."""
POLL_SECONDS = 0.5


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


def plan(recipe: Recipe, variants: Sequence[Variant], seeds: Sequence[int]) -> list[Run]:
    """The runs of a study, seed after seed, each in ``recipe.output/VARIANT/SEED``.

    Raises:
        UserError: one of them was begun by another recipe, the recipe starts from a trained network, or a seed is
            below 0.
    """
    if any(seed < 0 for seed in seeds):
        raise UserError(f"--seeds are 0 or more, not {min(seeds)}.")
    if recipe.model.init is not None:
        raise UserError(
            f"A study begins anew, but model.init is {recipe.model.init}: its weights would fit some decoders only; "
            "leave it out, or give its backbone's weights by model.weights."
        )
    recipe = recipe.located()
    runs = []
    for seed in dict.fromkeys(seeds):
        for variant in variants:
            model = dataclasses.replace(recipe.model, **variant.changes)
            output = str(Path(recipe.output) / variant.name / str(seed))
            runs.append(Run(variant, dataclasses.replace(recipe, seed=seed, output=output, model=model)))
    for run in runs:
        _require_same_recipe(run)
    return runs


def _require_same_recipe(run: Run) -> None:
    if not (run.finished or (run.folder / LAST).exists() or _trained_elsewhere(run)):
        return
    begun, wanted = (
        _dotted(dataclasses.asdict(recipe)) for recipe in (Recipe.load(run.folder / RECIPE).located(), run.recipe)
    )
    # What decides how fast a run goes and what it prints, but not where it ends.
    for key in begun.keys() - {"output", "training.workers", "training.log_every"}:
        if begun[key] != wanted[key]:
            raise UserError(
                f"The run {run.folder} was begun with {key} {begun[key]}, not {wanted[key]}; "
                "give the study another --output."
            )


def _trained_elsewhere(run: Run) -> bool:
    return (run.folder / RECIPE).exists() and in_use(run.folder)


def _dotted(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and key != "backbone_args":
            values |= _dotted(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = value
    return values


def execute(runs: Sequence[Run], parallel: int, console: Console) -> None:
    """Train what is not finished, ``parallel`` runs at one time, each in a process of its own, see :func:`environment`.

    Ctrl-C, or a termination signal, lets each run write where it stands; the same call goes on from there.

    Raises:
        UserError: runs failed; the others were finished all the same.
        KeyboardInterrupt: someone asked to stop.
    """
    waiting = [run for run in runs if not run.finished]
    console.print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished already.")
    processes: dict[str, subprocess.Popen[bytes]] = {}
    active: list[Run] = []
    places = list(range(parallel))
    held: dict[str, int] = {}
    failed: dict[str, list[str]] = {}

    def end(run: Run, why: str | None) -> None:
        board.end(run, failed=why is not None)
        if why is not None:
            failed.setdefault(why, []).append(run.name)

    with _Board(len(runs), len(runs) - len(waiting), console) as board, _termination_as_interrupt():
        try:
            while waiting or active:
                while waiting and len(active) < parallel:
                    run = waiting.pop(0)
                    board.begin(run)
                    try:
                        processes[run.name] = _start(run, environment(places[0], parallel))
                    except UserError as error:
                        end(run, str(error))
                    else:
                        held[run.name] = places.pop(0)
                        active.append(run)
                time.sleep(POLL_SECONDS)
                for run in list(active):
                    board.follow(run)
                    if processes[run.name].poll() is not None:
                        active.remove(run)
                        places.append(held[run.name])
                        end(run, _failure(run, processes[run.name].returncode))
        except KeyboardInterrupt:
            console.print("Stopping; the runs write where they stand. Once more to stop at once.")
            for run in active:
                processes[run.name].terminate()
            for run in active:
                processes[run.name].wait()
            raise
        finally:
            for run in active:
                with suppress(ProcessLookupError):
                    processes[run.name].kill()
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
    return own


def _start(run: Run, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Begin or continue a run in a process of its own.

    Raises:
        UserError: another study has begun it by another recipe meanwhile, or it cannot be begun.
    """
    _require_same_recipe(run)
    # What another study has finished, or trains, keeps the recipe that it has.
    if not (run.finished or _trained_elsewhere(run)):
        run.recipe.save(run.folder / RECIPE)
    command = [sys.executable, "-m", "studies.worker", str(run.folder)]
    command += [run.variant.peer] if run.variant.peer else []
    try:
        with (run.folder / LOG).open("ab") as log:
            return subprocess.Popen(
                command,
                # Never written to: it ends when this process does, however that happens.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, "PYTHONPATH": _with_studies(environment.get("PYTHONPATH"))},
                # The terminal's Ctrl-C is for this process, which passes it on once.
                start_new_session=True,
            )
    except OSError as error:
        raise UserError(f"Cannot begin the run {run.folder}: {error.strerror or error}.") from error


def _failure(run: Run, code: int) -> str | None:
    """Why a run whose process has ended with an exit code has no score for this study; None if it has one."""
    if not run.finished:
        if code == -signal.SIGKILL:
            return "It was killed; if not by you, the memory was full: let fewer runs go at one time (--parallel)."
        return _last_line(run.folder / LOG)
    try:
        _require_same_recipe(run)
    except UserError as error:
        # Another study has trained it by another recipe meanwhile.
        return str(error)
    return None


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"see {path}"


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """A termination signal does what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Board:
    """Shows how far the runs are: bars on a terminal, else a line per validation."""

    def __init__(self, total: int, done: int, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[score]}"),
            TimeRemainingColumn(),
        )
        self.console = console
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self.all = self.progress.add_task("runs", total=total, completed=done, score="")
        self.tasks: dict[str, TaskID] = {}
        self.scores: dict[str, str] = {}

    def __enter__(self) -> "_Board":
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def begin(self, run: Run) -> None:
        self.tasks[run.name] = self.progress.add_task(run.name, total=run.recipe.training.steps, score="")
        self.console.print(f"{run.name}: {'continued' if run.metrics() else 'begun'}")

    def follow(self, run: Run) -> None:
        rows = run.metrics()
        score = next((f"mIoU {100 * float(row['mIoU']):.2f} %" for row in reversed(rows) if row["mIoU"]), "")
        step = int(rows[-1]["step"]) if rows else 0
        self.progress.update(self.tasks[run.name], completed=step, score=score)
        if score and score != self.scores.get(run.name) and not self.console.is_terminal:
            self.console.print(f"{run.name}: step {step}/{run.recipe.training.steps}  {score}")
        self.scores[run.name] = score

    def end(self, run: Run, failed: bool) -> None:
        self.progress.remove_task(self.tasks[run.name])
        self.progress.advance(self.all)
        self.console.print(f"{run.name}: {'failed' if failed else 'finished  ' + self.scores[run.name]}")


def _with_studies(path: str | None) -> str:
    """The search path of a worker, which must find this folder."""
    own = str(Path(__file__).resolve().parents[1])
    return own if path is None else f"{own}{os.pathsep}{path}"
