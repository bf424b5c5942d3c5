"""Calibration: against torchmetrics, a known temperature, and on a network whose labels must stay."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cssformer import CSSFormer, Predictor
from cssformer.cli import main
from cssformer.metrics.calibration import COLDEST, HOTTEST, calibration_error, confidences, fit_temperature
from studies.baselines.networks import BaselineNetwork


def drawn(temperature: float, count: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and classes drawn by what they say at a temperature."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(count, 4)) * 2
    p = torch.from_numpy(scores / temperature).softmax(1).numpy()
    return scores, (p.cumsum(1) < rng.random((count, 1))).sum(1).clip(max=3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found(temperature: float) -> None:
    scores, labels = drawn(temperature)
    found = fit_temperature(scores, labels)
    assert found == pytest.approx(temperature, rel=0.03)
    losses = {t: confidences(scores / t, labels)[2] for t in (found, found * 1.02, found / 1.02)}
    assert min(losses, key=losses.__getitem__) == found
    assert losses[found] == pytest.approx(
        torch.nn.functional.cross_entropy(torch.from_numpy(scores / found), torch.from_numpy(labels)).item()
    )
    assert calibration_error(*confidences(scores / found, labels)[:2]) < 0.01


def test_pictures_that_do_not_tell_the_temperature_are_told(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All right, the colder the better; all wrong, the hotter; told by the command."""
    scores, labels = drawn(1.0, 1000)
    found = [fit_temperature(scores, each) for each in (scores.argmax(1), scores.argmin(1), labels)]
    assert found[:2] == pytest.approx([COLDEST, HOTTEST])
    CSSFormer("test_resnet", 3, channels=16, heads=2, points=1).save_pretrained(tmp_path)
    for temperature, notes in zip(found, (1, 1, 0), strict=True):
        monkeypatch.setattr("cssformer.metrics.calibration.fit_temperature", lambda *_, t=temperature: t)
        assert main(["calibrate", str(tmp_path), "--data", str(prepared), "--device", "cpu"]) == 0
        assert capsys.readouterr().err.count("these pictures do not tell it") == notes


def test_the_error_is_that_of_torchmetrics() -> None:
    reference = pytest.importorskip("torchmetrics.functional.classification").multiclass_calibration_error
    scores, labels = drawn(3.0)
    ours = calibration_error(*confidences(scores, labels)[:2])
    p = torch.from_numpy(scores).softmax(1)
    theirs = reference(p, torch.from_numpy(labels), num_classes=4, n_bins=15, norm="l1")
    assert ours == pytest.approx(theirs.item(), abs=1e-6) and ours > 0.1


def test_the_command_writes_a_network_of_the_same_labels(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = CSSFormer("test_resnet", 3, channels=16, heads=2, points=1, backbone_args={"output_stride": 32})
    torch.nn.init.normal_(model.head.classify.weight, std=3)  # much too sure of itself
    model.save_pretrained(tmp_path / "model")
    words = ["calibrate", str(tmp_path / "model"), "--data", str(prepared), "--device", "cpu"]
    assert main([*words, "--output", str(tmp_path / "sure"), "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["pictures"] == [1, 1] and found["temperature"] > 1 and found["loss"][1] < found["loss"][0]
    picture = prepared / "val" / "images" / "0.jpg"
    before, after = (Predictor.from_pretrained(tmp_path / name, "cpu")(picture) for name in ("model", "sure"))
    assert np.mean(before.labels == after.labels) > 0.999
    assert before.confidence is not None and after.confidence is not None
    assert after.confidence.mean() < before.confidence.mean()
    assert main([*words, "--split", "test"]) == 2
    assert "test" in capsys.readouterr().err


def test_a_baseline_is_measured_but_not_mended(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    BaselineNetwork("fpn", "test_resnet", 3, backbone_args={"output_stride": 32}).save_pretrained(tmp_path / "model")
    words = ["calibrate", str(tmp_path / "model"), "--data", str(prepared), "--device", "cpu"]
    assert main([*words, "--output", str(tmp_path / "sure")]) == 2
    assert "is no CSSFormer" in capsys.readouterr().err and not (tmp_path / "sure").exists()
    assert main(words) == 0
