"""An interrupted run that is resumed ends with the weights of the uninterrupted one, bit for bit."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from cssformer.data import Sample, SyntheticScenes
from cssformer.training import train as runs
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.training.run_folder import LOCK, RunInUse
from cssformer.training.stop import Interrupted
from cssformer.utils.errors import UserError

STEPS, BATCH = 7, 4


def recipe(output: Path, **training: object) -> Recipe:
    return Recipe(
        output=str(output),
        model=ModelConfig(channels=16, heads=2, points=2),
        scenes=ScenesConfig(count=10, val_count=2, size=(32, 32)),
        augment=AugmentConfig(crop=(32, 32)),
        training=TrainingConfig(
            steps=STEPS, batch_size=BATCH, warmup_steps=2, log_every=2, validate_every=3, workers=0, **training
        ),
    )


class Killed(Exception):
    """Stands for the power cut: nothing more is written."""


def disturb(monkeypatch: pytest.MonkeyPatch, at_reading: int, kill: bool) -> None:
    """Ctrl-C, or a crash, while the n-th training picture is read."""
    readings = 0

    class Disturbed(SyntheticScenes):
        def __getitem__(self, index: int) -> Sample:
            nonlocal readings
            training = len(self) == 10
            readings += training
            if training and readings == at_reading:
                if kill:
                    raise Killed
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(index)

    monkeypatch.setattr(runs, "SyntheticScenes", Disturbed)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("kill", "step", "training"),
    [
        (False, 2, {}),
        (False, 3, {"ema": 0.9, "device_batch": 2}),
        (False, 5, {"device_batch": 2}),
        (True, 5, {"ema": 0.9}),
        (True, 4, {"clip": None}),
    ],
)
def test_resumed_weights_are_the_uninterrupted_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: bool, step: int, training: dict
) -> None:
    whole, broken = recipe(tmp_path / "whole", **training), recipe(tmp_path / "broken", **training)
    runs.train(whole)
    with monkeypatch.context() as patch:
        disturb(patch, at_reading=step * BATCH, kill=kill)
        with pytest.raises(Killed if kill else Interrupted):
            runs.train(broken)
    assert not (tmp_path / "broken" / "model").exists()
    runs.train(broken, resume=True)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    # The metrics file tells the same story, each step once.
    columns = [
        [(row.split(",")[0], row.split(",")[1], row.split(",")[4]) for row in (run / "metrics.csv").read_text().split()]
        for run in (tmp_path / "whole", tmp_path / "broken")
    ]
    steps = [[row[0] for row in rows] for rows in columns]
    assert steps[0][-1] == steps[1][-1] == str(STEPS)
    assert [row for row in columns[0] if row[2]] == [row for row in columns[1] if row[2]]


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        runs.train(dataclasses.replace(recipe(tmp_path / name), seed=seed))
    a, b, c = (weights(tmp_path / name)["head.classify.weight"] for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_run_is_neither_overwritten_nor_resumed_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to resume"):
        runs.train(recipe(tmp_path), resume=True)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"holds a run already.*--resume"):
        runs.train(recipe(tmp_path))
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read"):
        runs.train(recipe(tmp_path), resume=True)


def test_a_run_folder_belongs_to_one_process_and_a_start_that_fails_leaves_none(tmp_path: Path) -> None:
    with FileLock(tmp_path / "run" / LOCK), pytest.raises(RunInUse, match=r"trains into .*run; wait"):
        runs.train(recipe(tmp_path / "run"))
    with pytest.raises(UserError, match="no run to resume"):
        runs.train(recipe(tmp_path / "new" / "run"), resume=True)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Cannot write the run folder .*file"):
        runs.train(recipe(tmp_path / "file"))


def test_a_run_that_failed_before_its_first_checkpoint_may_start_again_and_signals_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        disturb(patch, at_reading=1, kill=True)
        with pytest.raises(Killed):
            runs.train(recipe(tmp_path))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    runs.train(recipe(tmp_path))
    assert weights(tmp_path)


def test_a_run_of_other_classes_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.train(recipe(tmp_path))
    count = len(SyntheticScenes(1).info.classes)

    class Fewer(SyntheticScenes):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            info = self.info
            self.info = dataclasses.replace(info, classes=info.classes[:3], colours=info.colours[:3])

    monkeypatch.setattr(runs, "SyntheticScenes", Fewer)
    with pytest.raises(UserError, match=f"begun with {count} classes, but its data has 3"):
        runs.train(recipe(tmp_path), resume=True)
