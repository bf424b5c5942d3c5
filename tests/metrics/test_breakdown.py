"""Scores by size, class and distance against plain definitions: region by region, pixel by pixel."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label as components

from cssformer.cli import main
from cssformer.data import IGNORE, DatasetInfo
from cssformer.metrics.breakdown import COUNTED, SIZES, count_regions, distance_scores, region_scores, table
from cssformer.metrics.confusion import Scores
from cssformer.metrics.scoring import Evaluation, Scorer

INFO = DatasetInfo(("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))


def regions_of(labels: np.ndarray, index: int) -> list[set[int]]:
    """The connected regions of a class as sets of pixels, those that touch at a corner being one."""
    numbers, count = components(labels == index, np.ones((3, 3)))
    return [set(np.flatnonzero(numbers == number).tolist()) for number in range(1, count + 1)]


def size_of(region: set[int]) -> int:
    return sum(len(region) >= least for least in (256, 1024, 9216))


def plain_counts(prediction: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """As the papers write it, with sets of pixels."""
    counts = np.zeros((4, classes, 7))
    prediction = np.where(label == IGNORE, IGNORE, prediction)
    for index in range(classes):
        true, said = regions_of(label, index), regions_of(prediction, index)
        everywhere = set().union(*true)
        for k in true:
            touched = set().union(*(each for each in said if each & k))
            siou = len(k & touched) / len((k | touched) - (everywhere - k))
            counts[size_of(k), index, :5] += 1, siou >= 0.5, siou, len(k), len(k & touched)
        for each in said:
            counts[size_of(each), index, 5:] += 1, len(each & everywhere) / len(each) < 0.5
    return counts


@st.composite
def pictures(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """A prediction and a truth of cells of any size, so that regions are of every size; in part there is neither."""
    classes, cell = draw(st.integers(1, 4)), draw(st.sampled_from([1, 9, 17, 33, 97]))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))

    def blobs() -> np.ndarray:
        return np.kron(rng.integers(classes, size=(rows, columns)), np.ones((cell, cell), int)).astype(np.int32)

    label = blobs()
    prediction = np.roll(label, draw(st.integers(0, cell)), axis=1) if draw(st.booleans()) else blobs()
    for each in (label, prediction):
        if draw(st.booleans()):
            each[rng.integers(len(each)) :, : rng.integers(1 + each.shape[1])] = IGNORE
    return prediction, label, classes


@settings(deadline=None, max_examples=20)
@given(pictures())
def test_regions_are_the_definition(picture: tuple[np.ndarray, np.ndarray, int]) -> None:
    np.testing.assert_allclose(count_regions(*picture), plain_counts(*picture), atol=1e-9)


def test_regions_by_hand() -> None:
    """Two squares of 4 pixels; the prediction joins them by one pixel and sees a third elsewhere.

    Each is met whole, and the pixel between them is an error of both: sIoU 4/5. Taken apart they would have 4/9.
    """
    label = np.zeros((8, 12), np.int32)
    label[1:3, 1:3] = label[1:3, 4:6] = 1
    said = label.copy()
    said[1, 3] = said[6, 9] = 1
    told = region_scores(count_regions(said, label, 2)[0, 1])
    assert told == pytest.approx(
        {"regions": 2, "found": 1, "siou": 0.8, "pixels": 8, "right": 1, "predicted": 2, "false": 0.5}
    )
    # The background is one region of 88 pixels.
    assert count_regions(said, label, 2)[0, 0].tolist() == pytest.approx([1, 1, 86 / 88, 88, 86, 1, 0])


@pytest.mark.parametrize(
    ("side", "size"), [(15, "tiny"), (16, "small"), (31, "small"), (32, "medium"), (95, "medium"), (96, "large")]
)
def test_sizes(side: int, size: str) -> None:
    counts = count_regions(*(np.zeros((side, side), np.int32),) * 2, 1)
    assert dict(zip(SIZES, counts[:, 0, COUNTED.index("regions")], strict=True)) == {
        each: float(each == size) for each in SIZES
    }


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    scorer = Scorer(INFO, regions=True)
    for index in range(3):
        rng = np.random.default_rng(index)
        label = np.kron(rng.integers(0, 3, (3, 3)), np.ones((40, 40), int)).astype(np.int32)
        label[:5] = IGNORE
        scorer.add(str(index), scorer.count(np.roll(label, 3, axis=0), label))
    return scorer.result()


def test_distances_are_shares_of_all_pixels(evaluation: Evaluation) -> None:
    scores = distance_scores(evaluation)
    assert list(scores) == ["up to 1", "up to 2", "up to 4", "up to 8", "up to 16", "up to 32", "beyond 32", "all"]
    assert scores["all"] == evaluation.scores and scores["up to 4"] == evaluation.trimap[4]
    within = Scores.from_matrix(evaluation.bands[:-1].sum(axis=0))
    assert scores["up to 32"] == within
    assert sum(within.pixels) + sum(scores["beyond 32"].pixels) == sum(scores["all"].pixels)
    _, *rows = table(evaluation, "boundary")
    assert rows[-1][1] == "100.00" and float(rows[5][1]) + float(rows[6][1]) == pytest.approx(100, abs=0.011)


def test_tables_and_json_tell_the_same(evaluation: Evaluation) -> None:
    told = json.loads(json.dumps(evaluation.as_dict()))["by"]
    for size, right, regions, found, *_ in table(evaluation, "size")[1:-1]:
        own = told["size"][size]
        assert regions == f"{own['regions']:.0f}" == f"{sum(c['regions'] for c in own['classes'].values()):.0f}"
        for cell, value in ((right, own["right"]), (found, own["found"])):
            assert cell == ("–" if value is None else f"{100 * value:.2f}")
    heading, *rows = table(evaluation, "class")
    assert [row[0] for row in rows] == ["a", "b", "c"] and len(heading) == len(rows[0]) == 10
    assert [row[1] for row in rows] == [f"{100 * iou:.2f}" for iou in evaluation.scores.iou]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = np.zeros((40, 40), np.uint8)
    label[4:9, 4:9] = 1
    for folder, pixels in (("truth", label), ("said", np.roll(label, 1, 1))):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "x.png"), pixels)
    words = ["score", str(tmp_path / "said"), str(tmp_path / "truth"), "--classes", "ground", "stone"]
    assert main([*words, "--by", "size", "class", "boundary", "--json", str(tmp_path / "scores.json")]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["tiny", "80.00", "1", "100.00", "66.67", "1", "0.00"] in rows and ["size", "pixels"] in [
        r[:2] for r in rows
    ]
    assert any(row[:3] == ["up", "to", "1"] for row in rows)
    assert json.loads((tmp_path / "scores.json").read_text())["by"]["size"]["tiny"]["classes"]["stone"]["found"] == 1
    # Regions are counted where they are asked for.
    assert main([*words, "--by", "boundary", "--json", str(tmp_path / "scores.json")]) == 0
    assert list(json.loads((tmp_path / "scores.json").read_text())["by"]) == ["boundary"]
    assert main([*words, "--by", "colour"]) == 2
    assert "by" in capsys.readouterr().err
