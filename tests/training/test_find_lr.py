"""The learning rate's range test: its losses are those of a training, and it leaves nothing behind."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cssformer.cli import main
from cssformer.training import find_lr as tests
from cssformer.training.find_lr import RangeTest


def test_a_tenth_of_the_rate_of_the_least_loss_is_suggested() -> None:
    rates = np.geomspace(1e-6, 1, 61)
    found = RangeTest(tuple(rates), tuple(1 + (np.log10(rates) + 1.5) ** 2))
    assert found.suggested == pytest.approx(3e-3)
    _, *rows = found.table()
    assert len(rows) == 12 and (rows[0][0], rows[-1][0]) == ("1.0e-06", "1.0e+00")


def test_rising_rates_are_tried_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tests, "STEPS", 30)
    monkeypatch.setattr(tests, "LOWEST", 1e-4)
    words = ["train", "--output", str(tmp_path / "run"), "--model.backbone", "test_resnet", "--model.channels", "16"]
    words += ["--augment.crop", "32", "32", "--scenes.size", "32", "32", "--scenes.val_count", "1", "--model.dropout"]
    words += ["0", "--training.workers", "0", "--training.batch_size", "4", "--training.device_batch", "2"]
    thawed = ["--training.thaw_after", "40", "--training.steps", "300"]
    assert main([*words, *thawed, "--find_lr", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert not (tmp_path / "run").exists()
    said = capsys.readouterr().out
    assert f"--training.lr {found['suggested']:g} is suggested" in said and "learns nothing" not in said
    assert 1 < len(found["rates"]) <= 30 and found["rates"] == sorted(found["rates"])
    # The first loss, of untouched weights, is that of a training; it falls and, at the end, does not.
    assert main([*words, "--training.steps", "1", "--training.log_every", "1"]) == 0
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert found["losses"][0] == pytest.approx(float(next(csv.DictReader(file))["loss"]), rel=1e-4)
    assert 0 < int(np.argmin(found["losses"])) < len(found["losses"])
