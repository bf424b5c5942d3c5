"""A network of several classes a pixel: it learns overlapping discs, resumes to the bit, and serves all commands."""

import io
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio import Affine
from rich.console import Console
from safetensors.torch import load_file

from cssformer import CSSFormer, Predictor
from cssformer.cli import main
from cssformer.data import Sample, SegmentationFolder
from cssformer.data.stream import TrainingStream
from cssformer.data.transforms import Augment
from cssformer.inference.explain import explain
from cssformer.metrics import evaluate
from cssformer.metrics.evaluate import require_fitting
from cssformer.prepare.folder import prepare_folder
from cssformer.serve.service import Service
from cssformer.training import train as runs
from cssformer.training.assemble import assemble
from cssformer.training.recipe import AugmentConfig, LossConfig, ModelConfig, Recipe, TrainingConfig
from cssformer.utils.errors import UserError
from tests.data.discs import CLASSES, prepared_discs


def recipe(data: Path, output: Path, steps: int, **loss: object) -> Recipe:
    return Recipe(
        data=str(data),
        output=str(output),
        model=ModelConfig(backbone="test_resnet", channels=16, heads=2, points=2),
        augment=AugmentConfig(crop=(32, 32), rare_class_crops=0.3, paste=0.3),
        loss=LossConfig(**loss),
        training=TrainingConfig(
            steps=steps, batch_size=4, warmup_steps=2, log_every=20, validate_every=steps // 2, workers=0, logger=[]
        ),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_discs(tmp_path_factory.mktemp("discs") / "data")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "run"
    evaluation = runs.train(recipe(data, output, 80, dice=0.5))
    assert evaluation is not None and evaluation.scores.miou > 0.8 and min(evaluation.scores.iou) > 0.75
    return output


def test_it_learns_and_its_scores_are_those_of_the_masks(run: Path, data: Path) -> None:
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["multilabel"] is True
    predictor, split = Predictor.from_pretrained(run, "cpu"), SegmentationFolder(data, "val")
    common, union = np.zeros(3), np.zeros(3)
    for name, _, label in split:
        assert label is not None
        said = predictor(split.images[name]).masks[:, label >= 0]
        true = np.stack([label[label >= 0] >> index & 1 == 1 for index in range(3)])
        common, union = common + (said & true).sum(1), union + (said | true).sum(1)
    scores = json.loads((run / "scores.json").read_text())
    assert [each["iou"] for each in scores["classes"].values()] == pytest.approx((common / union).tolist())
    assert main(["evaluate", str(run), "--data", str(data), "--threshold", "0.9"]) == 0
    (accuracy,) = {evaluate(predictor, split).scores.pixel_accuracy}
    assert accuracy == pytest.approx(scores["pixel_accuracy"])


def test_predicted_masks_are_prepared_to_what_was_predicted(run: Path, data: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    (pictures / "some").mkdir(parents=True)
    for number in range(3):
        path = data / "val" / "images" / f"{number}.png"
        (pictures / "some" / f"{number}.png").write_bytes(path.read_bytes())
    words = ["--overlay", "true", "--confidence", "true", "--probabilities", "true", "--save", "coco", "geojson"]
    assert main(["predict", str(run), str(pictures), "--output", str(tmp_path / "out"), *words]) == 0
    prepare_folder([pictures, tmp_path / "out" / "labels"], tmp_path / "data", multilabel=True, classes=list(CLASSES))
    predictor = Predictor.from_pretrained(run, "cpu")
    for split in ("train", "val"):
        for name, image, label in SegmentationFolder(tmp_path / "data", split):
            found = predictor(image, top_k=3)
            assert label is not None and (label == found.labels).all()
            kept = np.load(tmp_path / "out" / "probabilities" / "some" / f"{name[-1]}.npy")
            np.testing.assert_allclose(kept, found.probabilities, atol=1e-3)
            assert ((kept > 0.51) <= found.masks).all() and ((kept < 0.49) <= ~found.masks).all()
    told = json.loads((tmp_path / "out" / "coco.json").read_text())
    areas = {each["category_id"]: each["area"] for each in told["annotations"] if each["image_id"] == 1}
    first = predictor(pictures / "some" / "0.png")
    assert areas == {index + 1: int(mask.sum()) for index, mask in enumerate(first.masks) if mask.any()}
    regions = [each for each in first.polygons(0) if each.name == "green"]
    assert sum(each.area for each in regions) == first.masks[1].sum()
    again = ["predict", str(run), str(pictures), "--output", str(tmp_path / "out"), "--skip_existing", "true"]
    assert main(again) == 0


def test_resumed_weights_are_the_uninterrupted_ones(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    whole, broken = (
        recipe(data, tmp_path / name, 4, focal=0.5, lovasz=0.5, boundary=0.1, class_weights="balanced")
        for name in ("whole", "broken")
    )
    runs.train(whole)
    readings = 0

    def read(self: SegmentationFolder, index: int) -> Sample:
        nonlocal readings
        readings += self.split == "train"
        if readings == 15:
            raise Killed
        return original(self, index)

    original = SegmentationFolder.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationFolder, "__getitem__", read)
        with pytest.raises(Killed):
            runs.train(broken)
    runs.train(broken, resume=True)
    expected, found = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken"))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_classes_of_a_network_of_one_class_a_pixel_begin_anew(run: Path, data: Path, tmp_path: Path) -> None:
    model = CSSFormer.from_pretrained(run)
    for multilabel, said in ((True, "taken over."), (False, "the class red, the class green, the class blue")):
        model.metadata = replace(model.metadata, multilabel=multilabel)
        model.save_pretrained(tmp_path / str(multilabel))
        asked, out = recipe(data, tmp_path / "other", 2), io.StringIO()
        asked.model.init = str(tmp_path / str(multilabel))
        assemble(asked, Console(file=out, width=1000), verify=False)
        assert said in out.getvalue()


def test_crops_and_pasted_pixels_hold_the_class(data: Path) -> None:
    split = SegmentationFolder(data, "train")
    augment = Augment((16, 16), rare_class_crops=1.0, multilabel=True)
    for seed in range(10):
        for index in range(3):
            if (split[0].label >> index & 1)[split[0].label >= 0].any():
                label = augment(split[0], np.random.default_rng(seed), index).label
                assert ((label >= 0) & (label >> index & 1 == 1)).any()
    (item,) = TrainingStream(split, Augment((16, 16)), 0, 1)[0]["label"][None]
    assert item.dtype == torch.int16 and set(item.unique().tolist()) <= {-100, *range(8)}


def test_explain_names_all_classes_of_a_pixel(run: Path, data: Path) -> None:
    predictor = Predictor.from_pretrained(run, "cpu")
    found = predictor(data / "val" / "images" / "0.png")
    for value, name in ((0, "no class"), (3, "red and green"), (4, "blue")):
        where = np.argwhere(found.labels == value)
        if len(where):
            y, x = where[0].tolist()
            assert explain(predictor, found, x, y).label[0] == name
    assert {0} < set(np.unique(found.labels).tolist())


def test_an_exported_file_predicts_the_same(run: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from cssformer.export import export_model

    with pytest.raises(UserError, match="no single label"):
        export_model(run, tmp_path / "x.onnx", returns=["labels"])
    export_model(run, tmp_path / "x.onnx", returns=["logits", "probabilities"])
    picture = data / "val" / "images" / "0.png"
    exported, own = Predictor.from_pretrained(tmp_path / "x.onnx"), Predictor.from_pretrained(run, "cpu")
    assert (exported(picture).labels == own(picture).labels).mean() > 0.99


def test_what_is_for_one_class_a_pixel_refuses(run: Path, data: Path, tmp_path: Path, capsys) -> None:
    picture = str(data / "val" / "images" / "0.png")
    placed = tmp_path / "placed.tif"
    with rasterio.open(placed, "w", "GTiff", 32, 32, 3, "EPSG:4326", Affine(1, 0, 5, 0, -1, 50), "uint8") as raster:
        raster.write(np.full((3, 32, 32), 90, np.uint8))
    refusals = {
        ("predict", str(run), str(placed), "--output", str(tmp_path / "p")): "is a GeoTIFF, whose place",
        ("check", str(data), "--model", str(run)): "needs one class a pixel",
        ("score", str(tmp_path), str(data)): "A score of label files needs one class a pixel",
        ("evaluate", str(run), "--submission", str(tmp_path / "s")): "A submission needs one class a pixel",
        ("calibrate", str(run), "--output", str(tmp_path / "c")): "The temperature needs one class a pixel",
        ("predict", str(run), picture, "--output", str(tmp_path / "p"), "--raw", "true"): "leave out raw",
        ("predict", str(run), picture, "--output", str(tmp_path / "p"), "--save", "cvat"): "annotations are coco",
        ("predict", str(run), picture, "--output", str(tmp_path / "p"), "--threshold", "1"): "between 0 and 1",
    }
    for words, sentence in refusals.items():
        assert main(list(words)) == 2
        assert sentence in capsys.readouterr().err, words
    predictor = Predictor.from_pretrained(run, "cpu")
    with pytest.raises(UserError, match="A file of labels needs one class a pixel"):
        predictor(picture).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="The server needs one class a pixel"):
        Service(predictor, "run")
    plain = CSSFormer("test_resnet", 3, channels=16, heads=2, points=2)
    with pytest.raises(UserError, match="A threshold is for multi-label networks"):
        Predictor(plain, "cpu", threshold=0.3)
    with pytest.raises(UserError, match="The model gives one class a pixel, but the data has several"):
        require_fitting(plain, SegmentationFolder(data, "val").info)


def test_a_class_that_names_no_folder_writes_nothing(run: Path, data: Path, tmp_path: Path) -> None:
    model = CSSFormer.from_pretrained(run)
    model.metadata = type(model.metadata)(("../red", "green", "blue"), multilabel=True)
    prediction = Predictor(model, "cpu")(data / "val" / "images" / "0.png")
    with pytest.raises(UserError, match=r"'../red' cannot name a folder"):
        prediction.save_masks(tmp_path / "out", "0")
    assert not list(tmp_path.iterdir())


def test_one_class_is_binary_segmentation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        mask = np.zeros((32, 32), np.uint8)
        cv2.circle(mask, rng.integers(8, 24, 2).tolist(), 8, 255, -1)
        for kind, pixels in (("pictures", np.dstack([mask // 2 + 60] * 3)), ("masks/disc", mask)):
            (tmp_path / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number}.png")
    found = prepare_folder([tmp_path / "pictures", tmp_path / "masks"], tmp_path / "data", multilabel=True)
    assert found.info.classes == ("disc",)
    evaluation = runs.train(recipe(tmp_path / "data", tmp_path / "run", 40))
    assert evaluation is not None and evaluation.scores.miou > 0.8
