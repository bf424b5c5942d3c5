"""Labels damaged on purpose are what a network contradicts first."""

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cssformer.cli import main
from cssformer.data import IGNORE, DatasetInfo
from cssformer.data.bands import read_pixels
from cssformer.inference import Predictor
from cssformer.metrics.suspects import contradictions, find_suspects
from cssformer.model import CSSFormer, Metadata
from cssformer.utils.errors import UserError

CLASSES, COLOURS = ("road", "<b>tree</b>", "sky"), ((90, 90, 90), (20, 200, 30), (10, 20, 230))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network that has learned to tell three colours apart."""
    torch.manual_seed(0)
    model = CSSFormer("resnet10t", 3, channels=32, heads=4, points=2, aux=False, cia=False, fusion=False)
    optimiser = torch.optim.Adam(model.train().parameters(), 3e-3)
    rng = np.random.default_rng(0)
    for _ in range(40):
        label = drawn(rng)
        image = torch.from_numpy(painted(label, rng)).permute(2, 0, 1)[None] / 255
        loss = torch.nn.functional.cross_entropy(model(image), torch.from_numpy(label)[None].long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.metadata = Metadata(CLASSES, COLOURS)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


def drawn(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Rectangles of three classes, 64x64."""
    label = np.zeros((64, 64), np.uint8)
    for value in (1, 2, 1, 2):
        top, left = rng.integers(0, 40, 2)
        label[top : top + 24, left : left + 24] = value
    return label


def painted(label: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    return (np.array(COLOURS)[label] + rng.integers(-9, 10, (*label.shape, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """12 sound pairs; in train/3 a rectangle lacks, in val/1 all trees are sky."""
    rng, root = np.random.default_rng(1), tmp_path / "data"
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            label = drawn(rng)
            image = painted(label, rng)
            if (split, number) == ("train", 3):
                label[label == 2] = 0
            if (split, number) == ("val", 1):
                label[label == 1] = 2
            label[:2] = 255
            cv2.imwrite(str(root / split / "images" / f"{number}.png"), image[..., ::-1])
            cv2.imwrite(str(root / split / "labels" / f"{number}.png"), label)
    DatasetInfo(CLASSES, COLOURS).save(root)
    return root


def test_damaged_labels_come_first(learned: Path, data: Path) -> None:
    found = find_suspects(Predictor.from_pretrained(learned, "cpu"), data)
    assert {each.image for each in found[:2]} == {data / "train/images/3.png", data / "val/images/1.png"}
    said = {each.image.name: (each.regions[0].labelled, each.regions[0].predicted) for each in found[:2]}
    assert said == {"3.png": (0, 2), "1.png": (2, 1)}
    assert found[1].score > 5 * sum(each.score for each in found[2:])


def test_regions_by_hand() -> None:
    """Areas, boxes, sums of confidence; what is ignored or thin does not count."""
    label, predicted = np.zeros((100, 100), np.int32), np.zeros((100, 100), np.int32)
    confidence = np.full((100, 100), 0.5, np.float32)
    label[:50] = IGNORE
    predicted[40:60, 10:20] = 1
    predicted[70:80, 30:50] = 2
    confidence[70:80, 30:50] = 0.9
    predicted[90, :] = 1
    first, second = contradictions(label, predicted, confidence)
    assert (first.labelled, first.predicted, first.box, first.pixels) == (0, 2, (30, 70, 20, 10), 200)
    assert first.confidence == pytest.approx(0.9) and first.score == pytest.approx(180 / 5000)
    assert (second.predicted, second.box, second.score) == (1, (10, 50, 10, 10), pytest.approx(50 / 5000))
    assert contradictions(label, label, confidence) == []


def test_command_writes_table_sheet_json_and_page(
    learned: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "train/images/3.png").rename(data / "train/images/3 <i>&.png")
    (data / "train/labels/3.png").rename(data / "train/labels/3 <i>&.png")
    cv2.imwrite(str(data / "val/labels/0.png"), np.zeros((64, 64), np.uint8))
    out, page = tmp_path / "out", tmp_path / "report.html"
    words = ["check", data, "--model", learned, "--output", out, "--html", page, "--device", "cpu"]
    assert main([*map(str, words), "--json", str(tmp_path / "report.json")]) == 0
    assert "suspect 1: " in capsys.readouterr().out
    suspects = json.loads((tmp_path / "report.json").read_text())["suspects"]
    with (out / "suspects.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(each["regions"]) for each in suspects)
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)
    assert read_pixels(out / "suspects.png", None)[0].pixels.shape[1] > 900
    text = page.read_text(encoding="utf-8")
    # Pictures are within, nothing is fetched, and names are text.
    assert text.count("data:image/jpeg;base64,") >= len(suspects) and "blank" in text
    assert not re.search(r"(src|href)=.(?!data:)|url\(|@import|<script", text)
    assert "<i>&.png" not in text and "3 &lt;i&gt;&amp;.png" in text and "<b>tree" not in text


def test_mistakes_are_told(learned: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(data), "--output", str(tmp_path / "out")]) == 2
    assert "--output takes what --model finds" in capsys.readouterr().err
    # Before all files are read.
    assert main(["check", str(data), "--model", "no-such-model"]) == 2
    told = capsys.readouterr()
    assert "no-such-model" in told.err and not told.out
    (data / "dataset.yaml").unlink()
    DatasetInfo(("a", "b", "c"), COLOURS).save(data)
    with pytest.raises(UserError, match="Class 0 is 'road' for the model but 'a' in the data"):
        find_suspects(Predictor.from_pretrained(learned, "cpu"), data)
