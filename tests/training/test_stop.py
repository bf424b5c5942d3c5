"""Signals to a training and to all its processes: one line, the exit code of the signal, a checkpoint that resumes."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cssformer.cli import main
from cssformer.training.recipe import Recipe
from cssformer.training.run_folder import LAST
from cssformer.training.train import train

OPTIONS = {
    "training.steps": 1000,
    "training.batch_size": 2,
    "training.warmup_steps": 0,
    "training.log_every": 1,
    "training.validate_every": 2,
    "training.workers": 1,
    "model.backbone": "convnext_atto",
    "model.backbone_args": '{"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16]}',
    "model.channels": 16,
    "model.heads": 2,
    "model.points": 2,
    "model.dropout": 0,
    "scenes.count": 2,
    "scenes.val_count": 3,
    "scenes.size": "[32,32]",
    "augment.crop": "[32,32]",
    "augment.scale": "[1,1.33]",
}


@contextmanager
def begun(run: Path, **options: object) -> Iterator["subprocess.Popen[str]"]:
    """A training in a process group of its own, of which nothing is left afterwards."""
    more = {name.replace("_", ".", 1): value for name, value in options.items()}
    words = [f"--{name}={value}" for name, value in {**OPTIONS, **more}.items()]
    process = subprocess.Popen(
        # Lightning starts the second process by the words of the first.
        [Path(sys.executable).with_name("cssformer"), "train", "--output", run, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def wait_for(process: "subprocess.Popen[str]", word: str) -> None:
    assert process.stdout is not None
    assert any(word in line for line in process.stdout), process.communicate()[1]


def require_told_and_kept(process: "subprocess.Popen[str]", run: Path, code: int) -> None:
    _, told = process.communicate(timeout=100)
    assert process.returncode == code, told
    step = torch.load(run / LAST, weights_only=True)["global_step"]
    again = f"cssformer train --output {run} --resume"
    assert step > 0 and told == f"Stopped after {step} of 1000 steps; continue with: {again}\n"


def test_signals_stop_a_training_and_its_loaders(tmp_path: Path) -> None:
    with begun(tmp_path / "run") as process:
        wait_for(process, "step 3/")
        for number in (signal.SIGHUP, signal.SIGTERM):
            os.killpg(process.pid, number)
        require_told_and_kept(process, tmp_path / "run", 143)


def test_ctrl_c_and_resume(tmp_path: Path) -> None:
    """As from a terminal, to the whole group; a termination right after it is the same wish."""
    run = tmp_path / "run"
    with begun(run, training_validate_every=1000) as process:
        wait_for(process, "step 3/")
        for number in (signal.SIGINT, signal.SIGTERM):
            os.killpg(process.pid, number)
        require_told_and_kept(process, run, 130)
    assert not (run / "model").exists()
    # The rest of 1000 steps would take too long: the recipe is shortened to two steps more.
    recipe, steps = Recipe.load(run / "recipe.yaml"), last_step(run) + 2
    recipe.training.steps = steps
    recipe.save(run / "recipe.yaml")
    assert main(["train", "--output", str(run), "--resume"]) == 0
    assert last_step(run) == steps
    assert (run / "model" / "model.safetensors").is_file()


def last_step(run: Path) -> int:
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        return max(int(row["step"]) for row in csv.DictReader(file))


def test_two_devices_stop_together_and_their_loss_is_that_of_one(tmp_path: Path) -> None:
    with begun(tmp_path / "two", training_devices=2, training_device_batch=1, training_workers=0) as process:
        wait_for(process, "mIoU")
        process.terminate()
        require_told_and_kept(process, tmp_path / "two", 143)
    one = Recipe.load(tmp_path / "two" / "recipe.yaml")
    one.output = str(tmp_path / "one")
    one.training.devices, one.training.steps = 1, 1
    train(one)
    losses = []
    for run in ("two", "one"):
        with (tmp_path / run / "metrics.csv").open(encoding="utf-8") as file:
            losses.append(float(next(csv.DictReader(file))["loss"]))
    # The rate's schedule differs, but the first loss comes before the first step.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
