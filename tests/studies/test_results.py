"""From scores to tables: hand-computed cases, scipy's own interval, pictures that are chosen by count."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from cssformer.data import IGNORE, Sample, SyntheticScenes
from cssformer.model import SegmentationNetwork
from cssformer.training.recipe import ModelConfig, Recipe, TrainingConfig
from cssformer.training.run_folder import METRICS
from cssformer.utils.errors import UserError
from cssformer.visualize.drawing import WRONG
from studies import pictures, plots
from studies.baselines.networks import BaselineNetwork
from studies.grid import Run
from studies.measure import Cost, measure
from studies.pictures import TILE, disagreement, draw
from studies.plots import plot
from studies.results import Outcome, Results, _training_seconds
from studies.variants import (
    BASELINE,
    DECODERS,
    LIGHT,
    MODULES,
    WHOLE,
    Kind,
    Variant,
    choose,
    grid_variants,
    points_variants,
)

FPN, PSPNET = choose(DECODERS, ["fpn", "pspnet"])
COST = Cost(parameters=2_000_000, decoder_multiply_adds=10**9, multiply_adds=3 * 10**9, milliseconds=20.0, ratio=1.5)


def results(kind: Kind, scores: dict[Variant, dict[int, float]], reference: str | None = None) -> Results:
    outcomes = [
        Outcome(variant, seed, ("a", "b"), miou, miou / 2, 0.9, (miou, math.nan), 120.0)
        for variant, by_seed in scores.items()
        for seed, miou in by_seed.items()
    ]
    return Results(kind, outcomes, {variant.name: COST for variant in scores}, reference)


def test_differences_are_paired_by_seed() -> None:
    found = results("modules", {BASELINE: {0: 0.5, 1: 0.6, 2: 0.4}, WHOLE: {0: 0.53, 1: 0.62, 2: 0.44, 7: 0.99}})
    difference = found.difference(WHOLE)
    assert difference is not None and found.difference(BASELINE) is None
    assert difference.mean == pytest.approx(0.03)
    assert difference.deviation == pytest.approx(0.01)
    low, high = scipy.stats.t.interval(0.95, 2, loc=0.03, scale=0.01 / math.sqrt(3))
    assert (difference.low, difference.high) == pytest.approx((low, high))
    same = results("modules", {BASELINE: {0: 0.5, 1: 0.25}, WHOLE: {0: 0.75, 1: 0.5}}).difference(WHOLE)
    assert same is not None and (same.low, same.high) == (0.25, 0.25)
    assert found.mean(BASELINE) == pytest.approx(0.5)
    assert found.deviation(BASELINE) == pytest.approx(0.1)
    row = next(row for row in found.rows() if row[0] == WHOLE.title)
    assert "+3.86" in row  # what the paper says
    assert "+3.00 ± 1.00" in row and f"{100 * low:+.2f} to {100 * high:+.2f}" in row
    assert row[-1] == "4, 3 paired" and difference.pairs == 3
    assert found.rows()[1][-1] == "3"


def test_a_single_seed_has_a_difference_but_no_deviation() -> None:
    found = results("modules", {BASELINE: {0: 0.5}, WHOLE: {0: 0.53}})
    assert "+3.00" in found.rows()[2]
    assert found.rows()[1][1] == "50.00"
    assert "–" in found.rows()[2]  # no interval
    assert "nan" not in " ".join(map(str, found.rows()))
    assert found.as_dict()["variants"]["cssformer"]["difference"]["deviation"] is None


def test_the_reference_of_each_study() -> None:
    scores = {WHOLE: {0: 0.7}, LIGHT: {0: 0.68}, BASELINE: {0: 0.65}, FPN: {0: 0.5}, PSPNET: {0: 0.6}}
    assert results("decoders", scores).reference == PSPNET
    assert results("decoders", scores, "fpn").reference == FPN
    assert results("modules", {variant: {0: 0.5} for variant in MODULES}).reference == BASELINE
    eight, sixteen = points_variants([16, 8])
    assert results("points", {eight: {0: 0.5}, sixteen: {0: 0.4}}).reference == sixteen
    assert results("points", {eight: {0: 0.5}}).reference == eight
    fast, slow = grid_variants(["training.lr=1e-2,1e-3"])
    assert results("grid", {fast: {0: 0.5}, slow: {0: 0.6}}).reference == fast
    # A peer with fewer seeds is none to compare with yet, however lucky it was.
    begun = {WHOLE: {0: 0.7, 1: 0.6, 2: 0.65}, FPN: {0: 0.5, 1: 0.55}, PSPNET: {2: 0.8}}
    assert results("decoders", begun).reference == FPN
    with pytest.raises(
        UserError, match="no finished run of --reference 'pfn'; there are cssformer, light, baseline, fpn"
    ):
        results("decoders", scores, "pfn")


def test_csv_holds_every_run(tmp_path: Path) -> None:
    found = results("modules", {BASELINE: {0: 0.5, 1: 0.6}, WHOLE: {0: 0.53, 2: 0.7}})
    found.write_csv(tmp_path / "modules.csv")
    with (tmp_path / "modules.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["seed"], row["miou_minus_baseline"]) for row in rows] == [
        ("baseline", "0", "0.000000"),
        ("baseline", "1", "0.000000"),
        ("cssformer", "0", "0.030000"),
        ("cssformer", "2", ""),
    ]
    assert rows[0]["iou a"] == "0.500000" and rows[0]["iou b"] == ""
    assert rows[0]["multiply_adds"] == "3000000000"
    found.write_markdown(tmp_path / "modules.md", "A note.")
    text = (tmp_path / "modules.md").read_text()
    assert "| b | – | – |" in text and "A note." in text


@pytest.mark.parametrize("kind", ["decoders", "points", "grid"])
def test_plot_shows_each_seed_and_the_mean(kind: Kind, tmp_path: Path) -> None:
    variants, places = {
        "decoders": ((WHOLE, FPN), [COST.milliseconds] * 2),
        "points": (points_variants([1, 4]), [1, 4]),
        "grid": (grid_variants(["training.lr=1e-3,3e-4"]), [1e-3, 3e-4]),
    }[kind]
    found = results(kind, {variant: {0: 0.5, 1: 0.6} for variant in variants})
    plot(found, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size == (1200, 750)
    axes = plots.draw(found).axes[0]
    for place, dots in zip(places, axes.collections[1::2], strict=True):
        np.testing.assert_allclose(dots.get_offsets(), [(place, 50), (place, 60)])
    means = [container.lines[0].get_xydata()[0].tolist() for container in axes.containers]
    np.testing.assert_allclose(means, [(place, 55) for place in places])
    label = axes.get_xlabel()
    assert (
        label
        == {"decoders": "latency (ms a picture)", "points": "points per head and scale", "grid": "training.lr"}[kind]
    )


def test_training_time_counts_each_step_once_whatever_was_interrupted(tmp_path: Path) -> None:
    run = Run(BASELINE, Recipe(output=str(tmp_path), training=TrainingConfig(steps=100, batch_size=4)))
    # 20 steps at 8 images/s, 20 at 4, resumed at 40 and logged at 50 after 10 steps at 2; the last 50 as the mean.
    (tmp_path / METRICS).write_text(
        "step,loss,lr,images_per_second,mIoU\n20,1,1,8,\n20,,,,0.1\n40,1,1,4,\n50,1,1,2,\n100,,,,0.2\n"
    )
    assert _training_seconds(run) == pytest.approx((20 * 4 / 8 + 20 * 4 / 4 + 10 * 4 / 2) * 100 / 50)
    # training.patience ended it.
    (tmp_path / METRICS).write_text("step,loss,lr,images_per_second,mIoU\n50,1,1,2,\n50,,,,0.1\n60,,,,0.1\n")
    assert _training_seconds(run) == pytest.approx(60 * 4 / 2)


def test_costs_are_of_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.measure.ROUNDS", 3)
    baseline, whole = (ModelConfig(channels=32, heads=4, points=2, cia=on, fusion=on).build(5) for on in (False, True))
    peer = BaselineNetwork("fpn", "resnet10t", 5)
    costs = measure({"baseline": baseline, "cssformer": whole, "fpn": peer}, (64, 64))
    assert costs["baseline"].ratio == 1
    # Other work in the same rounds takes other times: the ratio is not that of a network to itself.
    assert costs["cssformer"].ratio != 1 != costs["fpn"].ratio
    assert all(cost.milliseconds > 0 for cost in costs.values())
    backbone = {cost.multiply_adds - cost.decoder_multiply_adds for cost in costs.values()}
    assert len(backbone) == 1
    assert costs["cssformer"].decoder_multiply_adds > costs["baseline"].decoder_multiply_adds
    own = sum(p.numel() for part in (peer.backbone, peer.decoder) for p in part.parameters())
    assert costs["fpn"].parameters == own


def test_disagreement_is_the_share_of_pairs_that_differ_on_scored_pixels() -> None:
    label = np.array([[0, 1], [1, IGNORE]], np.int32)
    one, two, three = np.array([[0, 1], [1, 0]]), np.array([[0, 1], [0, 1]]), np.array([[1, 1], [0, 1]])
    # Pairs: one-two differ on 1 of 3 scored pixels, one-three on 2, two-three on 1.
    assert disagreement([one, two, three], label) == pytest.approx(4 / 9)
    assert disagreement([one, one], label) == 0
    assert disagreement([one, two], np.full((2, 2), IGNORE, np.int32)) == 0


def test_the_sheet_shows_the_pictures_on_which_two_networks_differ_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    differing = [3, 0, 9, 1, 30, 2, 9, 7, 5, 8]
    samples = [
        Sample(str(index), np.full((8, 8, 3), index, np.uint8), np.zeros((8, 8), np.int32))
        for index in range(len(differing))
    ]

    def predict(model: SegmentationNetwork, pixels: Tensor, **_: Any) -> SimpleNamespace:
        labels = torch.zeros(64, dtype=torch.int64)
        if model is second:
            labels[: differing[int(pixels[0, 0, 0])]] = 1
        return SimpleNamespace(labels=labels.view(8, 8))

    drawn: list[tuple[str, float]] = []

    def draw(chosen: Sequence[tuple[Sample, float, Any]], *_: Any) -> NDArray[np.uint8]:
        drawn.extend((sample.name, share) for sample, share, _ in chosen)
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(pictures, "predict", predict)
    monkeypatch.setattr(pictures, "draw", draw)
    first, second = (ModelConfig(channels=8, heads=1, points=1).build(2) for _ in range(2))
    scenes = SyntheticScenes(1, (64, 64))
    pictures.write_sheet({"a": first, "b": second}, samples, scenes.info, tmp_path / "sheet.png", Console(quiet=True))
    assert drawn == [(str(index), differing[index] / 64) for index in (4, 2, 6, 9, 7, 8)]
    assert (tmp_path / "sheet.png").exists()


def test_the_sheet_stripes_what_is_wrong() -> None:
    scenes = SyntheticScenes(1, (60, 90))
    name, image, label = scenes[0]
    assert label is not None
    wrong = (label + 1) % len(scenes.info.classes)
    tiles = [
        draw([(Sample(name, image, label), 0.5, [label, prediction])], ["right", "other"], scenes.info)
        for prediction in (label, wrong)
    ]
    height = round(TILE * 60 / 90)
    last = (slice(34, 34 + height), slice(12 + 3 * (TILE + 12), 12 + 3 * (TILE + 12) + TILE))
    clean, striped = (tile[last] for tile in tiles)
    share = (striped == WRONG).all(-1).mean() - (clean == WRONG).all(-1).mean()
    assert share == pytest.approx(2 / 9, abs=0.03)
