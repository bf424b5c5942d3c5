"""Predictions of other programs and submissions: the published scorers, round trips, and what cannot be right."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from cssformer.data import IGNORE, DatasetInfo, SegmentationFolder
from cssformer.data.dataset import look_up
from cssformer.data.dataset_info import raw_ids
from cssformer.inference import predict_files
from cssformer.metrics import Predictions, Submission, evaluate_predictions
from cssformer.model import CSSFormer, Metadata
from cssformer.prepare import ade20k, cityscapes
from cssformer.prepare.benchmark import Benchmark
from cssformer.prepare.writer import class_table
from cssformer.utils.errors import UserError

SAMPLES = Path(__file__).parents[2].parent / "shared" / "samples"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample pictures in ../shared are absent")


def prepared(root: Path, info: DatasetInfo, labels: dict[str, np.ndarray], split: str = "val") -> SegmentationFolder:
    """A prepared split with these labels (class indices with IGNORE) and grey pictures."""
    for folder in ("images", "labels"):
        (root / split / folder).mkdir(parents=True)
    for name, label in labels.items():
        cv2.imwrite(str(root / split / "images" / f"{name}.png"), np.full((*label.shape, 3), 99, np.uint8))
        stored = np.where(label == IGNORE, info.ignore, label)
        stored = stored.astype(np.uint8 if info.ignore == 255 else np.uint16)
        cv2.imwrite(str(root / split / "labels" / f"{name}.png"), stored)
    info.save(root)
    return SegmentationFolder(root, split)


def save(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), ids)


INFO = DatasetInfo(
    ("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)), mapping={"0": None, "7": 0, "4": 1, "300": 2}
)


@pytest.fixture
def data(tmp_path: Path) -> SegmentationFolder:
    rng = np.random.default_rng(0)
    labels = {name: rng.integers(0, 3, (20, 30)).astype(np.int32) for name in ("x", "x_1", "y")}
    labels["y"][3:7, 4:9] = IGNORE
    return prepared(tmp_path / "data", INFO, labels)


def truth(data: SegmentationFolder, name: str) -> np.ndarray:
    label = data.label(data.names.index(name))
    assert label is not None
    return label


def write_truth(data: SegmentationFolder, folder: Path) -> None:
    """Index files that are right everywhere, the ignored pixels being class 0."""
    for name in data.names:
        save(folder / f"{name}.png", np.where(truth(data, name) == IGNORE, 0, truth(data, name)).astype(np.uint8))


def test_indices_with_a_palette_in_16_bits_and_with_few_bits(data: SegmentationFolder, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    write_truth(data, folder)
    indexed = Image.fromarray(truth(data, "x").astype(np.uint8), "L").convert("P")
    indexed.putpalette([1, 2, 3, 4, 5, 6, 7, 8, 9])
    indexed.save(folder / "x.png", bits=2)
    save(folder / "x_1.png", truth(data, "x_1").astype(np.uint16))
    assert (folder / "x.png").read_bytes()[24:26] == bytes([2, 3])
    evaluation = evaluate_predictions(Predictions(folder, data), data)
    assert evaluation.scores.miou == evaluation.mean_boundary_iou == 1
    assert evaluation.names == ("x", "x_1", "y") and sum(evaluation.scores.pixels) == 3 * 600 - 20


@pytest.mark.parametrize("workers", [0, 2])
def test_names_with_more_behind_them_at_any_depth(data: SegmentationFolder, tmp_path: Path, workers: int) -> None:
    """x_pred.png is for x, x_1_pred.png for x_1; y.png is for y though y_colour.png is there, too."""
    folder = tmp_path / "predictions"
    save(folder / "deep" / "er" / "x_pred.png", truth(data, "x").astype(np.uint8))
    save(folder / "deep" / "x_1_pred.png", truth(data, "x_1").astype(np.uint8))
    save(folder / "y.png", np.zeros((20, 30), np.uint8))
    save(folder / "y_colour.png", np.zeros((20, 30, 3), np.uint8))
    save(folder / "other.png", np.zeros((1, 1), np.uint8))
    found = Predictions(folder, data)
    assert [Path(found.maps[name].place).name for name in data.names] == ["x_pred.png", "x_1_pred.png", "y.png"]
    evaluation = evaluate_predictions(found, data, workers=workers)
    right = (truth(data, "y") == 0).sum()
    assert evaluation.scores.pixel_accuracy == (1200 + right) / (1200 + 580)


def test_the_ignored_value_is_no_prediction(data: SegmentationFolder, tmp_path: Path) -> None:
    write_truth(data, tmp_path / "predictions")
    save(tmp_path / "predictions" / "x.png", np.full((20, 30), 255, np.uint8))
    evaluation = evaluate_predictions(Predictions(tmp_path / "predictions", data), data)
    assert evaluation.matrix[:, -1].sum() == 600
    assert evaluation.scores.pixel_accuracy == pytest.approx(1180 / 1780)


def test_round_trip_loses_ignored_pixels_alone(data: SegmentationFolder, tmp_path: Path) -> None:
    """Prepared labels, as a submission, are the source's ids again; class c has id 300, so 16 bits are written."""
    submission = Submission(tmp_path / "submission", INFO)
    for name in data.names:
        submission.write(name, np.where(truth(data, name) == IGNORE, 2, truth(data, name)))
    written = cv2.imread(str(tmp_path / "submission" / "y.png"), cv2.IMREAD_UNCHANGED)
    assert written.dtype == np.uint16
    np.testing.assert_array_equal(written, np.array([7, 4, 300, 300])[truth(data, "y").clip(-1)])
    evaluation = evaluate_predictions(Predictions(tmp_path / "submission", data, raw=True), data)
    assert evaluation.scores.miou == 1 and evaluation.scores.pixel_accuracy == 1


def test_raw_ids_that_are_ignored_are_no_prediction(data: SegmentationFolder, tmp_path: Path) -> None:
    for name in data.names:
        save(tmp_path / "predictions" / f"{name}.png", np.zeros((20, 30), np.uint8))
    evaluation = evaluate_predictions(Predictions(tmp_path / "predictions", data, raw=True), data)
    assert evaluation.scores.miou == 0 and evaluation.matrix[:, -1].sum() == 1780


@pytest.mark.parametrize("raw", [False, True])
def test_predictions_tell_whether_they_hold_raw_ids(data: SegmentationFolder, tmp_path: Path, raw: bool) -> None:
    """Ids of the source may all be class indices too, so that the score alone would be wrong."""
    model = CSSFormer("test_resnet", 3, channels=16, heads=2, points=1)
    model.metadata = Metadata(INFO.classes, INFO.colours, (1, 2, 0))
    model.save_pretrained(tmp_path / "model")
    pictures = [data.root / "val/images"]
    predict_files(str(tmp_path / "model"), pictures, tmp_path / "out", raw=raw, device="cpu")
    for folder in (tmp_path / "out", tmp_path / "out/labels"):
        Predictions(folder, data, raw)
        with pytest.raises(UserError, match=f"was predicted {'with' if raw else 'without'} --raw"):
            Predictions(folder, data, not raw)


def test_ids_of_classes() -> None:
    assert raw_ids(INFO.classes, INFO.mapping).tolist() == [7, 4, 300]
    # The lowest of several, and class indices where nothing is told.
    assert raw_ids(INFO.classes, {"9": 0, "10": 0, "2": 1, "3": 2}).tolist() == [9, 2, 3]
    assert raw_ids(INFO.classes, {}).tolist() == [0, 1, 2]
    assert raw_ids(INFO.classes, {}).dtype == np.uint8
    with pytest.raises(UserError, match="masks of colours"):
        raw_ids(INFO.classes, {"0 0 9": 0, "1 2 3": 1, "4 5 6": 2})
    with pytest.raises(UserError, match="no id of its source for the class 'b'"):
        raw_ids(INFO.classes, {"1": 0, "2": 2})


def test_no_submission_into_prepared_data(data: SegmentationFolder) -> None:
    for place in (data.root, data.root / "val" / "labels", data.root / "test"):
        with pytest.raises(UserError, match="prepared data"):
            Submission(place, INFO)


def _missing(folder: Path) -> str:
    (folder / "x.png").unlink()
    return r"no prediction for 1 of 3 pictures: x is missing"


def _twice(folder: Path) -> str:
    save(folder / "again" / "x.png", np.zeros((20, 30), np.uint8))
    return r"again/x\.png and .*x\.png may both be the prediction for x"


def _size(folder: Path) -> str:
    save(folder / "x.png", np.zeros((30, 20), np.uint8))
    return r"x\.png is 20x30 but its picture is 30x20"


def _value(folder: Path) -> str:
    save(folder / "x.png", np.full((20, 30), 3, np.uint8))
    return r"x\.png has the value 3, which is not a class from 0 to 2"


def _wide_value(folder: Path) -> str:
    save(folder / "x.png", np.full((20, 30), 511, np.uint16))
    return r"x\.png has the value 511"


def _colours(folder: Path) -> str:
    save(folder / "x.png", np.full((20, 30, 3), (0, 1, 2), np.uint8))
    return r"x\.png is a colour picture"


def _words(folder: Path) -> str:
    (folder / "x.png").write_text("words that are no picture at all")
    return r"x\.png cannot be read as a picture"


def _cut(folder: Path) -> str:
    whole = (folder / "x.png").read_bytes()
    (folder / "x.png").write_bytes(whole[: len(whole) // 2])
    return r"x\.png is truncated"


def _no_folder(folder: Path) -> str:
    folder.rename(folder.parent / "elsewhere")
    return "no file or folder .*predictions"


@pytest.mark.parametrize("damage", [_missing, _twice, _size, _value, _wide_value, _colours, _words, _cut, _no_folder])
def test_what_cannot_be_scored_is_named(data: SegmentationFolder, tmp_path: Path, damage: object) -> None:
    write_truth(data, tmp_path / "predictions")
    message = damage(tmp_path / "predictions")  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        evaluate_predictions(Predictions(tmp_path / "predictions", data), data)


def test_an_unknown_raw_id_is_named(data: SegmentationFolder, tmp_path: Path) -> None:
    write_truth(data, tmp_path / "predictions")
    with pytest.raises(UserError, match="has the value [12], which is not an id of the data set's source"):
        evaluate_predictions(Predictions(tmp_path / "predictions", data, raw=True), data)


# The published scorers, on real labels and predictions that err in many ways.


def classes_of(benchmark: Benchmark, raw: np.ndarray) -> np.ndarray:
    return look_up(class_table(benchmark.index_of), raw)


def disturbed(raw: np.ndarray, ids: np.ndarray, seed: int) -> np.ndarray:
    """The source's ids moved by some pixels, with patches of other ids on them."""
    rng = np.random.default_rng(seed)
    said = np.roll(raw, (3, 5), (0, 1))
    for _ in range(40):
        y, x = rng.integers(raw.shape[0]), rng.integers(raw.shape[1])
        said[y : y + 60, x : x + 90] = rng.choice(ids)
    return said


@needs_samples
def test_cityscapes_scores_are_those_of_its_scripts(tmp_path: Path) -> None:
    """Predictions with ids that are not scored, too; and a submission, read by the server's own program."""
    scripts = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    files = sorted((SAMPLES / "cityscapes" / "gtFine").rglob("*_labelIds.png"))[:2]
    names = [path.name.removesuffix("_gtFine_labelIds.png") for path in files]
    raw = {name: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for name, path in zip(names, files, strict=True)}
    benchmark = cityscapes.BENCHMARK
    data = prepared(tmp_path / "data", benchmark.info(), {name: classes_of(benchmark, raw[name]) for name in names})
    for seed, name in enumerate(names):
        save(tmp_path / "said" / f"{name}_leftImg8bit.png", disturbed(raw[name], np.arange(34), seed))
    evaluation = evaluate_predictions(Predictions(tmp_path / "said", data, raw=True), data)

    arguments = scripts.args
    arguments.evalInstLevelScore, arguments.JSONOutput, arguments.quiet = False, False, True
    arguments.predictionWalk, arguments.predictionPath = None, str(tmp_path / "said")
    said = [scripts.getPrediction(arguments, str(path)) for path in files]
    theirs = scripts.evaluateImgLists(said, [str(path) for path in files], arguments)
    assert evaluation.scores.miou == pytest.approx(theirs["averageScoreClasses"], abs=1e-12)
    for name, iou in zip(benchmark.classes, evaluation.scores.iou, strict=True):
        assert iou == pytest.approx(theirs["classScores"][name], abs=1e-12, nan_ok=True), name
    assert 0.1 < evaluation.scores.miou < 0.9

    submission = Submission(tmp_path / "submission", data.info)
    for name in names:
        label = truth(data, name)
        submission.write(name, np.where(label == IGNORE, 0, label))
        written = cv2.imread(str(tmp_path / "submission" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert written.dtype == np.uint8
        np.testing.assert_array_equal(written[label != IGNORE], raw[name][label != IGNORE])
    arguments.predictionWalk, arguments.predictionPath = None, str(tmp_path / "submission")
    said = [scripts.getPrediction(arguments, str(path)) for path in files]
    assert scripts.evaluateImgLists(said, [str(path) for path in files], arguments)["averageScoreClasses"] == 1


@needs_samples
def test_ade20k_scores_are_those_of_its_definition(tmp_path: Path) -> None:
    """Ids 1 to 150, 0 not labelled: predictions there are erased, areas are summed over pictures and divided."""
    files = sorted((SAMPLES / "ade20k" / "annotations").rglob("*.png"))
    raw = {path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in files}
    benchmark = ade20k.BENCHMARK
    data = prepared(tmp_path / "data", benchmark.info(), {name: classes_of(benchmark, raw[name]) for name in raw})
    present = np.unique(np.concatenate([ids.ravel() for ids in raw.values()]))
    intersection, union, correct, labelled = np.zeros(150), np.zeros(150), 0, 0
    for seed, (name, annotation) in enumerate(raw.items()):
        said = disturbed(annotation, present, seed)
        save(tmp_path / "said" / f"{name}.png", said)
        correct += ((said == annotation) & (annotation > 0)).sum()
        labelled += (annotation > 0).sum()
        said = said * (annotation > 0)
        for index in range(150):
            intersection[index] += ((said == index + 1) & (annotation == index + 1)).sum()
            union[index] += ((said == index + 1) | (annotation == index + 1)).sum()
    evaluation = evaluate_predictions(Predictions(tmp_path / "said", data, raw=True), data)
    assert evaluation.scores.pixel_accuracy == correct / labelled
    # The definition counts classes that never occur as 0; in the whole validation split all occur.
    assert evaluation.scores.miou * (union > 0).sum() == pytest.approx((intersection / np.maximum(union, 1e-9)).sum())
    submission = Submission(tmp_path / "submission", data.info)
    for name, annotation in raw.items():
        label = truth(data, name)
        submission.write(name, np.where(label == IGNORE, 0, label))
        written = cv2.imread(str(tmp_path / "submission" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(written[annotation > 0], annotation[annotation > 0])


@needs_samples
def test_torchmetrics_agrees_on_real_labels(tmp_path: Path) -> None:
    path = min((SAMPLES / "cityscapes" / "gtFine").rglob("*_labelIds.png"))
    label = classes_of(cityscapes.BENCHMARK, cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
    said = disturbed(np.where(label == IGNORE, 0, label), np.arange(19), 0)
    data = prepared(tmp_path / "data", cityscapes.BENCHMARK.info(), {"x": label})
    save(tmp_path / "said" / "x.png", said.astype(np.uint8))
    ours = evaluate_predictions(Predictions(tmp_path / "said", data), data).scores.miou
    theirs = MulticlassJaccardIndex(19, average="macro", ignore_index=IGNORE)(
        torch.from_numpy(said), torch.from_numpy(label)
    )
    assert ours == pytest.approx(theirs.item(), abs=1e-6)
