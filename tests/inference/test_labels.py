"""Labels from coarse scores against ``F.interpolate`` and an explicit resampling of the whole score map."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cssformer.inference import labels as tiled
from cssformer.inference.labels import Segmentation, View, assembled, resampling
from cssformer.inference.labels import segment as strips
from cssformer.utils.errors import UserError


def segment(views: list[View], confidence: bool = False, top_k: int = 1, entropy: bool = False) -> Segmentation:
    """All strips together."""
    found = [each._replace(left=each.left - views[0].left) for each in strips(views, confidence, top_k, entropy)]
    return assembled(found, found[-1].top + found[-1].found.labels.shape[1], views[0].right - views[0].left)


def coarse_map(seed: int, classes: int, height: int, width: int, batch: int = 1) -> torch.Tensor:
    """Logits that are smooth here and noisy there, as a network's."""
    generator = torch.Generator().manual_seed(seed)
    cells = (-(-height // 4), -(-width // 4))
    smooth = F.interpolate(torch.randn(batch, classes, 3, 3, generator=generator), size=cells, mode="bilinear")
    noise = torch.randn(batch, classes, *cells, generator=generator)
    return smooth * 4 + noise * torch.rand(1, 1, *cells, generator=generator)


def plain_scores(coarse: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.interpolate(coarse, scale_factor=4, mode="bilinear")[..., :height, :width]


def label(
    scores: torch.Tensor, size: tuple[int, int], output: tuple[int, int] | None = None, confidence: bool = False
) -> Segmentation:
    return segment([View(blocks(scores, [scores.shape[2]]), size, output or size, scores.device)], confidence)


def assert_best(labels: torch.Tensor, scores: torch.Tensor) -> None:
    """The labelled class has the highest score everywhere, to within rounding."""
    chosen = scores.gather(1, labels[:, None].long())[:, 0]
    torch.testing.assert_close(chosen, scores.amax(1), rtol=0, atol=1e-5)


sides = st.integers(1, 90)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 30), sides, sides, st.integers(1, 2))
def test_labels_are_interpolation_and_argmax(seed: int, classes: int, height: int, width: int, batch: int) -> None:
    coarse = coarse_map(seed, classes, height, width, batch)
    labels = label(coarse, (height, width)).labels
    assert labels.shape == (batch, height, width)
    assert_best(labels, plain_scores(coarse, height, width))


@pytest.mark.parametrize("confidence", [False, True])
def test_of_equal_scores_the_first_class_is_taken(confidence: bool) -> None:
    coarse = coarse_map(0, 4, 20, 70)
    twice = coarse.repeat_interleave(2, 1)
    once, found = (label(scores, (20, 70), confidence=confidence).labels for scores in (coarse, twice))
    assert torch.equal(found, 2 * once)


@pytest.mark.parametrize("classes", [5, 150])
def test_labels_of_a_large_map(classes: int) -> None:
    coarse = coarse_map(0, classes, 401, 603)
    labels = label(coarse, (401, 603)).labels
    expected = plain_scores(coarse, 401, 603).argmax(1)
    assert (labels == expected).float().mean() > 0.99999


def test_the_number_of_threads_is_kept() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        labels = label(coarse_map(0, 5, 300, 300), (300, 300)).labels
        with ThreadPoolExecutor(1) as later:
            assert torch.get_num_threads() == later.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
    assert torch.equal(labels, label(coarse_map(0, 5, 300, 300), (300, 300)).labels)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), sides, sides, st.floats(0.26, 5), st.floats(0.26, 5))
def test_labels_of_another_size(seed: int, height: int, width: int, taller: float, wider: float) -> None:
    """Every output pixel takes the bilinear value of the coarse map at its own centre."""
    out_height, out_width = math.ceil(height * taller), math.ceil(width * wider)
    coarse = coarse_map(seed, 6, height, width)
    labels = label(coarse, (height, width), (out_height, out_width)).labels
    cells_high, cells_wide = coarse.shape[2:]
    x = (torch.arange(out_width) + 0.5) * width / out_width / (4 * cells_wide) * 2 - 1
    y = (torch.arange(out_height) + 0.5) * height / out_height / (4 * cells_high) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    scores = F.grid_sample(coarse, grid, padding_mode="border", align_corners=False)
    assert_best(labels, scores)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(6, 90), sides)
def test_labels_of_a_picture_smaller_than_the_cells_average_them(
    seed: int, high: int, wide: int, out_height: int
) -> None:
    """As an antialiased resize does; picking single cells would be as noisy as they are."""
    coarse = coarse_map(seed, 6, 4 * high, 4 * wide)
    output = (out_height, wide // 3)
    labels = label(coarse, (4 * high, 4 * wide), output).labels
    assert_best(labels, F.interpolate(coarse, output, mode="bilinear", antialias=True))


@pytest.mark.parametrize("tile", [1, 7, 64, 256])
def test_confidence_is_the_highest_probability(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "CPU_TILE", tile)
    coarse = coarse_map(1, 7, 61, 83, batch=2)
    labels, confidence, *_ = label(coarse, (61, 83), confidence=True)
    probability = plain_scores(coarse, 61, 83).softmax(1)
    assert confidence is not None
    torch.testing.assert_close(confidence, probability.amax(1))
    assert_best(labels, probability)
    assert torch.equal(labels, label(coarse, (61, 83)).labels)


@pytest.mark.parametrize(("classes", "top_k"), [(7, 2), (7, 7), (2, 2)])
def test_ranked_classes_and_entropy_are_those_of_the_probabilities(classes: int, top_k: int) -> None:
    coarse = coarse_map(5, classes, 61, 83, batch=2)
    views = [View(blocks(each, [5, 11]), (61, 83), (61, 83), coarse.device) for each in (coarse, coarse.flip(1))]
    labels, confidence, top_labels, top_probabilities, entropy = segment(views, True, top_k, True)
    scores = plain_scores(coarse, 61, 83)
    probability = (scores.softmax(1) + scores.flip(1).softmax(1)) / 2
    assert top_labels is not None and top_probabilities is not None and confidence is not None and entropy is not None
    torch.testing.assert_close(top_probabilities, probability.topk(top_k, 1).values)
    torch.testing.assert_close(top_probabilities, probability.gather(1, top_labels.long()))
    assert (top_labels.sort(1).values.diff(dim=1) > 0).all()
    assert torch.equal(labels, top_labels[:, 0]) and torch.equal(confidence, top_probabilities[:, 0])
    distribution = torch.distributions.Categorical(probability.permute(0, 2, 3, 1))
    torch.testing.assert_close(entropy, distribution.entropy(), atol=1e-5, rtol=1e-5)
    plain = segment([View(blocks(coarse, [16]), (61, 83), (61, 83), coarse.device)])
    asked = segment([View(blocks(coarse, [16]), (61, 83), (61, 83), coarse.device)], top_k=2, entropy=True)
    assert torch.equal(plain.labels, asked.labels) and asked.confidence is None and plain.entropy is None


@pytest.mark.parametrize("top_k", [0, 4])
def test_more_classes_than_there_are_cannot_be_ranked(top_k: int) -> None:
    coarse = coarse_map(0, 3, 8, 8)
    with pytest.raises(UserError, match=f"Of 3 classes the top_k may be 1 to 3, not {top_k}."):
        segment([View(blocks(coarse, [2]), (8, 8), (8, 8), coarse.device)], top_k=top_k)


@pytest.mark.parametrize("tile", [8, 64])
def test_views_average_probabilities(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three views of a 50x70 picture: plain, mirrored, and half as large, coming in blocks of uneven height."""
    monkeypatch.setattr(tiled, "CPU_TILE", tile)
    device = torch.device("cpu")
    plain, mirrored, half = coarse_map(2, 5, 50, 70), coarse_map(3, 5, 50, 70), coarse_map(4, 5, 25, 35)

    def views(left: int, right: int) -> list[View]:
        return [
            View(blocks(plain, [1, 7, 5]), (50, 70), (50, 70), device, False, left, right),
            View(blocks(mirrored, [10, 3]), (50, 70), (50, 70), device, True, left, right),
            View(blocks(half, [7]), (25, 35), (50, 70), device, False, left, right),
        ]

    labels, confidence, *_ = segment(views(0, 70), confidence=True)
    scores = [
        plain_scores(plain, 50, 70),
        plain_scores(mirrored, 50, 70).flip(3),
        F.interpolate(half, scale_factor=8, mode="bilinear")[..., :50, :70],
    ]
    probability = sum(score.softmax(1) for score in scores) / 3
    assert confidence is not None
    torch.testing.assert_close(confidence, probability.amax(1))
    assert_best(labels, probability)
    bands = [segment(views(left, right), confidence=True) for left, right in ((0, 9), (9, 10), (10, 51), (51, 70))]
    assert torch.equal(torch.cat([band.labels for band in bands], 2), labels)
    torch.testing.assert_close(
        torch.cat([band.confidence for band in bands if band.confidence is not None], 2), confidence
    )


def blocks(coarse: torch.Tensor, rows: list[int]) -> Callable[[int, int, int], Iterator[torch.Tensor]]:
    """Blocks of so many rows, of the columns asked for."""
    return lambda first, last, row: iter(coarse[..., first:last].split(rows, 2))


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_resampling_is_interpolation(size: int, output: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, output - 1))
    last = data.draw(st.integers(first + 1, output))
    line = torch.rand(1, 1, 1, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    expected = F.interpolate(line, size=(1, output), mode="bilinear", antialias=True)[0, 0, 0, first:last]
    begin, weights = resampling(size / output, size, first, last)
    torch.testing.assert_close(weights @ line[0, 0, 0, begin : begin + weights.shape[1]], expected)
