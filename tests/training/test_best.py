"""Which network of a training is kept, and when a training ends for want of a better one."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from rich.console import Console

from cssformer.data import SyntheticScenes
from cssformer.metrics.confusion import ConfusionMatrix, Scores
from cssformer.training import train as runs
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.training.run_folder import LAST
from cssformer.utils.errors import UserError
from cssformer.weights.hub import load

CLASSES = SyntheticScenes(1).info.classes


def recipe(output: Path, **training: Any) -> Recipe:
    values = {"steps": 5, "batch_size": 2, "warmup_steps": 0, "log_every": 1, "validate_every": 1, "workers": 0}
    return Recipe(
        output=str(output),
        model=ModelConfig("test_resnet", channels=16, heads=2, points=2),
        scenes=ScenesConfig(count=4, val_count=2, size=(32, 32)),
        augment=AugmentConfig(crop=(32, 32)),
        training=TrainingConfig(**{**values, **training}),
    )


def run(asked: Recipe, resume: bool = False) -> str:
    out = io.StringIO()
    runs.train(asked, resume, console=Console(file=out, width=1000))
    return out.getvalue()


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """IoU of the first class and, the other way round, of the second, at one validation after the other."""
    values: list[float] = []

    def scores(self: ConfusionMatrix) -> Scores:
        value = values.pop(0)
        return Scores(value, 0, 0, 0, (value, 1 - value, *[float("nan")] * 15), (0.0,) * 17, (1,) * 17)

    monkeypatch.setattr(ConfusionMatrix, "scores", scores)
    return values


@pytest.mark.parametrize(("best", "kept"), [("mIoU", [1, 3]), (f"IoU of {CLASSES[1]}", [1, 2, 5])])
def test_the_best_by_the_score_of_the_recipe_is_kept(
    tmp_path: Path, scored: list[float], best: str, kept: list[int]
) -> None:
    scored += [0.5, 0.4, 0.6, 0.5, 0.3]
    told = run(recipe(tmp_path, best=best))
    lines = re.findall(r"step (\d)/5  mIoU .*\n  (.*) %, (.*); IoU % of the classes", told)
    assert [int(step) for step, _, rank in lines if rank == "the best so far"] == kept
    assert all(name.startswith(best) for _, name, _ in lines)
    weights = load(tmp_path)[1]
    last = torch.load(tmp_path / LAST, weights_only=True)["state_dict"]
    assert all(torch.equal(value, last[f"model.{name}"]) for name, value in weights.items()) == (kept[-1] == 5)
    table = f"  {CLASSES[0]} 50.00  {CLASSES[1]} 50.00  {CLASSES[2]} –"
    assert f"{best} 50.00 %, the best so far; IoU % of the classes:\n{table}" in told
    assert re.search(r"  .*\n  .*  power line –\n", told)
    assert "the best is 60.00 %, 1 validation ago" in told or best == f"IoU of {CLASSES[1]}"


def test_boundary_iou_is_the_reports(tmp_path: Path) -> None:
    told = run(recipe(tmp_path, best="Boundary IoU", steps=2))
    report = json.loads((tmp_path / "scores.json").read_text())["mean_boundary_iou"]
    best = max(float(value) for value in re.findall(r"Boundary IoU ([\d.]+) %", told))
    assert best == pytest.approx(100 * report, abs=0.006)


def test_without_a_better_score_the_training_ends_and_ends_again_when_resumed(
    tmp_path: Path, scored: list[float]
) -> None:
    scored += [0.5, 0.6, 0.5, 0.6]
    told = run(recipe(tmp_path / "run", patience=2))
    assert "The training ends at step 4: 2 validations brought no better mIoU (training.patience)." in told
    assert "step 5/5" not in told and (tmp_path / "run" / "scores.json").is_file() and not scored
    kept = torch.load(tmp_path / "run" / LAST, weights_only=True)
    assert kept["global_step"] == 4
    told = run(recipe(tmp_path / "run", patience=2), resume=True)
    assert told.endswith(
        "ended after 4 steps, as 2 validations brought no better score; to go on, give --resume --training.patience "
        "and a number above 2.\n"
    )
    # Killed before its report.
    (tmp_path / "run" / "scores.json").unlink()
    model = shutil.copytree(tmp_path / "run" / "model", tmp_path / "before")
    told = run(recipe(tmp_path / "run", patience=2), resume=True)
    assert "The training ends at step 4" in told and "step 5/5" not in told
    assert (tmp_path / "run" / "scores.json").is_file()
    assert torch.load(tmp_path / "run" / LAST, weights_only=True)["global_step"] == 4
    assert all(torch.equal(value, load(model)[1][name]) for name, value in load(tmp_path / "run")[1].items())


def test_patience_is_the_same_in_a_resumed_run(tmp_path: Path, scored: list[float]) -> None:
    scored += [0.6, 0.5, 0.55, 0.7, 0.1]
    first = recipe(tmp_path, patience=2)
    first.training.steps = 2
    assert "training ends" not in run(first)
    told = run(recipe(tmp_path, patience=2), resume=True)
    assert "training ends at step 3: 2 validations" in told and len(scored) == 2


def test_without_labelled_pixels_no_score_is_told(tmp_path: Path, scored: list[float]) -> None:
    scored += [float("nan")] * 2
    told = run(recipe(tmp_path, steps=2))
    assert "step 1/2  mIoU – %\n  mIoU – %, the best so far" in told
    assert "step 2/2  mIoU – %\n  mIoU – %, the best is – %, 1 validation ago" in told


def test_a_class_that_no_validation_label_holds_cannot_decide(prepared: Path, tmp_path: Path) -> None:
    for path in (prepared / "val" / "labels").iterdir():
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        label[label == 2] = 1
        cv2.imwrite(str(path), label)
    asked = recipe(tmp_path / "run", best="IoU of sky")
    asked.data = str(prepared)
    with pytest.raises(UserError, match="training.best is 'IoU of sky', but no validation label holds that class"):
        runs.train(asked)


def test_a_run_that_ended_goes_on_with_more_patience(tmp_path: Path, scored: list[float]) -> None:
    scored += [0.5, 0.6, 0.5, 0.6, 0.7]
    assert "training ends at step 4" in run(recipe(tmp_path, patience=2))
    told = run(recipe(tmp_path, patience=3), resume=True)
    assert "step 5/5" in told and "training ends" not in told and not scored


def test_a_score_that_there_is_not_is_told(tmp_path: Path) -> None:
    for name, sentence in (
        ("mIOU", "the nearest one is 'mIoU'"),
        ("IoU of medow", "the nearest one is 'IoU of meadow'"),
        ("loss", "give mIoU, Boundary IoU or 'IoU of meadow'"),
    ):
        with pytest.raises(UserError, match=f"training.best is '{name}', which is no score; {sentence}"):
            runs.train(recipe(tmp_path / "run", best=name))
    assert not (tmp_path / "run").exists()
