"""Where curves go: each logger gets what metrics.csv has and each class's IoU, also after a resumption."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cssformer.cli import main
from cssformer.training import train as runs
from cssformer.training.recipe import AugmentConfig, ModelConfig, Recipe, ScenesConfig, TrainingConfig


def recipe(output: Path, **training: Any) -> Recipe:
    settings = {"steps": 2, "batch_size": 2, "log_every": 1, "validate_every": 2, "workers": 0, **training}
    return Recipe(
        output=str(output),
        model=ModelConfig(backbone="test_resnet", channels=16, heads=2, points=2),
        scenes=ScenesConfig(count=4, val_count=1, size=(32, 32)),
        augment=AugmentConfig(crop=(32, 32)),
        training=TrainingConfig(**settings),
    )


def trained(asked: Recipe, resume: bool = False) -> None:
    runs.train(asked, resume, console=Console(file=io.StringIO()))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_several_loggers_hold_what_metrics_csv_has_and_go_on_after_a_resumption(tmp_path: Path) -> None:
    asked = recipe(tmp_path, logger=["csv", "tensorboard"])
    trained(asked)
    asked.training.steps = 4
    trained(asked, resume=True)
    own = rows(tmp_path / "metrics.csv")
    held = [row for start in (0, 2) for row in rows(tmp_path / "csv" / f"from_{start}" / "metrics.csv")]
    for name in ("loss", "lr", "mIoU"):
        found = [float(row[name]) for row in held if row.get(name)]
        assert found == pytest.approx([float(row[name]) for row in own if row[name]], rel=1e-4), name
    assert sum(bool(row.get("IoU/sky") or row.get("IoU/grass")) for row in held) <= 2
    assert any(name.startswith("IoU/") for name in held[-1])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("mIoU")] == [2, 4]
    assert [event.step for event in events.Images("validation")] == [2, 4]


def test_no_logger_leaves_metrics_csv_alone(tmp_path: Path) -> None:
    trained(recipe(tmp_path, logger=[]))
    assert (tmp_path / "metrics.csv").is_file()
    assert not {"tensorboard", "csv", "lightning_logs"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(f"lightning.pytorch.loggers.{name}._{name.upper()}_AVAILABLE", False)
    small = ["--model.backbone", "test_resnet", "--training.workers", "0", "--augment.crop", "32", "32"]
    assert main(["train", "--output", str(tmp_path / "run"), "--training.logger", "csv", name, *small]) == 2
    said = capsys.readouterr().err
    assert said.startswith("cssformer: ") and f"training.logger {name} needs its package; install it with: pip" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_weights_and_biases_goes_on_with_the_run_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason='pip install "cssformer[wandb]"')
    monkeypatch.setenv("WANDB_MODE", "offline")
    asked = recipe(tmp_path, logger="wandb")
    trained(asked)
    asked.training.steps = 4
    trained(asked, resume=True)
    files = [path.name for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")]
    assert len(files) == 2 and len(set(files)) == 1


@pytest.mark.slow
def test_mlflow_goes_on_with_the_run_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason='pip install "cssformer[mlflow]"')
    monkeypatch.chdir(tmp_path)
    asked = recipe(tmp_path / "run", logger="mlflow")
    trained(asked)
    asked.training.steps = 4
    trained(asked, resume=True)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'cssformer'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert [point.step for point in client.get_metric_history(run.info.run_id, "mIoU")] == [2, 4]
    assert [each.path for each in client.list_artifacts(run.info.run_id, "validation")] == [
        "validation/2.png",
        "validation/4.png",
    ]
