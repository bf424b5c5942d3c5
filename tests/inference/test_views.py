"""Whole, sliding and multi-scale inference with a network whose answer is known."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cssformer.inference import views
from cssformer.inference.views import Options, _Network, _Scaled, predict, predict_blocks, window_offsets
from cssformer.utils.errors import UserError


class Pooling(nn.Module):
    """Logits from the mean colour of each cell alone, so that windows and whole pictures agree."""

    def __init__(self, classes: int = 4, neighbours: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.classify = nn.Conv2d(3, classes, 3 if neighbours else 1, padding=1 if neighbours else 0)
        self.dropout = nn.Dropout(0.5)
        self.seen: list[tuple[int, ...]] = []
        self.fails = False

    def forward_logits(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        if self.fails:
            raise RuntimeError("out of memory")
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % 4, 0, -height % 4), mode="replicate")
        return 20 * self.classify(self.dropout(F.avg_pool2d(padded, 4)))


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 6, 7, generator=generator)
    return (F.interpolate(small, size=(height, width), mode="bicubic")[0].clamp(0, 1) * 255).to(torch.uint8)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(4, 1500), st.integers(4, 1500))
def test_windows_cover_every_pixel(size: int, window: int, stride: int) -> None:
    window = min(window, size)
    offsets = window_offsets(size, window, min(stride, max(window, 4)))
    covered = 0
    for offset in offsets:
        assert offset % 4 == 0
        assert offset <= covered
        covered = offset + window
    assert size <= covered < size + 4
    assert offsets == sorted(set(offsets))


@settings(deadline=None, max_examples=20)
@given(st.integers(32, 100), st.integers(32, 100), st.integers(32, 64), st.floats(0.2, 1))
def test_sliding_equals_whole_for_a_network_that_looks_at_single_cells(
    height: int, width: int, crop: int, overlap: float
) -> None:
    """Which also shows that every pixel is covered, in its place and with the right weight."""
    model, image = Pooling().eval(), picture(height, width)
    whole = predict(model, image, confidence=True)
    slide = predict(
        model, image, mode="slide", crop=crop // 4 * 4, stride=max(4, int(crop // 4 * 4 * overlap)), confidence=True
    )
    assert whole.confidence is not None and slide.confidence is not None
    torch.testing.assert_close(slide.confidence, whole.confidence, atol=1e-4, rtol=0)
    assert (slide.labels != whole.labels).float().mean() < 1e-3


@pytest.mark.parametrize("size", [(64, 80), (61, 79), (33, 80)])
def test_one_window_over_the_picture_is_whole_picture_inference(size: tuple[int, int]) -> None:
    model, image = Pooling(neighbours=True).eval(), picture(*size)
    whole = predict(model, image, confidence=True)
    slide = predict(model, image, mode="slide", crop=(64, 80), confidence=True)
    assert torch.equal(whole.labels, slide.labels)
    assert torch.equal(whole.confidence, slide.confidence)


def test_sliding_averages_logits_where_windows_overlap() -> None:
    """Against the definition: full score maps of all windows added up and divided by their number."""
    model, image = Pooling(neighbours=True).eval(), picture(96, 128)
    total, count = torch.zeros(1, 4, 24, 32), torch.zeros(24, 32)
    for top in (0, 24, 48):
        for left in (0, 40, 64):
            window = image[None, :, top : top + 48, left : left + 64].float() / 255
            total[:, :, top // 4 : top // 4 + 12, left // 4 : left // 4 + 16] += model.forward_logits(window).detach()
            count[top // 4 : top // 4 + 12, left // 4 : left // 4 + 16] += 1
    scores = F.interpolate(total / count, scale_factor=4, mode="bilinear").softmax(1)
    slide = predict(model, image, mode="slide", crop=(48, 64), stride=(24, 40), confidence=True)
    torch.testing.assert_close(slide.confidence, scores.amax(1)[0])
    assert torch.equal(slide.labels, scores.argmax(1)[0])


def test_multi_scale_and_flip_average_probabilities() -> None:
    model, image = Pooling(neighbours=True).eval(), picture(60, 76)
    total = torch.zeros(1, 4, 60, 76)
    for size in ((30, 38), (60, 76), (90, 114)):
        seen = F.interpolate(image[None].float() / 255, size=size, mode="bilinear", antialias=True)
        for flipped in (False, True):
            coarse = model.forward_logits(
                F.pad(seen.flip(3) if flipped else seen, (0, 0, 0, max(0, 32 - size[0])), mode="replicate")
            )
            cells = coarse[:, :, : -(-size[0] // 4)]
            scores = F.interpolate(cells, scale_factor=4, mode="bilinear")[..., : size[0], : size[1]]
            scores = scores.flip(3) if flipped else scores
            total += F.interpolate(scores, size=(60, 76), mode="bilinear").softmax(1).detach() / 6
    result = predict(model, image, scales=(0.5, 1.0, 1.5), flip=True, confidence=True)
    # The scores go straight from the cells to the picture's pixels, not through the view's: hence the tolerance.
    assert (result.labels == total.argmax(1)[0]).float().mean() > 0.98
    assert (result.confidence - total.amax(1)[0]).abs().mean() < 0.01


def test_a_mirrored_picture_gives_mirrored_labels_at_any_width() -> None:
    model, image = Pooling(neighbours=True).eval(), picture(50, 67)
    plain = predict(model, image, flip=True, confidence=True)
    mirror = predict(model, image.flip(2), flip=True, confidence=True)
    torch.testing.assert_close(plain.confidence, mirror.confidence.flip(1))
    assert torch.equal(plain.labels, mirror.labels.flip(1))


def test_sliding_at_several_scales_equals_whole() -> None:
    model, image = Pooling().eval(), picture(100, 132)
    options = {"scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "flip": True, "confidence": True}
    whole = predict(model, image, **options)
    slide = predict(model, image, mode="slide", crop=64, **options)
    torch.testing.assert_close(slide.confidence, whole.confidence, atol=1e-4, rtol=0)


@pytest.mark.parametrize("width", [150, 299])
def test_bands_do_not_show(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network that sees its neighbourhood, every cell still averages all windows that see it."""
    model, image = Pooling(neighbours=True).eval(), picture(70, width)
    options = {"mode": "slide", "crop": 48, "scales": (0.7, 1.0, 1.5), "flip": True, "top_k": 2, "entropy": True}
    whole = predict(model, image, confidence=True, **options)
    monkeypatch.setattr(views, "BAND_WINDOWS", 1)
    banded = predict(model, image, confidence=True, **options)
    torch.testing.assert_close(banded.confidence, whole.confidence)
    torch.testing.assert_close(banded.top_probabilities, whole.top_probabilities)
    torch.testing.assert_close(banded.entropy, whole.entropy)
    assert (banded.labels != whole.labels).float().mean() < 1e-3


def test_blocks_from_the_middle_on_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, with windows of which three overlap, several views and several bands."""
    monkeypatch.setattr(views, "BAND_WINDOWS", 2)
    model, images = Pooling(neighbours=True).eval(), picture(299, 150)[None]
    options = {"mode": "slide", "crop": 48, "stride": 20, "scales": (0.7, 1.0), "flip": True}
    with torch.inference_mode():
        blocks = list(predict_blocks(model, images, Options(**options), confidence=True))
        assert {left for _, left, _ in blocks} == {0, 75} and len(blocks) == 10
        for done in range(len(blocks)):
            again = list(predict_blocks(model, images, Options(**options), blocks[done][:2], confidence=True))
            for (top, left, found), (other_top, other_left, other) in zip(blocks[done:], again, strict=True):
                assert (top, left) == (other_top, other_left)
                assert torch.equal(found.labels, other.labels) and torch.equal(found.confidence, other.confidence)


def test_bands_follow_what_the_network_sees() -> None:
    """3000 pixels wide, but 1500 for the network: three bands, two windows at each seam seen from both sides."""
    model = Pooling().eval()
    predict(model, picture(64, 3000), mode="slide", crop=64, short_side=32)
    assert sum(batch for batch, *_ in model.seen) == len(window_offsets(1500, 64, 42)) + 2 * 2


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("size", [(40, 61), (200, 183), (97, 130)])
def test_windows_of_a_resized_picture(size: tuple[int, int], mirrored: bool) -> None:
    network, image = _Network(Pooling(), torch.float32), picture(97, 130)[None]
    expected = F.interpolate(image.float() / 255, size=size, mode="bilinear", antialias=True)
    expected = expected.flip(3) if mirrored else expected
    scaled = _Scaled(network, image, size, mirrored)
    for top, left in ((0, 0), (size[0] - 36, size[1] - 30), (4, size[1] - 26)):
        window = F.pad(
            expected[:, :, top : top + 36, left : left + 28], (0, max(0, left + 28 - size[1]), 0, 0), mode="replicate"
        )
        torch.testing.assert_close(scaled.window(top, left, (36, 28)), window, atol=1e-5, rtol=0)


def test_short_side_sets_what_the_network_sees() -> None:
    model = Pooling().eval()
    labels = predict(model, picture(60, 90), short_side=128).labels
    assert model.seen == [(1, 3, 128, 192)]
    assert labels.shape == (60, 90)


def test_a_batch_is_its_pictures() -> None:
    model = Pooling(neighbours=True).eval()
    images = torch.stack([picture(70, 50, seed) for seed in range(3)])
    for options in ({}, {"mode": "slide", "crop": 32}):
        together = predict(model, images, **options).labels
        assert torch.equal(together, torch.stack([predict(model, image, **options).labels for image in images]))


def test_bytes_and_floats_are_one_picture() -> None:
    model, image = Pooling().eval(), picture(40, 50)
    assert torch.equal(predict(model, image).labels, predict(model, image.float() / 255).labels)


def test_training_mode_is_left_for_the_prediction_and_restored() -> None:
    model, image = Pooling().train(), picture(64, 64)
    assert torch.equal(predict(model, image).labels, predict(model, image).labels)
    assert model.training and model.dropout.training


def test_frozen_parts_stay_frozen() -> None:
    model = Pooling().train()
    model.classify.eval()
    predict(model, picture(64, 64))
    assert model.training and model.dropout.training and not model.classify.training
    model.fails = True
    with pytest.raises(RuntimeError):
        predict(model, picture(64, 64))
    assert model.training and model.dropout.training and not model.classify.training


def test_a_tiny_picture_is_padded_for_the_network() -> None:
    model = Pooling().eval()
    assert predict(model, picture(5, 40)).labels.shape == (5, 40)
    assert model.seen == [(1, 3, 32, 40)]


def test_bfloat16() -> None:
    model, image = Pooling().eval(), picture(64, 64)
    exact, rounded = predict(model, image), predict(model, image, precision="bf16")
    assert (exact.labels == rounded.labels).float().mean() > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "slide", "crop": 64, "stride": 65}, "gaps"),
        ({"mode": "slide", "crop": 64, "stride": 3}, "gaps"),
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, 0.0)}, "scales"),
        ({"scales": (1.0, float("nan"))}, "scales"),
        ({"short_side": 0}, "short side"),
        ({"mode": "slyde"}, "The mode is whole or slide, not 'slyde'"),
        ({"mode": "slide", "crop": 0}, "crop"),
        ({"precision": "8"}, "precision"),
        ({"precision": torch.bfloat16}, "precision"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        predict(Pooling(), picture(64, 64), **options)


@pytest.mark.parametrize("change", [lambda x: 255 * x, lambda x: (x - 0.45) / 0.22])
def test_floats_that_do_not_run_from_0_to_1_are_told(change: Callable[[Tensor], Tensor]) -> None:
    image = picture(64, 64).float() / 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(Pooling(), image)
        predict(Pooling(), picture(64, 64))
    with pytest.warns(UserWarning, match="floats must run from 0 to 1"):
        predict(Pooling(), change(image))


def test_scores_that_are_no_numbers_are_no_labels() -> None:
    image = torch.rand(3, 40, 52)
    model = Pooling()
    with torch.no_grad():
        model.classify.weight.mul_(1e6)
    predict(model, image)
    with pytest.raises(UserError, match="float16.*take precision bf16 or 32"):
        predict(model, image, precision="16")
    with pytest.raises(UserError, match="The picture has values that are not finite"):
        predict(model, image.masked_fill(image > 0.99, torch.nan))
    with torch.no_grad():
        model.classify.bias[1] = torch.nan
    with pytest.raises(UserError, match="class scores are not finite numbers; look at its weights"):
        predict(model, image)


def test_image_must_be_rgb() -> None:
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        predict(Pooling(), torch.zeros(64, 64, 3))


MEMORY = """
import sys, torch
from pathlib import Path
from test_views import Pooling
from cssformer.inference import predict

def memory(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0]) / 1024

model = Pooling(19).eval()
options = {"mode": "slide", "crop": 256, "scales": eval(sys.argv[3]), "flip": len(eval(sys.argv[3])) > 1}
predict(model, torch.zeros(3, 64, 64, dtype=torch.uint8), **options)
image = torch.full((3, int(sys.argv[1]), int(sys.argv[2])), 99, dtype=torch.uint8)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
labels = predict(model, image, **options).labels
print(memory("VmHWM") - before - labels.numel() * 4 / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read as Linux tells it"
)
@pytest.mark.parametrize("scales", ["[1]", "[0.5, 1.75]"])
def test_memory_of_sliding_depends_neither_on_height_nor_width(scales: str) -> None:
    """MB beside picture and labels; all class scores of the large pictures would take 1.2 GB and more."""
    small, tall, wide = (
        float(subprocess.check_output([sys.executable, "-c", MEMORY, *size, scales], cwd=Path(__file__).parent))
        for size in (("2000", "2000"), ("8000", "2000"), ("2000", "8000"))
    )
    assert tall < small + 50
    # Labels come from four bands, each copied to its place.
    assert wide < small + 2000 * 2000 * 4 / 2**20 + 50
