"""The grid of runs: what is skipped, continued, refused and told; a study interrupted and started again."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from rich.console import Console
from safetensors.torch import load_file

from cssformer.cli import main
from cssformer.training.recipe import ModelConfig, Recipe, TrainingConfig
from cssformer.training.run_folder import LAST, LOCK
from cssformer.utils.errors import UserError
from cssformer.utils.stop import Interrupted
from cssformer.weights.run_files import RECIPE, SCORES
from studies import grid, worker
from studies.grid import LOG, Run, execute, plan
from studies.variants import BASELINE, DECODERS, MODULES, WHOLE, choose, grid_variants

QUIET = Console(quiet=True)


def recipe(output: Path) -> Recipe:
    return Recipe(
        output=str(output), model=ModelConfig(channels=16, heads=2, points=2), training=TrainingConfig(steps=4)
    )


def finish(run: Run) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / SCORES).write_text("{}")


class Processes:
    """In the workers' place: each process runs a line of Python in the run's folder, with the run's name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
        self.line = line
        self.started: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.most = 0
        self.popen = subprocess.Popen
        monkeypatch.setattr(subprocess, "Popen", self.start)
        monkeypatch.setattr(grid, "POLL_SECONDS", 0.02)

    def start(self, command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        folder = Path(Recipe.load(command[3]).output)
        name = f"{folder.parent.name}/{folder.name}"
        self.started.append(name)
        process = self.popen([sys.executable, "-S", "-c", self.line, name], cwd=folder, **options)
        self.processes.append(process)
        self.most = max(self.most, sum(each.poll() is None for each in self.processes))
        return process


def test_the_light_network_looks_from_stride_16_on_and_is_otherwise_the_recipes(tmp_path: Path) -> None:
    whole, light = plan(recipe(tmp_path), choose(DECODERS, ["cssformer", "light"]), [0])
    assert dataclasses.replace(light.recipe.model, fusion_stride=whole.recipe.model.fusion_stride) == whole.recipe.model
    assert light.recipe.model.build(3).fusion_strides == (16, 32)


def test_plan_holds_every_variant_with_every_seed(tmp_path: Path) -> None:
    runs = plan(recipe(tmp_path), MODULES, [3, 1, 3])
    assert [run.name for run in runs] == [f"{variant.name}/{seed}" for seed in (3, 1) for variant in MODULES]
    assert all(run.folder == tmp_path / run.variant.name / str(run.recipe.seed) for run in runs)
    switches = [(run.recipe.model.cia, run.recipe.model.fusion) for run in runs[:4]]
    assert switches == [(False, False), (True, False), (False, True), (True, True)]
    # Nothing else differs.
    same = [dataclasses.replace(run.recipe.model, cia=True, fusion=True) for run in runs]
    alike = {
        repr(dataclasses.replace(run.recipe, output="", seed=0, model=model))
        for run, model in zip(runs, same, strict=True)
    }
    assert len(alike) == 1


def test_files_of_a_study_are_found_from_any_folder_and_a_trained_network_is_no_start(tmp_path: Path) -> None:
    model = ModelConfig(weights="weights.safetensors")
    run = plan(Recipe(data="data", output=str(tmp_path), model=model), [WHOLE], [0])[0]
    assert run.recipe.data == str(Path.cwd() / "data")
    assert run.recipe.model.weights == str(Path.cwd() / "weights.safetensors")
    with pytest.raises(UserError, match=r"model.init is runs/idd.*leave it out"):
        plan(Recipe(output=str(tmp_path), model=ModelConfig(init="runs/idd")), [WHOLE], [0])


def test_a_run_begun_by_another_recipe_is_refused_and_one_that_only_prints_more_is_not(tmp_path: Path) -> None:
    begun = plan(recipe(tmp_path), [WHOLE], [0])[0]
    begun.recipe.save(begun.folder / RECIPE)
    other = dataclasses.replace(recipe(tmp_path), training=TrainingConfig(steps=5))
    assert plan(other, [WHOLE], [0])  # nothing of it is done yet
    (begun.folder / LAST).parent.mkdir()
    (begun.folder / LAST).touch()
    with pytest.raises(UserError, match=r"cssformer/0 was begun with training.steps 4, not 5; .*--output"):
        plan(other, [WHOLE], [0])
    assert plan(
        dataclasses.replace(recipe(tmp_path), training=TrainingConfig(steps=4, workers=0, log_every=1)), [WHOLE], [0]
    )


def test_finished_runs_are_skipped_and_so_many_go_at_one_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = plan(recipe(tmp_path), MODULES, [0, 1])
    finish(runs[2])
    # None ends before three have begun.
    line = (
        "import glob, time\nopen('begun', 'w').close()\nuntil = time.monotonic() + 60\n"
        "while len(glob.glob('../../*/*/begun')) < 3 and time.monotonic() < until: time.sleep(0.02)\n"
        f"open({SCORES!r}, 'w').close()"
    )
    processes = Processes(monkeypatch, line)
    execute(runs, 3, QUIET)
    assert sorted(processes.started) == sorted(run.name for run in runs if run != runs[2])
    assert processes.most == 3
    assert all(run.finished for run in runs)
    execute(runs, 3, QUIET)
    assert len(processes.started) == 7


@pytest.mark.parametrize(
    ("visible", "count", "parallel", "shares"),
    [
        (None, 4, 2, ["0,2", "1,3"]),
        (None, 2, 3, ["0", "1", "0"]),
        ("7,5,3", 3, 2, ["7,3", "5"]),
        ("7,5", 2, 1, ["7,5"]),
        (None, 1, 2, [None, None]),
    ],
)
def test_runs_share_cores_and_gpus(
    visible: str | None, count: int, parallel: int, shares: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    given = [grid.environment(place, parallel) for place in range(parallel)]
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in given] == shares
    assert {each["OMP_NUM_THREADS"] for each in given} == {str(12 // parallel)}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    own = grid.environment(0, parallel)
    # PyTorch takes MKL's number where the two differ.
    assert own["OMP_NUM_THREADS"] == own["MKL_NUM_THREADS"] == "5"


def test_a_failed_run_is_told_when_the_others_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = plan(recipe(tmp_path), MODULES[:2], [0, 1])
    line = f"import sys; open({SCORES!r}, 'w').close() if 'cia' in sys.argv[1] else sys.exit('No such weights.')"
    Processes(monkeypatch, line)
    with pytest.raises(UserError, match=r"2 of 4 runs failed. baseline/0, baseline/1: No such weights\.$"):
        execute(runs, 1, QUIET)
    assert runs[1].finished and runs[3].finished


@pytest.mark.parametrize("stands", ["left", "finished"])
def test_a_run_that_another_study_begins_by_another_recipe_meanwhile_fails_and_stays_as_it_is(
    stands: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan(recipe(tmp_path), MODULES[:3], [0])
    other = plan(dataclasses.replace(recipe(tmp_path), training=TrainingConfig(steps=5)), MODULES[1:2], [0])[0]
    other.recipe.save(other.folder / RECIPE)
    if stands == "left":
        (other.folder / LAST).parent.mkdir()
        (other.folder / LAST).touch()
    line = f"open({SCORES!r}, 'w').close()"
    if stands == "finished":
        # After this study has looked at what is to be done.
        line += f"; open({str(other.folder / SCORES)!r}, 'w').close()"
    processes = Processes(monkeypatch, line)
    told = r"1 of 3 runs failed. cia/0: .*cia/0 was begun with training.steps 5, not 4"
    with pytest.raises(UserError, match=told):
        execute(runs, 1, QUIET)
    assert processes.started == ["baseline/0", "msfe-csf/0"]
    assert Recipe.load(other.folder / RECIPE) == other.recipe


@pytest.mark.parametrize(
    ("name", "told"), [("KILL", r"It was killed; .* the memory was full: .*--parallel"), ("ABRT", r"An error\.$")]
)
def test_only_a_killed_run_is_told_as_killed(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"import os, signal; print('An error.', flush=True); os.kill(os.getpid(), signal.SIG{name})"
    Processes(monkeypatch, line)
    with pytest.raises(UserError, match=rf"1 of 1 runs failed. cia/0: {told}"):
        execute(plan(recipe(tmp_path), MODULES[1:2], [0]), 1, QUIET)


def test_a_worker_leaves_a_run_alone_that_another_study_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = plan(recipe(tmp_path / "study"), [BASELINE], [0])[0]
    run.recipe.save(tmp_path / RECIPE)
    with FileLock(run.folder / LOCK):
        assert worker.main(tmp_path / RECIPE) == 2
    assert "Another process trains into" in capsys.readouterr().err
    assert not (run.folder / RECIPE).exists()


def test_a_run_that_cannot_be_begun_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = plan(recipe(tmp_path), MODULES, [0])
    (runs[1].folder / LOG).mkdir(parents=True)
    Processes(monkeypatch, f"import time; time.sleep(0.2); open({SCORES!r}, 'w').close()")
    with pytest.raises(UserError, match=r"1 of 4 runs failed. cia/0: Cannot begin the run .*cia/0: Is a directory\."):
        execute(runs, 2, QUIET)
    assert [run.finished for run in runs] == [True, False, True, True]


def test_a_termination_signal_reaches_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = (
        "import signal, sys, time\n"
        "def stop(*_):\n    open('stopped', 'w').close(); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, stop)\nopen('ready', 'w').close()\ntime.sleep(60)"
    )
    processes = Processes(monkeypatch, line)
    runs = plan(recipe(tmp_path), MODULES, [0])

    def terminate() -> None:
        while not all((run.folder / "ready").exists() for run in runs[:2]):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        execute(runs, 2, QUIET)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert [(run.folder / "stopped").exists() for run in runs] == [True, True, False, False]
    assert [process.poll() for process in processes.processes] == [130, 130]


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (
        (["modules", "--variants", "csf"], "no variant 'csf'"),
        (
            ["points", "--points", "0"],
            "points cannot be '[0]'; it must be one or more",
        ),
        (["modules", "--seeds", "0", "-1"], "seeds cannot be '[0, -1]'"),
        (["decoders", "--parallel", "-1"], "parallel cannot be '-1'"),
        (["decoders", "--parallel", "0"], "No run of this study is finished"),
        (["modules", "--reference", "fpn"], "no variant 'fpn'"),
        (["decoders", "--training.step", "3"], "nearest one is 'training.steps'"),
        (["grid"], "needs --vary"),
        (["grid", "--vary", "training.lr"], "KEY=VALUE,VALUE, not 'training.lr'"),
        (["grid", "--vary", "training.l=1"], "nearest one is 'training.lr'"),
        (["grid", "--vary", "training.lr=1e-3,fast"], "training.lr cannot be 'fast'"),
        (["grid", "--vary", "model=light"], "section of options"),
        (["grid", "--vary", "model.backbone_args.depth=3"], "whole keys"),
        (["grid", "--vary", "seed=1,2"], "any key of the recipe but seed"),
        (["grid", "--vary", "model.heads=4,3"], "must be a multiple of heads (3)"),
        (["grid", "--vary", "data=nowhere,anywhere"], "There is no folder"),
    ):
        assert main(["study", *words, "--output", str(tmp_path / "study")]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


TINY = shlex.split(
    "--model.channels 16 --model.heads 2 --model.points 2 --scenes.count 20 --scenes.val_count 3 --scenes.size [64,64] "
    "--augment.crop [64,64] --training.steps 20 --training.batch_size 2 --training.validate_every 5 "
    "--training.workers 0 --training.log_every 5 --seeds 0 --parallel 2 --variants cssformer fpn"
)


@pytest.mark.slow
def test_a_study_interrupted_and_started_again_ends_with_the_same_table(tmp_path: Path) -> None:
    def start(name: str) -> "subprocess.Popen[bytes]":
        program = "import sys; from cssformer.cli import main; sys.exit(main(sys.argv[1:]))"
        words = ["study", "decoders", "--output", str(tmp_path / name), *TINY]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", program, *words], env=environment)

    assert start("whole").wait(300) == 0
    broken = tmp_path / "broken"
    interrupted = start("broken")
    until = time.monotonic() + 200
    while not (broken / "cssformer" / "0" / LAST).exists() and time.monotonic() < until:
        time.sleep(0.05)
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(100) == 130
    assert not (broken / "cssformer" / "0" / SCORES).exists()
    assert start("broken").wait(300) == 0
    whole = tmp_path / "whole"
    for variant in choose(DECODERS, ["cssformer", "fpn"]):
        one, other = (
            load_file(study / variant.name / "0" / "model" / "model.safetensors") for study in (whole, broken)
        )
        assert all((one[name] == other[name]).all() for name in one)
        scores = [json.loads((study / variant.name / "0" / SCORES).read_text()) for study in (whole, broken)]
        assert scores[0] == scores[1]
    assert scored(whole / "decoders.csv") == scored(broken / "decoders.csv")
    assert BASELINE.name not in (whole / "decoders.md").read_text()
    assert (broken / "decoders_pictures.png").exists() and (broken / "decoders.png").exists()


def scored(table: Path) -> list[list[str]]:
    """The columns of a CSV that are no times."""
    rows = [line.split(",") for line in table.read_text().splitlines()]
    kept = [i for i, name in enumerate(rows[0]) if name not in ("training_seconds", "milliseconds", "ratio")]
    return [[row[i] for i in kept] for row in rows]


def test_combinations_that_contradict_themselves_are_told_before_a_run(tmp_path: Path) -> None:
    alone = grid_variants(["loss.cross_entropy=0,1", "loss.dice=1"])
    assert len(plan(recipe(tmp_path), alone, [0])) == 2
    with pytest.raises(UserError, match="nothing to minimise"):
        plan(recipe(tmp_path), grid_variants(["loss.cross_entropy=0,1", "loss.dice=0,1"]), [0])
