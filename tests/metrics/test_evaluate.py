"""Evaluation of a data set, its confidence interval and the report it leaves."""

import csv
import io
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from cssformer.data import IGNORE, DatasetInfo, Sample, SyntheticScenes
from cssformer.inference import Predictor, predict
from cssformer.metrics import contact_sheet, evaluate, write_report
from cssformer.metrics.confusion import ConfusionMatrix
from cssformer.metrics.report import EXAMPLES, spread, thinned
from cssformer.metrics.scoring import Evaluation, Scorer, bootstrap_interval, groups_of
from cssformer.model import CSSFormer
from cssformer.utils.errors import UserError
from cssformer.visualize.drawing import confusion_picture

INFO = DatasetInfo(("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))


class ByColour(nn.Module):
    """The class whose channel is brightest."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward_logits(self, images: Tensor) -> Tensor:
        return images[..., ::4, ::4] + self.bias


class Colours:
    """Pictures of changing size whose label is random with some ignored pixels."""

    info = INFO

    def __init__(self, count: int = 7) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        size = (40, 52) if index % 3 else (36, 44)
        image = np.kron(rng.integers(256, size=(4, 4, 3)), np.ones((13, 13, 1)))[: size[0], : size[1]].astype(np.uint8)
        label = rng.integers(-1, 3, size=size).astype(np.int32)
        label[label < 0] = IGNORE
        return Sample(f"picture{index}", image, label)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_picture_is_scored_once(workers: int) -> None:
    model, data = ByColour(), Colours()
    expected = ConfusionMatrix(3)
    for index in range(len(data)):
        _, image, label = data[index]
        labels = predict(model, torch.from_numpy(image).permute(2, 0, 1)).labels
        expected.update(labels[None], torch.from_numpy(label)[None])
    evaluation = evaluate(model, data, workers=workers, batch_size=3)
    assert evaluation.matrix[:, :-1].tolist() == expected.matrix.tolist() and not evaluation.matrix[:, -1].any()
    assert evaluation.scores == expected.scores()
    assert evaluation.names == tuple(f"picture{index}" for index in range(7))
    np.testing.assert_array_equal(evaluation.areas.sum(0)[1], evaluation.matrix.sum(1))


def test_mean_boundary_iou_of_a_perfect_prediction_is_one() -> None:
    scorer = Scorer(INFO)
    for index in range(3):
        label = Colours()[index].label
        assert label is not None
        scorer.add(str(index), scorer.count(np.where(label == IGNORE, 0, label), label))
    evaluation = scorer.result()
    assert evaluation.mean_boundary_iou == evaluation.scores.miou == evaluation.trimap[4].miou == 1


def test_wrong_number_of_classes() -> None:
    scenes = SyntheticScenes(1, (32, 32))
    with pytest.raises(UserError, match=f"3 classes but the data has {len(scenes.info.classes)}"):
        evaluate(ByColour(), scenes)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_picture_is_one_sentence(workers: int) -> None:
    class Broken(Colours):
        def __getitem__(self, index: int) -> Sample:
            raise UserError("picture7.jpg is truncated.")

    with pytest.raises(UserError, match=r"^picture7.jpg is truncated\.$"):
        evaluate(ByColour(), Broken(), workers=workers)


@pytest.mark.parametrize("together", [1, 3])
def test_the_picture_whose_class_scores_are_not_finite_is_named(together: int) -> None:
    class Divided(ByColour):
        def forward_logits(self, images: Tensor) -> Tensor:
            # Black is in no other one.
            return super().forward_logits(images) / images.amin((1, 2, 3), keepdim=True)

    class OneBlack(Colours):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            return sample._replace(image=np.maximum(sample.image, 1) * np.uint8(index != 4))

    names = "picture4" if together == 1 else "picture4, picture5"
    with pytest.raises(UserError, match=rf"^{names}: The network's class scores are not finite numbers; look at"):
        evaluate(Divided(), OneBlack(), batch_size=together)


def test_a_split_without_labels() -> None:
    class Unlabelled(Colours):
        def __getitem__(self, index: int) -> Sample:
            return super().__getitem__(index)._replace(label=None)

    with pytest.raises(UserError, match="picture0 has no label"):
        evaluate(ByColour(), Unlabelled(), workers=0)


def test_progress_is_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr("sys.stderr", text)
    evaluate(ByColour(), Colours(), workers=0)
    assert not text.getvalue()
    monkeypatch.setattr(text, "isatty", lambda: True)
    monkeypatch.setattr("cssformer.utils.console.tqdm", partial(tqdm, mininterval=0))
    evaluate(ByColour(), Colours(), workers=0)
    assert "7/7" in text.getvalue() and "mIoU" in text.getvalue()


def test_interval_of_equal_pictures_is_a_point() -> None:
    areas = np.tile(np.array([[3, 5], [4, 6], [5, 5]]), (20, 1, 1))
    assert bootstrap_interval(areas) == pytest.approx(((3 / 6 + 5 / 6) / 2,) * 2)


def test_interval_of_two_pictures_by_hand() -> None:
    """Two pictures of one class, IoU 1 and 0: a resampling has 0, 1 or 2 of the good one, IoU 0, 1/2 or 1."""
    areas = np.array([[[10], [10], [10]], [[0], [10], [0]]])
    assert bootstrap_interval(areas) == (0, 1)
    # Three resamplings in four reach at least 1/2, one in four 1.
    assert bootstrap_interval(areas, level=0.4) == pytest.approx((0.5, 0.5))


def test_interval_has_the_width_of_theory() -> None:
    """For many pictures of one size and one class the mean is normal: width 2 · 1.96 σ / √n."""
    right = np.random.default_rng(0).integers(40, 100, size=400)
    areas = np.stack([right, np.full(400, 100), right], 1)[:, :, None]
    low, high = bootstrap_interval(areas)
    assert low < right.mean() / 100 < high
    assert high - low == pytest.approx(2 * 1.96 * right.std() / 100 / math.sqrt(400), rel=0.1)


def test_the_interval_over_groups_is_that_of_the_groups_sums() -> None:
    """Frames of a video are alike, so that the interval over frames is too narrow."""
    rng = np.random.default_rng(0)
    right = np.repeat(rng.integers(40, 100, size=50), 8)
    areas = np.stack([right, np.full(400, 100), right], 1)[:, :, None]
    names = tuple(f"video{index // 8:02}/frame{index % 8}" for index in range(400))
    info = Colours().info
    frames = Evaluation(info, names, np.zeros((2, 1, 2), np.int64), areas, areas)
    videos = replace(frames, groups=groups_of(names, "^[^/]+"))
    assert videos.interval == bootstrap_interval(areas.reshape(50, 8, 3, 1).sum(axis=1))
    width, narrow = (high - low for low, high in (videos.interval, frames.interval))
    assert width / narrow == pytest.approx(8**0.5, rel=0.15)
    for pattern, told in (
        ("[", "no regular expression"),
        ("video0", "not found in the name video10/"),
        ("^v", "one group"),
    ):
        with pytest.raises(UserError, match=told):
            groups_of(names, pattern)


def test_interval_does_not_change_from_call_to_call() -> None:
    areas = np.random.default_rng(0).integers(1, 50, size=(9, 3, 4))
    assert bootstrap_interval(areas) == bootstrap_interval(areas)


def test_one_picture_has_no_interval() -> None:
    assert np.isnan(bootstrap_interval(np.full((1, 3, 4), 5))).all()
    evaluation = evaluate(ByColour(), Colours(1), workers=0)
    assert evaluation.as_dict()["miou_interval"] == [None, None]
    assert "95 %" not in dict(evaluation.summary())["mIoU"] and "note" not in dict(evaluation.summary())


def test_an_interval_of_few_pictures_or_groups_is_called_that() -> None:
    assert dict(evaluate(ByColour(), Colours(12), workers=0).summary())["note"].startswith("12 pictures: too few")
    many = evaluate(ByColour(), Colours(13), workers=0)
    assert "note" not in dict(many.summary())
    videos = replace(many, groups=("a", "b") * 6 + ("a",))
    assert dict(videos.summary())["note"].startswith("2 groups: too few")


def test_report(tmp_path: Path) -> None:
    model, data = ByColour(), Colours()
    evaluation = evaluate(model, data, workers=0, mode="slide", crop=32, precision="bf16")
    write_report(evaluation, data, tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["miou"] == evaluation.scores.miou
    assert scores["miou_interval"][0] <= scores["miou"] <= scores["miou_interval"][1]
    assert list(scores["classes"]) == ["a", "b", "c"] and scores["classes"]["b"]["iou"] == evaluation.scores.iou[1]
    assert scores["classes"]["c"]["pixels"] == evaluation.scores.pixels[2] and scores["groups"] is None
    assert scores["options"] == {"mode": "slide", "crop": 32, "precision": "bf16"}
    with (tmp_path / "run" / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["a", "b", "c"]
    assert float(rows[1]["iou"]) == pytest.approx(evaluation.scores.iou[1], abs=1e-6)
    common, true, said = evaluation.areas.sum(axis=0)[:, 1]
    assert float(rows[1]["dice"]) == pytest.approx(2 * common / (true + said), abs=1e-6)
    assert float(rows[2]["trimap_iou_4px"]) == pytest.approx(evaluation.trimap[4].iou[2], abs=1e-6)
    assert scores["trimap_miou"]["4"] == evaluation.trimap[4].miou
    with (tmp_path / "run" / "pictures.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(dict.fromkeys(row["picture"] for row in table)) == list(evaluation.names)
    for index, name in enumerate(evaluation.names):
        rows = [row for row in table if row["picture"] == name]
        assert np.mean([float(row["iou"]) for row in rows]) == pytest.approx(evaluation.picture_miou[index], abs=1e-6)
    for number, kind in enumerate("abc"):
        rows = [row for row in table if row["class"] == kind]
        assert sum(int(row["true_pixels"]) for row in rows) == evaluation.areas[:, 1, number].sum()
        assert sum(int(row["predicted_pixels"]) for row in rows) == evaluation.areas[:, 2, number].sum()
    for name in ("confusion.png", "pictures.png", "worst.png"):
        with Image.open(tmp_path / "run" / name) as picture:
            assert picture.mode == "RGB"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "classes.csv",
        "confusion.png",
        "pictures.csv",
        "pictures.png",
        "scores.json",
        "worst.png",
    ]


def test_the_scores_are_written_last(tmp_path: Path) -> None:
    class Gone(Colours):
        def __getitem__(self, index: int) -> Sample:
            raise UserError("Cannot read picture0.")

    with pytest.raises(UserError):
        write_report(evaluate(ByColour(), Colours(), workers=0), Gone(), tmp_path)
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize("count", [1, 5, 40])
def test_the_report_shows_what_was_scored(count: int, tmp_path: Path) -> None:
    """Each picture is predicted once, and no more predictions are kept than shown."""
    model, data = ByColour(), Colours(count)
    calls = []
    forward_logits = model.forward_logits
    model.forward_logits = lambda images: calls.append(0) or forward_logits(images)
    evaluation = evaluate(model, data, workers=0)
    write_report(evaluation, data, tmp_path)
    assert len(calls) == count
    shown = {*spread(count), *evaluation.worst(EXAMPLES)}
    assert evaluation.examples.keys() == shown
    for index in shown:
        labels = predict(model, torch.from_numpy(data[index].image).permute(2, 0, 1)).labels
        np.testing.assert_array_equal(evaluation.examples[index], labels)


def test_captions_by_hand() -> None:
    """Three of four pixels are right; IoU 2/3 and 1/2."""
    scorer = Scorer(INFO)
    label = np.array([[0, 0, 0, 1]], np.int32)
    scorer.add("a", scorer.count(np.array([[0, 0, 1, 1]], np.int32), label))
    assert scorer.result().caption(0) == "a · mIoU 58.33 % · 75.00 % of the pixels are right"


def test_tall_pictures_do_not_make_tall_sheets() -> None:
    label = np.zeros((20000, 4), np.int32)
    tall = Sample("tall", np.zeros((20000, 4, 3), np.uint8), label)
    assert contact_sheet([(tall, thinned(label), "")], INFO).shape[0] < 700
    wide = Sample("wide", np.zeros((4, 20000, 3), np.uint8), label.T)
    assert contact_sheet([(wide, thinned(label.T), "")], INFO).shape[0] < 300


def test_a_predictor_brings_its_options() -> None:
    network = CSSFormer("test_resnet", 3, channels=32, heads=4, points=2)
    predictor = Predictor(network, "cpu", mode="slide", crop=(32, 32))
    evaluation = evaluate(predictor, Colours(2), workers=0, flip=True)
    assert evaluation.options == {"mode": "slide", "crop": (32, 32), "flip": True}
    assert evaluation.scores == evaluate(network, Colours(2), workers=0, **evaluation.options).scores


def test_contact_sheet_shows_truth_prediction_and_errors_in_their_colours() -> None:
    """A picture of 300 pixels, the width of a tile, so that its pixels are found again."""
    image = np.full((60, 300, 3), 10, np.uint8)
    label = np.zeros((60, 300), np.int32)
    label[:, 200:] = IGNORE
    prediction = np.zeros((60, 300), np.int32)
    prediction[:, 100:] = 1
    picture = contact_sheet([(Sample("x", image, label), prediction, "")], INFO)
    left, truth, predicted, errors = (12 + index * 312 for index in range(4))
    y = 34 + 30
    assert picture[y, left + 50].tolist() == [10, 10, 10]
    assert picture[y, truth + 150].tolist() == [255, 0, 0]
    assert picture[y, predicted + 50].tolist() == [255, 0, 0]
    assert picture[y, predicted + 150].tolist() == [0, 255, 0]
    assert picture[y, errors + 150].tolist() == [224, 49, 49]
    assert picture[y, errors + 50].tolist() != [224, 49, 49]
    assert picture[y, truth + 250].tolist() == picture[y, errors + 250].tolist() == [52, 58, 64]


def test_contact_sheet_of_150_classes_and_any_shape() -> None:
    count = 150
    info = replace(INFO, classes=tuple(f"class {i}" for i in range(count)), colours=((9, 9, 9),) * count)
    samples = []
    for name, (height, width) in (("wide", (40, 900)), ("tall", (500, 20))):
        label = np.arange(height * width, dtype=np.int32).reshape(height, width) % count
        samples.append(Sample(name, np.zeros((height, width, 3), np.uint8), label))
    picture = contact_sheet([(sample, sample.label, "") for sample in samples], info)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3


def test_worst_pictures_by_hand() -> None:
    """IoU of two classes: 1 and 1; 1/4 and none; nothing scored; 1/2 and 1/2; 1/4 and none again."""
    areas = [[[4, 4], [4, 4], [4, 4]], [[1, 0], [4, 0], [1, 0]], [[0] * 2] * 3, [[2, 2], [3, 3], [3, 3]]]
    areas.append(areas[1])
    evaluation = Evaluation(INFO, tuple("abcde"), np.zeros((7, 2, 3), np.int64), np.array(areas), np.array(areas))
    np.testing.assert_allclose(evaluation.picture_miou, [1, 0.25, np.nan, 0.5, 0.25])
    assert evaluation.worst(10) == [1, 4, 3, 0]
    assert evaluation.worst(2) == [1, 4]


def test_pixels_without_prediction_are_missed_and_no_more() -> None:
    """Four pixels of class 0 of which one has no answer: IoU 3/4, and class 1 is not touched by it."""
    label = np.array([[0, 0, 1, IGNORE], [0, 0, 1, IGNORE]], np.int32)
    prediction = np.array([[0, IGNORE, 1, IGNORE], [0, 0, 1, 0]], np.int32)
    scorer = Scorer(INFO)
    scorer.add("x", scorer.count(prediction, label))
    scores = scorer.result().scores
    assert scores.iou[:2] == (0.75, 1) and scores.pixel_accuracy == 5 / 6 and scores.pixels == (4, 2, 0)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5])
def test_a_dilation_ratio_that_cannot_be(ratio: float) -> None:
    with pytest.raises(UserError, match="dilation ratio"):
        Scorer(INFO, ratio)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        Scorer(INFO).count(np.zeros((2, 3), np.int32), np.zeros((3, 2), np.int32))


def test_the_heading_of_a_small_confusion_matrix_is_not_cut() -> None:
    def ink(count: int) -> int:
        """Columns from the heading's first letter to its last."""
        picture = confusion_picture(np.eye(count, dtype=np.int64), "abcdefghijklmnop"[:count])
        columns = np.flatnonzero((picture[:30] < 128).any(axis=(0, 2)))
        return int(columns[-1] - columns[0])

    assert ink(1) == ink(2) == ink(16) > 300


def test_the_confusion_matrix_shows_missing_predictions_only_if_there_are_any() -> None:
    full, missing = np.eye(9, 10, dtype=np.int64), np.eye(9, 10, dtype=np.int64)
    missing[0, 9] = 4
    names = [f"class number {index}" for index in range(9)]
    assert np.array_equal(confusion_picture(full, names), confusion_picture(full[:, :9], names))
    assert confusion_picture(missing, names).shape[1] == confusion_picture(full, names).shape[1] + 56


@pytest.mark.filterwarnings("error")
def test_the_interval_of_no_labelled_pixel_is_none_and_silent() -> None:
    assert np.isnan(bootstrap_interval(np.zeros((2, 3, 4), np.int64))).all()
