"""From finished runs to what a study leaves in its folder."""

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig
from cssformer.utils.errors import UserError
from cssformer.weights.run_files import RECIPE
from studies import study as studies
from studies import worker
from studies.grid import plan
from studies.results import Results
from studies.study import study
from studies.variants import DECODERS, choose

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def quickly_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.measure.ROUNDS", 1)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Of two finished runs, trained as the workers train them."""
    recipe = Recipe(
        output=str(tmp_path_factory.mktemp("study")),
        model=ModelConfig("test_resnet", channels=16, heads=2, points=2),
        scenes=ScenesConfig(count=10, val_count=2, size=(64, 64)),
        augment=AugmentConfig(crop=(64, 64)),
        training=TrainingConfig(steps=2, batch_size=2, warmup_steps=0, validate_every=2, log_every=1, workers=0),
    )
    for run in plan(recipe, choose(DECODERS, ["cssformer", "segformer"]), [0]):
        run.recipe.save(run.folder / RECIPE)
        assert worker.main(run.folder / RECIPE, run.variant.peer) == 0
    return recipe


def test_what_failed_is_told_also_where_it_is_what_others_are_compared_with(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UserError("1 of 2 runs failed. fpn/0: The memory is full.")

    monkeypatch.setattr(studies, "execute", fail)
    table = Path(recipe.output) / "decoders.md"
    with pytest.raises(UserError, match="The memory is full"):
        study("decoders", choose(DECODERS, ["segformer", "fpn"]), recipe, [0], reference="fpn", console=QUIET)
    assert table.exists()
    table.unlink()


def test_a_study_leaves_tables_plot_and_sheet_and_measures_only_what_is_new(recipe: Recipe) -> None:
    folder = Path(recipe.output)
    tables = [folder / f"decoders{end}" for end in (".md", ".csv", ".png")]
    measured = [folder / f"decoders{end}" for end in ("_costs.json", "_pictures.png")]

    def tell(*names: str) -> Results:
        return study("decoders", choose(DECODERS, names), recipe, [0], parallel=0, console=QUIET)

    alone = tell("segformer")
    assert all(file.stat().st_size > 0 for file in [*tables, measured[0]])
    assert not measured[1].exists()
    before = measured[0].stat().st_mtime_ns
    # One network more, trained long before: all are measured again, and drawn.
    results = tell("cssformer", "segformer")
    assert measured[0].stat().st_mtime_ns > before and measured[1].stat().st_size > 0
    assert list(alone.costs) == ["segformer"] and list(results.costs) == ["cssformer", "segformer"]
    assert results.reference.name == "segformer"
    scores = json.loads((folder / "cssformer" / "0" / "scores.json").read_text())
    assert results.as_dict()["variants"]["cssformer"]["miou"] == [scores["miou"]]
    # Costs of another number of threads are no costs of these networks.
    kept = json.loads(measured[0].read_text())
    assert kept["runs"] == ["cssformer/0", "segformer/0"] and kept["threads"] == torch.get_num_threads()
    measured[0].write_text(json.dumps({**kept, "threads": 99}))
    results = tell("cssformer", "segformer")
    assert json.loads(measured[0].read_text())["threads"] == torch.get_num_threads()
    made = [file.stat().st_mtime_ns for file in measured]
    # What is not finished is no part of it.
    again = study("decoders", DECODERS, recipe, [0, 1], parallel=0, console=QUIET)
    assert again.rows() == results.rows()
    assert [file.stat().st_mtime_ns for file in measured] == made
    # A run trained anew is measured and drawn anew.
    new = time.time() + 5
    os.utime(folder / "segformer" / "0" / "scores.json", (new, new))
    tell("cssformer", "segformer")
    assert all(file.stat().st_mtime_ns > before for file, before in zip(measured, made, strict=True))
    # One network has nothing to disagree with, and an old sheet would show others.
    tell("segformer")
    assert not measured[1].exists()


def test_rows_are_in_the_studys_order_whatever_was_finished_first(recipe: Recipe, tmp_path: Path) -> None:
    shutil.copytree(recipe.output, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "segformer" / "0", tmp_path / "segformer" / "1")
    of_seed_1 = tmp_path / "segformer" / "1" / "recipe.yaml"
    of_seed_1.write_text(of_seed_1.read_text().replace("seed: 0", "seed: 1", 1))
    copy = dataclasses.replace(recipe, output=str(tmp_path))
    results = study("decoders", DECODERS, copy, [1, 0], parallel=0, console=QUIET)
    assert [(outcome.variant.name, outcome.seed) for outcome in results.outcomes] == [
        ("cssformer", 0),
        ("segformer", 0),
        ("segformer", 1),
    ]
