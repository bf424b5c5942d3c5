"""Where regions look: against the mean of explanations of their pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cssformer import Metadata
from cssformer.cli import main
from cssformer.data import SyntheticScenes
from cssformer.inference import Predictor, explain
from cssformer.inference.explain_region import explain_class, explain_region, heat_sheet
from cssformer.model import CSSFormer
from cssformer.utils.errors import UserError


@pytest.fixture(scope="module")
def model() -> CSSFormer:
    torch.manual_seed(0)
    model = CSSFormer("test_resnet", num_classes=3, channels=16, heads=2, points=3, aux=False).eval()
    with torch.no_grad():
        for parameter in (*model.msfe.parameters(), *model.csf.parameters()):
            parameter += 0.3 * torch.randn_like(parameter)
    model.metadata = Metadata(("sky", "tree", "road"))
    return model


def picture(height: int, width: int) -> np.ndarray:
    return np.ascontiguousarray(SyntheticScenes(1, (192, 320))[0].image[:height, :width])


@pytest.mark.parametrize("options", [{}, {"short_side": 40}, {"mode": "slide", "crop": 64}])
def test_a_region_is_the_mean_of_its_pixels(model: CSSFormer, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cssformer.inference.explain_region.TOKENS_AT_ONCE", 3)
    predictor, pixels = Predictor(model, "cpu", **options), picture(70, 90)
    mask = np.zeros((70, 90), bool)
    # Symmetric about a pixel, around which the window lies for the region.
    for x, y in ((40, 30), (38, 30), (42, 30), (40, 20), (40, 40)):
        mask[y, x] = True
    region = explain_region(predictor, pixels, mask)
    if options.get("mode") == "slide":
        # Each pixel would have a window of its own.
        mask[:] = False
        mask[30, 40] = True
        region = explain_region(predictor, pixels, mask)
    singles = [explain(predictor, pixels, x, y) for y, x in zip(*np.nonzero(mask), strict=True)]
    for index, rolled in enumerate(region.maps):
        maps = [single.maps[index] for single in singles]
        assert rolled.module == maps[0].module
        np.testing.assert_allclose(rolled.shares, np.mean([each.shares() for each in maps], 0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(rolled.reach, np.mean([each.reach() for each in maps], 0), rtol=1e-4)
        outside = np.mean([each.outside(70, 90) for each in maps], 0)
        np.testing.assert_allclose(rolled.outside, outside, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(rolled.heat.sum((1, 2, 3)) + outside, 1, rtol=1e-4)
        inside = [sum_inside(each, mask) for each in maps]
        np.testing.assert_allclose(rolled.inside, np.mean(inside, 0), rtol=1e-4, atol=1e-6)


def sum_inside(sampled: object, mask: np.ndarray) -> list[float]:
    """Place by place."""
    totals = []
    for places, weights in zip(sampled.places, sampled.weights, strict=True):
        total = 0.0
        for (x, y), weight in zip(places.reshape(-1, 2), weights.ravel(), strict=True):
            column, row = round(float(x)), round(float(y))
            if 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1] and mask[row, column]:
                total += float(weight)
        totals.append(total / weights.shape[0])
    return totals


def test_heat_lies_where_the_pixel_looks(model: CSSFormer) -> None:
    predictor, pixels = Predictor(model, "cpu"), picture(64, 96)
    mask = np.zeros((64, 96), bool)
    mask[20, 50] = True
    (look, *_), (sampled, *_) = explain_region(predictor, pixels, mask).maps, explain(predictor, pixels, 50, 20).maps
    expected = np.zeros(look.heat.shape)
    for token, level, point in np.ndindex(4, 4, 3):
        for head in range(2):
            x, y = np.rint(sampled.places[token, head, level, point]).astype(int)
            if 0 <= x < 96 and 0 <= y < 64:
                expected[token, level, y // 4, x // 4] += sampled.weights[token, head, level, point] / 2
    np.testing.assert_allclose(look.heat, expected, atol=1e-6)


def test_classes_and_what_cannot_be_explained(model: CSSFormer, tmp_path: Path) -> None:
    predictor = Predictor(model, "cpu")
    Image.fromarray(picture(64, 96)).save(tmp_path / "a.png")
    prediction = predictor(tmp_path / "a.png")
    name = next(iter(prediction.shares))
    (found,) = explain_class(predictor, [tmp_path / "a.png"], name)
    np.testing.assert_array_equal(found.mask, prediction.labels == predictor.classes.index(name))
    with pytest.raises(UserError, match="no class 'cat'; it has sky, tree, road"):
        explain_class(predictor, [tmp_path / "a.png"], "cat")
    with pytest.raises(UserError, match="which is 96 wide and 64 high"):
        explain_region(predictor, prediction, np.zeros((64, 96), bool))
    with pytest.raises(UserError, match="no tokens of stride 5; choose one of 4, 8, 16, 32"):
        heat_sheet([found], 5)


def test_command(model: CSSFormer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "in").mkdir()
    for index in range(2):
        Image.fromarray(picture(50 + 10 * index, 70)).save(tmp_path / f"in/{index}.png")
    name = next(iter(Predictor(model, "cpu")(tmp_path / "in/0.png").shares))

    def run(image: str, *more: object) -> int:
        words = ["explain", tmp_path / "model", tmp_path / image, "--output", tmp_path / "heat.png", "--device", "cpu"]
        return main([*map(str, (*words, *more))])

    # Of prepared data the labels are no pictures.
    (tmp_path / "dataset.yaml").write_text("")
    (tmp_path / "in/labels").mkdir()
    Image.fromarray(np.zeros((50, 70), np.uint8)).save(tmp_path / "in/labels/0.png")
    assert run("in", "--class", name, "--json", tmp_path / "heat.json") == 0
    told = json.loads((tmp_path / "heat.json").read_text())
    assert told["region"] == name and told["of"] == 2 and len(told["samples"]) == 2 * 4
    assert all(abs(sum(row["shares"].values()) - 1) < 1e-5 for row in told["samples"])
    assert f"of 2 with {name}: {tmp_path / 'heat.png'}" in capsys.readouterr().out
    assert Image.open(tmp_path / "heat.png").width == 12 + 3 * 284
    assert run("in/0.png", "--box", 10, 10, 20, 5) == 0
    assert Image.open(tmp_path / "heat.png").width == 12 + 6 * 284
    assert run("in/0.png", "--box", 60, 10, 20, 5) == 2
    assert "0.png, which is 70 wide and 50 high" in capsys.readouterr().err
    assert run("in/0.png") == 2 and run("in/0.png", "--at", 1, 1, "--class", name) == 2
    assert capsys.readouterr().err.count("Give one of --at X Y, --box X Y WIDTH HEIGHT and --class NAME.") == 2
