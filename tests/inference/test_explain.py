"""Explanations against the modules' formulas, by hand, and as pictures."""

import copy
import json
import math
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from cssformer import Metadata
from cssformer.cli import main
from cssformer.data import SyntheticScenes
from cssformer.data.channels import Channels
from cssformer.data.dataset_info import distinct_colours
from cssformer.inference import Explanation, Prediction, Predictor, SamplingMap, explain
from cssformer.model import CSSFormer
from cssformer.model.layers import SamplingOffsets
from cssformer.utils.errors import UserError

STRIDES = (4, 8, 16, 32)
TINY = {"backbone": "test_resnet", "num_classes": 3, "channels": 16, "heads": 2, "points": 3, "aux": False}


@pytest.fixture(scope="module")
def untrained() -> CSSFormer:
    torch.manual_seed(0)
    return CSSFormer(**TINY).eval()


@pytest.fixture(scope="module")
def trained() -> CSSFormer:
    """Two of each module, with offsets and weights that depend on the content."""
    torch.manual_seed(0)
    model = CSSFormer(**TINY, msfe_depth=2, csf_depth=2).eval()
    with torch.no_grad():
        for parameter in (*model.msfe.parameters(), *model.csf.parameters()):
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def picture(height: int, width: int) -> np.ndarray:
    return np.ascontiguousarray(SyntheticScenes(1, (192, 320))[0].image[:height, :width])


def sampled(values: np.ndarray, x: float, y: float) -> np.ndarray:
    """A map (H, W, D) at a place, written from the definition of bilinear sampling with zeros outside."""
    rows, columns = np.arange(values.shape[0]), np.arange(values.shape[1])
    share = np.maximum(0, 1 - np.abs(y - rows))[:, None] * np.maximum(0, 1 - np.abs(x - columns))
    return np.tensordot(share, values, 2)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def test_places_and_weights_are_those_of_the_formulas(trained: CSSFormer) -> None:
    """On a picture of 320x192, whose grids are 80x48, 40x24, 20x12 and 10x6, for the pixel (270, 101)."""
    inputs: list[tuple] = []
    blocks = [*trained.msfe, *trained.csf]
    hooks = [block.register_forward_pre_hook(lambda block, given: inputs.append(given)) for block in blocks]
    try:
        explanation = explain(Predictor(trained, "cpu"), picture(192, 320), 270, 101)
    finally:
        for hook in hooks:
            hook.remove()
    assert [look.module for look in explanation.maps] == ["MSFE 1", "MSFE 2", "CSF 1", "CSF 2"]
    shapes = [(48, 80), (24, 40), (12, 20), (6, 10)]
    starts = [0, *accumulate(height * width for height, width in shapes)]
    heads, points, depth = TINY["heads"], TINY["points"], TINY["channels"] // TINY["heads"]
    for look, block, arguments in zip(explanation.maps, blocks, inputs[:4], strict=True):
        block = copy.deepcopy(block).double()
        with torch.no_grad():
            (first, *_), (last, *_), places = (given.double() for given in (arguments[0], *arguments[-4:-2]))
            normed = block.norm(last) + places
            offsets = nn.functional.linear(normed, block.offsets.weight, block.offsets.bias).numpy()
            if look.module.startswith("MSFE"):
                logits = block.weights(normed).view(-1, heads, 4, points).numpy()
            else:
                query = block.query(block.query_norm(first) + places).view(-1, heads, depth).numpy()
                key = block.key(normed).view(-1, heads, depth).numpy()
        for token, (stride, (column, row)) in enumerate(
            zip(STRIDES, [(67, 25), (33, 12), (16, 6), (8, 3)], strict=True)
        ):
            n = starts[token] + row * shapes[token][1] + column
            here = (np.array((column, row)) + 0.5) * stride - 0.5
            np.testing.assert_allclose(look.centres[token], here)
            positions = offsets[n].reshape(heads, 4, points, 2)
            for level, scale in enumerate(STRIDES):
                positions[:, level] += (here + 0.5) / scale - 0.5
                places = (positions[:, level] + 0.5) * scale - 0.5
                np.testing.assert_allclose(look.places[token][:, level], places, rtol=1e-4, atol=1e-3)
            for head in range(heads):
                if look.module.startswith("MSFE"):
                    expected = logits[n, head]
                else:
                    expected = np.empty((4, points))
                    for level, (height, width) in enumerate(shapes):
                        keys = key[starts[level] : starts[level + 1], head].reshape(height, width, depth)
                        for point in range(points):
                            at_place = sampled(keys, *positions[head, level, point])
                            expected[level, point] = at_place @ query[n, head] / math.sqrt(depth)
                np.testing.assert_allclose(look.weights[token, head], softmax(expected), rtol=1e-3, atol=1e-5)


def test_an_untrained_network_looks_along_a_star(untrained: CSSFormer) -> None:
    """A picture of 100x60 at twice its size is padded to 224x128: its last pixel lies in cell 49, 29 of stride 4."""
    explanation = explain(Predictor(untrained, "cpu", short_side=120), picture(60, 100), 99, 59)
    np.testing.assert_allclose(explanation.cells, [(2, 2), (4, 4), (8, 8), (16, 16)])
    msfe, csf = explanation.maps
    # Cells (49, 29), (24, 14), (12, 7) and (6, 3).
    np.testing.assert_allclose(msfe.centres, [(98.5, 58.5), (97.5, 57.5), (99.5, 59.5), (103.5, 55.5)])
    # Head 0 looks to the right, head 1 to the left, by 0, 4/3 and 8/3 cells of each scale.
    steps = np.arange(3) * SamplingOffsets.radius / 3 * np.array((2, 4, 8, 16))[:, None]
    for token, (x, y) in enumerate(msfe.centres):
        for head, sign in enumerate((1, -1)):
            np.testing.assert_allclose(msfe.places[token, head, ..., 0], x + sign * steps, rtol=1e-5)
            np.testing.assert_allclose(msfe.places[token, head, ..., 1], y, rtol=1e-5)
    np.testing.assert_array_equal(csf.places, msfe.places)
    np.testing.assert_allclose(msfe.weights, 1 / 12, rtol=1e-6)
    np.testing.assert_allclose(msfe.shares(), 0.25, rtol=1e-6)
    np.testing.assert_allclose(msfe.reach(), steps.mean(), rtol=1e-5)
    # Of head 0 all but the first points leave the picture to the right. The last token's own centre is 4 pixels beyond
    # the picture, and so are all points of head 0 and those of head 1 that are nearer to it.
    np.testing.assert_allclose(msfe.outside(60, 100), [8 / 24, 8 / 24, 8 / 24, (12 + 2 + 1 + 1 + 1) / 24], rtol=1e-6)


@pytest.fixture(scope="module")
def light() -> CSSFormer:
    torch.manual_seed(0)
    return CSSFormer(**TINY, fusion_stride=8).eval()


def test_a_network_that_looks_from_stride_8_on(light: CSSFormer) -> None:
    explanation = explain(Predictor(light, "cpu"), picture(192, 320), 270, 101)
    assert explanation.strides == (8, 16, 32)
    np.testing.assert_allclose(explanation.cells, [(8, 8), (16, 16), (32, 32)])
    for look in explanation.maps:
        assert look.weights.shape == (3, 2, 3, 3)
        np.testing.assert_allclose(look.centres, [(267.5, 99.5), (263.5, 103.5), (271.5, 111.5)])
    assert np.array_equal(explanation.picture(), explanation.picture(8))
    with pytest.raises(UserError, match="no tokens of stride 4; choose one of 8, 16, 32"):
        explanation.picture(4)


def test_the_command_tells_which_strides_there_are(
    light: CSSFormer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    light.save_pretrained(tmp_path / "model")
    Image.fromarray(picture(64, 96)).save(tmp_path / "picture.png")
    command = ["explain", str(tmp_path / "model"), str(tmp_path / "picture.png"), "--at", "5", "6", "--output"]
    assert main([*command, str(tmp_path / "looks.png"), "--stride", "4"]) == 2
    assert "no tokens of stride 4; choose one of 8, 16, 32" in capsys.readouterr().err
    assert not (tmp_path / "looks.png").exists()
    for name, kind in (("looks.png", "PNG"), ("looks.jpg", "JPEG")):
        assert main([*command, str(tmp_path / name)]) == 0
        with Image.open(tmp_path / name) as written:
            assert written.format == kind


def test_outputs_that_cannot_be_written_are_told_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for image, output in (("no.png", "no.png"), (".", "deep/looks.png")):
        words = ["explain", str(tmp_path / "no model"), str(tmp_path / image), "--class", "a", "--output"]
        assert main([*words, str(tmp_path / output)]) == 2
        assert "is the picture itself or lies among" in capsys.readouterr().err
    for name, told in (("looks.bmp", "ends in .png or .jpg"), ("folder.png", "is a folder")):
        (tmp_path / "folder.png").mkdir(exist_ok=True)
        words = ["explain", str(tmp_path / "no model"), str(tmp_path / "no.png"), "--at", "5", "6", "--output"]
        assert main([*words, str(tmp_path / name)]) == 2
        assert told in capsys.readouterr().err


@settings(deadline=None, max_examples=12)
@given(data=st.data(), height=st.integers(8, 90), width=st.integers(8, 90), short_side=st.sampled_from([None, 20, 70]))
def test_tokens_contain_the_pixel_and_weights_sum_to_one(
    trained: CSSFormer, data: st.DataObject, height: int, width: int, short_side: int | None
) -> None:
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    way = data.draw(st.sampled_from([{"mode": "whole"}, {"mode": "slide", "crop": (40, 52)}]))
    predictor = Predictor(trained, "cpu", short_side=short_side, **way)
    explanation = explain(predictor, picture(height, width), x, y)
    for look in explanation.maps:
        assert (np.abs(look.centres - (x, y)) <= explanation.cells / 2 + 1e-3).all()
        np.testing.assert_allclose(look.weights.sum(axis=(2, 3)), 1, rtol=1e-5)
        np.testing.assert_allclose(look.shares().sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"short_side": 40}, {"short_side": 130}])
@pytest.mark.parametrize("size", [(96, 64), (57, 83), (20, 70)])
def test_the_network_sees_what_it_predicts(
    untrained: CSSFormer, options: dict[str, int], size: tuple[int, int]
) -> None:
    seen: list[torch.Tensor] = []
    hook = untrained.backbone.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        predictor = Predictor(untrained, "cpu", **options)
        explanation = explain(predictor, picture(*size), 3, 5)
    finally:
        hook.remove()
    looked_at, predicted = seen
    assert torch.equal(looked_at, predicted)
    np.testing.assert_array_equal(explanation.prediction.labels, predictor(picture(*size)).labels)


@pytest.mark.parametrize(("x", "left"), [(3, 0), (100, 68), (198, 136)])
def test_a_sliding_window_has_the_pixel_in_its_middle(untrained: CSSFormer, x: int, left: int) -> None:
    seen: list[torch.Tensor] = []
    hook = untrained.backbone.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    image = picture(80, 200)
    try:
        explain(Predictor(untrained, "cpu", mode="slide", crop=64), image, x, 50)
    finally:
        hook.remove()
    window = torch.tensor(image[16:80, left : left + 64]).permute(2, 0, 1) / 255
    assert torch.equal(seen[0][0], window)


def made_by_hand() -> Explanation:
    """On a white picture as large as a panel, one head: the pixel (100, 90) looks at (160, 90) on stride 8 alone."""
    image = np.full((193, 272, 3), 255, np.uint8)
    labels = np.zeros(image.shape[:2], np.int32)
    prediction = Prediction(image, labels, labels + np.float32(0.5), ("road",), ((9, 9, 9),))
    places = np.full((4, 1, 4, 1, 2), (160, 90), np.float32)
    weights = np.zeros((4, 1, 4, 1), np.float32)
    weights[:, :, 1] = 1
    look = SamplingMap("MSFE", places, weights, np.array([(101.5, 89.5), (99.5, 91.5), (103.5, 87.5), (111.5, 79.5)]))
    return Explanation(prediction, 100, 90, (look,), STRIDES, np.array(STRIDES)[:, None] * np.ones(2))


def test_figures_by_hand() -> None:
    figures = made_by_hand().as_dict()
    assert (figures["at"], figures["class"], figures["confidence"]) == ([100, 90], "road", 0.5)
    assert [row["stride"] for row in figures["samples"]] == [4, 8, 16, 32]
    assert figures["samples"][0]["shares"] == {"4": 0, "8": 1, "16": 0, "32": 0}
    assert figures["samples"][0]["outside"] == 0
    assert figures["samples"][2]["reach"] == pytest.approx(math.hypot(160 - 103.5, 90 - 87.5))


def test_circles_lie_where_the_pixel_looks() -> None:
    explanation = made_by_hand()
    sheet = explanation.picture()
    colour = np.array(distinct_colours(1)[0])
    # The second column of tiles, which are 272 wide and 12 apart, under a heading of 34 pixels.
    panel = sheet[34:, 12 + 272 + 12 :][:193, :272].astype(int)
    inside = np.abs(panel - (0.6 * colour + 0.4 * 254)).max(axis=2) < 3
    rows, columns = np.nonzero(inside)
    assert (rows.mean(), columns.mean()) == pytest.approx((90, 160), abs=1)
    assert inside.sum() == pytest.approx(math.pi * 36**2, rel=0.1)
    assert not np.array_equal(sheet, explanation.picture(32))


def test_places_far_away_and_odd_shapes_are_drawn(untrained: CSSFormer) -> None:
    explanation = explain(Predictor(untrained, "cpu"), picture(40, 300), 299, 0)
    for look in explanation.maps:
        look.places[..., 0] += 1e9
    assert explanation.picture(8).shape == explanation.picture(4).shape


def test_mistakes_are_one_sentence(untrained: CSSFormer, tmp_path: Path) -> None:
    predictor = Predictor(untrained, "cpu")
    for x, y in ((50, 3), (3, 40), (-1, 3)):
        with pytest.raises(UserError, match=rf"\({x}, {y}\) is outside the picture, which is 50 wide and 40 high"):
            explain(predictor, picture(40, 50), x, y)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="broken.png"):
        explain(predictor, tmp_path / "broken.png", 0, 0)
    for none in ({"fusion": False}, {"msfe_depth": 0, "csf_depth": 0}):
        with pytest.raises(UserError, match="no MSFE and no CSF"):
            explain(Predictor(CSSFormer(**TINY, **none), "cpu"), picture(40, 50), 0, 0)
    with pytest.raises(UserError, match=r"ends in .png or .jpg, not .*picture.bmp"):
        made_by_hand().save(tmp_path / "picture.bmp")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.png"]


def test_a_network_in_training_mode_is_looked_at_in_evaluation_mode() -> None:
    model = CSSFormer(**TINY)
    predictor = Predictor(model, "cpu")
    expected = explain(predictor, picture(40, 50), 3, 4)
    model.train()
    model.backbone.eval()
    modes, state = [part.training for part in model.modules()], copy.deepcopy(model.state_dict())
    found = explain(predictor, picture(40, 50), 3, 4)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for one, other in zip(found.maps, expected.maps, strict=True):
        assert np.array_equal(one.places, other.places) and np.array_equal(one.weights, other.weights)


def test_command(trained: CSSFormer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained.save_pretrained(tmp_path / "model")
    Image.fromarray(picture(50, 70)).save(tmp_path / "field.png")
    words = ["explain", tmp_path / "model", tmp_path / "field.png", "--output", tmp_path / "out" / "looks.png"]

    def run(*more: object) -> int:
        return main([*map(str, (*words, "--device", "cpu", *more))])

    assert run("--at", 60, 10, "--stride", 16, "--json", tmp_path / "looks.json") == 0
    assert "CSF 2" in capsys.readouterr().out
    explanation = explain(Predictor(trained, "cpu"), tmp_path / "field.png", 60, 10)
    with Image.open(tmp_path / "out" / "looks.png") as written:
        np.testing.assert_array_equal(written, explanation.picture(16))
    assert json.loads((tmp_path / "looks.json").read_text()) == explanation.as_dict()
    assert run("--at", 70, 10) == 2
    assert capsys.readouterr().err == (
        "cssformer: The pixel (70, 10) is outside the picture, which is 70 wide and 50 high.\n"
    )


@pytest.mark.parametrize("size", [(900, 1), (4, 3000)])
def test_very_thin_pictures_are_drawn(untrained: CSSFormer, size: tuple[int, int]) -> None:
    """The picture is wholly red, and so is at least a line of the first tile."""
    image = np.full((*size, 3), (255, 0, 0), np.uint8)
    sheet = explain(Predictor(untrained, "cpu"), image, 0, 0).picture().astype(int)
    tile = sheet[34:, 12 : 12 + 272]
    reddish = (tile[..., 0] - tile[..., 1] > 40).sum()
    assert reddish >= 100


def test_a_prediction_stands_for_its_picture(trained: CSSFormer) -> None:
    predictor, pixels = Predictor(trained, "cpu"), picture(64, 96)
    prediction = predictor(pixels)
    found, expected = explain(predictor, prediction, 50, 20), explain(predictor, pixels, 50, 20)
    assert found.prediction is prediction and np.array_equal(found.picture(), expected.picture())


def test_a_prediction_of_other_channels_does_not_stand_for_its_picture() -> None:
    """It holds a view of 8 bits of them."""
    model = CSSFormer(**TINY)
    model.metadata = Metadata(channels=Channels("uint16", (1000.0,) * 3, (500.0,) * 3))
    predictor = Predictor(model, "cpu")
    prediction = predictor(picture(32, 40).astype(np.uint16) * 16)
    with pytest.raises(UserError, match="a view of 3 channels of uint16 only"):
        explain(predictor, prediction, 5, 5)
