"""The table "How libraries count" of docs/evaluation.md: each cell is what the library gives for the case."""

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cssformer.data import IGNORE, DatasetInfo
from cssformer.metrics.scoring import Scorer

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
VOID = 255
# Truth and prediction of two pictures of six pixels, three classes.
CASES = {
    "a class in neither": ([[0, 0, 0, 1, 1, 1]] * 2, [[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]]),
    "a class predicted, never true": ([[0, 0, 0, 1, 1, 1]] * 2, [[0, 0, 2, 1, 1, 1], [0, 0, 0, 1, 1, 1]]),
    "a class never predicted": ([[0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 1]], [[0, 0, 0, 1, 1, 1]] * 2),
    "ignored pixels": ([[0, 0, 1, 1, 2, VOID]] * 2, [[0, 0, 1, 1, 1, 2], [0, 0, 1, 1, 2, 2]]),
    "a class on ignored pixels alone": ([[0, 0, 1, 1, VOID, VOID]] * 2, [[0, 0, 1, 1, 2, 2]] * 2),
    "a picture all ignored": ([[0, 0, 1, 1, 2, 2], [VOID] * 6], [[0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]]),
    "all wrong": ([[0, 0, 1, 1, 2, 2]] * 2, [[1, 1, 2, 2, 0, 0]] * 2),
    "255 predicted": ([[0, 0, 1, 1, 2, 2]] * 2, [[0, VOID, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]]),
    "one class alone": ([[0] * 6] * 2, [[0] * 6] * 2),
    "all ignored": ([[VOID] * 6] * 2, [[0, 0, 1, 1, 2, 2]] * 2),
}
Pictures = list[np.ndarray]


def ours(truth: Pictures, said: Pictures, folder: Path) -> float:
    scorer = Scorer(DatasetInfo(("a", "b", "c"), ((0, 0, 0),) * 3))
    for true, told in zip(truth, said, strict=True):
        true, told = (np.where(each == VOID, IGNORE, each).astype(np.int32) for each in (true, told))
        scorer.add("x", scorer.count(told, true))
    return scorer.result().scores.miou


def jaccard(truth: Pictures, said: Pictures, folder: Path) -> float:
    metric = pytest.importorskip("torchmetrics.classification").MulticlassJaccardIndex(3, ignore_index=VOID)
    for true, told in zip(truth, said, strict=True):
        metric.update(torch.from_numpy(told)[None], torch.from_numpy(true)[None])
    return metric.compute().item()


def mean_iou(truth: Pictures, said: Pictures, folder: Path) -> float:
    metric = pytest.importorskip("torchmetrics.segmentation").MeanIoU(3, input_format="index")
    for true, told in zip(truth, said, strict=True):
        metric.update(torch.from_numpy(told)[None], torch.from_numpy(true)[None])
    return metric.compute().item()


def smp(truth: Pictures, said: Pictures, folder: Path) -> float:
    metrics = pytest.importorskip("segmentation_models_pytorch.metrics")
    pair = (torch.from_numpy(np.stack(each)) for each in (said, truth))
    stats = metrics.get_stats(*pair, mode="multiclass", num_classes=3, ignore_index=VOID)
    return metrics.iou_score(*stats, reduction="macro").item()


def cityscapes(truth: Pictures, said: Pictures, folder: Path) -> float:
    """Road, sidewalk and building; 0 is the id of what is not labelled."""
    scripts = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    files: dict[str, list[str]] = {"truth": [], "said": []}
    for kind, pictures in (("truth", truth), ("said", said)):
        for number, picture in enumerate(pictures):
            ids = np.array([7, 8, 11], np.uint8).take(picture, mode="clip")
            ids[picture == VOID] = 0
            files[kind].append(str(folder / f"{kind}{number}.png"))
            cv2.imwrite(files[kind][-1], ids)
    arguments = scripts.args
    arguments.evalInstLevelScore, arguments.JSONOutput, arguments.quiet = False, False, True
    return scripts.evaluateImgLists(files["said"], files["truth"], arguments)["averageScoreClasses"]


def mmsegmentation(truth: Pictures, said: Pictures, folder: Path) -> float:
    """Areas of histograms from 0 to the last class, summed; ``nanmean`` of the quotients."""
    intersection, union = np.zeros(3), np.zeros(3)
    for true, told in zip(truth, said, strict=True):
        true, told = true[true != VOID], told[true != VOID]
        areas = [
            torch.histc(torch.from_numpy(each).float(), 3, 0, 2).numpy() for each in (told[told == true], told, true)
        ]
        intersection, union = intersection + areas[0], union + areas[1] + areas[2] - areas[0]
    with np.errstate(invalid="ignore"), warnings.catch_warnings(action="ignore"):
        return float(np.nanmean(intersection / union))


def ade20k(truth: Pictures, said: Pictures, folder: Path) -> float:
    """Ids from 1, 0 not labelled; predictions there are erased; each class counts, with epsilon in the quotient."""
    intersection, union = np.zeros(3), np.zeros(3)
    for true, told in zip(truth, said, strict=True):
        true, told = ((each + 1) * (each != VOID) for each in (true, told))
        told = told * (true > 0)
        for index in range(3):
            intersection[index] += ((true == index + 1) & (told == index + 1)).sum()
            union[index] += ((true == index + 1) | (told == index + 1)).sum()
    return float(np.mean(intersection / (union + np.spacing(1))))


def monai(truth: Pictures, said: Pictures, folder: Path) -> float:
    metric = pytest.importorskip("monai.metrics").MeanIoU()
    for pair in zip(said, truth, strict=True):
        metric(*(torch.stack([torch.from_numpy(each == index) for index in range(3)])[None].float() for each in pair))
    return metric.aggregate().item()


COLUMNS: dict[str, Callable[[Pictures, Pictures, Path], float]] = {
    "ours": ours,
    "torchmetrics `MulticlassJaccardIndex`": jaccard,
    "torchmetrics `segmentation.MeanIoU`": mean_iou,
    "smp `iou_score`": smp,
    "Cityscapes' scripts": cityscapes,
    "mmsegmentation": mmsegmentation,
    "ADE20K": ade20k,
    "MONAI `MeanIoU`": monai,
}


def table() -> tuple[list[str], dict[str, list[str]]]:
    """The heading's columns, and the cells of each case."""
    passage = PAGE.read_text(encoding="utf-8").partition("## How libraries count")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", passage, re.M)]
    return rows[0][1:], {name: cells for name, *cells in rows[2:]}


def test_the_table_has_all_cases_and_libraries() -> None:
    columns, rows = table()
    assert columns == list(COLUMNS) and list(rows) == list(CASES)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("column", COLUMNS)
def test_a_cell_is_what_the_library_gives(column: str, case: str, tmp_path: Path) -> None:
    columns, rows = table()
    # Rows of six pixels, because some libraries take pictures alone.
    truth, said = ([np.array([row], np.int64) for row in pictures] for pictures in CASES[case])
    try:
        value = COLUMNS[column](truth, said, tmp_path)
        found = "–" if math.isnan(value) else f"{100 * value:.1f}"
    except RuntimeError:
        found = "error"
    assert rows[case][columns.index(column)] == found
