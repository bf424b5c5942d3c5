"""Every loss against a slow definition, its gradient, and what must not disturb it."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from cssformer.losses import (
    SegmentationLoss,
    boundary_loss,
    class_weights,
    cross_entropy,
    dice_loss,
    focal_loss,
    lovasz_softmax_loss,
    signed_distances,
    tversky_loss,
)
from cssformer.model import SegmentationOutput, segmentation_loss

IGNORE = -100
CLASSES = 4
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64)


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


def pixels_of(logits: Tensor, labels: Tensor) -> list[tuple[list[float], int]]:
    """Probabilities and class of each labelled pixel."""
    flat = zip(logits.movedim(1, -1).reshape(-1, logits.shape[1]).tolist(), labels.flatten().tolist(), strict=True)
    return [(softmax(scores), label) for scores, label in flat if label != IGNORE]


def slow_cross_entropy(
    logits: Tensor, labels: Tensor, weights: list[float], smoothing: float = 0.0, ohem: float = 1.0
) -> float:
    losses = []
    for p, label in pixels_of(logits, labels):
        target = [smoothing / len(p) + (1 - smoothing) * (index == label) for index in range(len(p))]
        loss = -sum(w * t * math.log(q) for w, t, q in zip(weights, target, p, strict=True))
        losses.append((loss, weights[label]))
    kept = sorted(losses, reverse=True)[: math.ceil(ohem * len(losses))]
    return sum(loss for loss, _ in kept) / sum(weight for _, weight in kept)


def slow_focal(logits: Tensor, labels: Tensor, weights: list[float], gamma: float) -> float:
    pairs = pixels_of(logits, labels)
    total = sum(-weights[label] * (1 - p[label]) ** gamma * math.log(p[label]) for p, label in pairs)
    return total / sum(weights[label] for _, label in pairs)


def mean_over_classes(costs: dict[int, float], weights: list[float]) -> float:
    return sum(weights[index] * cost for index, cost in costs.items()) / sum(weights[index] for index in costs)


def slow_tversky(logits: Tensor, labels: Tensor, weights: list[float], beta: float) -> float:
    pairs = pixels_of(logits, labels)
    costs = {}
    for index in {label for _, label in pairs}:
        true_positive = sum(p[index] for p, label in pairs if label == index)
        false_positive = sum(p[index] for p, label in pairs if label != index)
        false_negative = sum(1 - p[index] for p, label in pairs if label == index)
        wrong = (1 - beta) * false_positive + beta * false_negative
        costs[index] = 1 - true_positive / (true_positive + wrong)
    return mean_over_classes(costs, weights)


def slow_lovasz(logits: Tensor, labels: Tensor, weights: list[float]) -> float:
    """As the Lovász extension of the set function 1 - IoU over the wrong pixels, set by set."""
    pairs = pixels_of(logits, labels)

    def jaccard_loss(wrong: set[int], index: int) -> float:
        true = {place for place, (_, label) in enumerate(pairs) if label == index}
        return 1 - len(true - wrong) / len(true | wrong)

    costs = {}
    for index in {label for _, label in pairs}:
        errors = [abs((label == index) - p[index]) for p, label in pairs]
        wrong: set[int] = set()
        costs[index] = 0.0
        for place in sorted(range(len(errors)), key=lambda place: -errors[place]):
            before = jaccard_loss(wrong, index)
            wrong.add(place)
            costs[index] += errors[place] * (jaccard_loss(wrong, index) - before)
    return mean_over_classes(costs, weights)


def slow_boundary(logits: Tensor, labels: Tensor, weights: list[float]) -> float:
    total, whole = 0.0, 0.0
    for scores, label in zip(logits.softmax(1).numpy(), labels.numpy(), strict=True):
        places = [tuple(place) for place in np.argwhere(label != IGNORE)]
        for index in {int(label[place]) for place in places}:
            inside = [place for place in places if label[place] == index]
            outside = [place for place in places if label[place] != index]
            cost = 0.0
            for place in places if outside else []:
                if label[place] == index:
                    distance = 1 - min(math.dist(place, other) for other in outside)
                else:
                    distance = min(math.dist(place, other) for other in inside)
                cost += distance / math.hypot(*label.shape) * scores[(index, *place)]
            total += weights[index] * cost / len(places)
            whole += weights[index]
    return total / whole


Loss = Callable[..., Tensor]
Slow = Callable[[Tensor, Tensor, list[float]], float]
LOSSES: dict[str, tuple[Loss, Slow]] = {
    "cross-entropy": (cross_entropy, slow_cross_entropy),
    "label smoothing": (partial(cross_entropy, label_smoothing=0.2), partial(slow_cross_entropy, smoothing=0.2)),
    "ohem": (partial(cross_entropy, ohem=0.3), partial(slow_cross_entropy, ohem=0.3)),
    "focal": (focal_loss, partial(slow_focal, gamma=2.0)),
    "focal 1/2": (partial(focal_loss, gamma=0.5), partial(slow_focal, gamma=0.5)),
    "dice": (dice_loss, partial(slow_tversky, beta=0.5)),
    "tversky": (tversky_loss, partial(slow_tversky, beta=0.7)),
    "lovasz": (lovasz_softmax_loss, slow_lovasz),
    "boundary": (boundary_loss, slow_boundary),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def example(seed: int, size: tuple[int, int, int] = (2, 5, 6), ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    """Logits of float64 and labels in blocks; class 3 is in no label of an odd seed."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size[0], CLASSES, *size[1:], generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES - seed % 2, size, generator=generator)
    labels[torch.rand(size, generator=generator) < ignored] = IGNORE
    labels[0, 0, 0] = 0
    return logits, labels


@every_loss
@settings(max_examples=15)
@given(st.integers(0, 999), st.booleans(), st.sampled_from([(2, 5, 6), (1, 7, 3), (3, 1, 4)]))
def test_equals_the_slow_definition(name: str, seed: int, weighted: bool, size: tuple[int, int, int]) -> None:
    loss, slow = LOSSES[name]
    logits, labels = example(seed, size)
    expected = slow(logits, labels, WEIGHTS.tolist() if weighted else [1.0] * CLASSES)
    assert loss(logits, labels, WEIGHTS if weighted else None).item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    lying_otherwise = logits.contiguous(memory_format=torch.channels_last)
    assert loss(lying_otherwise, labels, WEIGHTS if weighted else None).item() == pytest.approx(
        expected, rel=1e-5, abs=1e-7
    )
    twice = loss(logits, labels, 2 * WEIGHTS).item()
    assert twice == pytest.approx(loss(logits, labels, WEIGHTS).item(), rel=1e-6)


@every_loss
@settings(max_examples=10)
@given(st.integers(0, 999), st.permutations(range(CLASSES)))
def test_classes_have_no_order(name: str, seed: int, order: list[int]) -> None:
    loss, _ = LOSSES[name]
    logits, labels = example(seed)
    places = torch.tensor(order).argsort()
    renamed = torch.where(labels == IGNORE, IGNORE, places[labels.clamp(min=0)])
    torch.testing.assert_close(loss(logits[:, order], renamed, WEIGHTS[order]), loss(logits, labels, WEIGHTS))


@every_loss
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", [(2, 3, 4), (1, 4, 4)])
def test_gradient(name: str, seed: int, size: tuple[int, int, int]) -> None:
    loss, _ = LOSSES[name]
    logits, labels = example(seed, size)
    assert torch.autograd.gradcheck(lambda values: loss(values, labels, WEIGHTS), logits.requires_grad_())


@every_loss
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ignored_pixels_count_for_nothing(name: str, weights: Tensor | None) -> None:
    loss, _ = LOSSES[name]
    logits, labels = example(0, ignored=0.5)
    logits.requires_grad_()
    value = loss(logits, labels, weights)
    value.backward()
    assert logits.grad is not None
    ignored = (labels == IGNORE)[:, None].expand_as(logits)
    assert logits.grad[~ignored].abs().max() > 0
    assert (logits.grad[ignored] == 0).all()
    other = torch.where(ignored, torch.randn_like(logits) * 9, logits.detach())
    assert loss(other, labels, weights).item() == pytest.approx(value.item(), rel=1e-12)
    marked = torch.where(labels == IGNORE, 255, labels)
    assert torch.equal(loss(logits, marked, weights, ignore_index=255), value)


@every_loss
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_crop_without_labels_costs_nothing(name: str, weights: Tensor | None, dtype: torch.dtype) -> None:
    loss, _ = LOSSES[name]
    logits = torch.randn(2, CLASSES, 4, 4, dtype=dtype, requires_grad=True)
    value = loss(logits, torch.full((2, 4, 4), IGNORE), weights)
    value.backward()
    assert value.item() == 0 and logits.grad is not None and (logits.grad == 0).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    loss, _ = LOSSES[name]
    logits, labels = example(0, (2, 16, 16))
    # Scores whose exponentials half precision does not have, among them a certain one.
    half = (logits * 5).to(dtype)
    half[0, :, 0, 0] = torch.tensor([60.0, -60.0, -60.0, -60.0])
    half.requires_grad_()
    value = loss(half, labels, WEIGHTS)
    value.backward()
    assert value.dtype == torch.float32
    assert half.grad is not None and half.grad.isfinite().all()
    assert value.item() == pytest.approx(loss(half.detach().double(), labels, WEIGHTS).item(), rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(half.detach().float(), labels, WEIGHTS).item() == pytest.approx(value.item(), rel=1e-6)


@every_loss
def test_one_class_everywhere_or_of_no_weight(name: str) -> None:
    loss, _ = LOSSES[name]
    logits = example(0)[0].requires_grad_()
    for weights in (None, torch.tensor([0.0, 1, 1, 1])):
        logits.grad = None
        value = loss(logits, torch.zeros(2, 5, 6, dtype=torch.int64), weights)
        value.backward()
        assert value.isfinite() and logits.grad is not None and logits.grad.isfinite().all()
        assert weights is None or value == 0


@every_loss
def test_following_the_gradient_finds_the_labels(name: str) -> None:
    loss, _ = LOSSES[name]
    labels = example(0, (2, 12, 12))[1]
    logits = torch.zeros(2, CLASSES, 12, 12, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        loss(logits, labels, WEIGHTS).backward()
        optimizer.step()
    labelled = labels != IGNORE
    assert (logits.argmax(1) == labels)[labelled].all()
    assert (logits.detach() == 0).movedim(1, -1)[~labelled].all()


def test_equals_peers_where_they_are_right() -> None:
    logits, labels = example(0)
    expected = torch.nn.functional.cross_entropy(logits, labels, WEIGHTS, label_smoothing=0.1)
    torch.testing.assert_close(cross_entropy(logits, labels, WEIGHTS, label_smoothing=0.1), expected)
    peers = pytest.importorskip("segmentation_models_pytorch.losses")
    options = {"mode": "multiclass", "ignore_index": IGNORE}
    # Where a class is absent, theirs counts it as one without loss.
    dice = peers.DiceLoss(**options, class_weights=WEIGHTS)(logits, labels)
    torch.testing.assert_close(dice_loss(logits, labels, WEIGHTS), dice)
    tversky = peers.TverskyLoss(**options, alpha=0.3, beta=0.7)(logits, labels)
    torch.testing.assert_close(tversky_loss(logits, labels), tversky)
    lovasz = peers.LovaszLoss(**options)(logits.float(), labels)
    torch.testing.assert_close(lovasz_softmax_loss(logits.float(), labels), lovasz)
    # Theirs takes the mean over ignored pixels too.
    full = labels.clamp(min=0)
    smoothed = peers.SoftCrossEntropyLoss(smooth_factor=0.1)(logits, full)
    torch.testing.assert_close(cross_entropy(logits, full, label_smoothing=0.1), smoothed)


def test_the_default_is_the_papers_loss_to_the_bit() -> None:
    logits, labels = example(0, (2, 32, 32))
    output = SegmentationOutput(logits.float(), logits.float().flip(1))
    for given_output in (output, output.logits):
        assert torch.equal(SegmentationLoss()(given_output, labels), segmentation_loss(given_output, labels))
    assert torch.equal(SegmentationLoss(auxiliary_weight=0.2)(output, labels), segmentation_loss(output, labels, 0.2))


def test_a_sum_of_losses_for_both_heads() -> None:
    logits, labels = example(0)
    loss = SegmentationLoss(
        cross_entropy=0.5, dice=2, lovasz=1, focal=3, class_weights=WEIGHTS, ohem=0.5, focal_gamma=1, tversky_beta=0.9
    )
    total = loss(SegmentationOutput(logits, -logits), labels)
    expected = 0.0
    for share, scores in ((1, logits), (0.4, -logits)):
        expected += share * 0.5 * cross_entropy(scores, labels, WEIGHTS, ohem=0.5).item()
        expected += share * 2 * dice_loss(scores, labels, WEIGHTS).item()
        expected += share * lovasz_softmax_loss(scores, labels, WEIGHTS).item()
        expected += share * 3 * focal_loss(scores, labels, WEIGHTS, gamma=1).item()
    assert total.item() == pytest.approx(expected)
    # A resumed run finds its weights in the data; checkpoints hold the network alone.
    assert not loss.state_dict()


def test_distances_as_scipy_has_them() -> None:
    labels = np.kron(np.random.default_rng(0).integers(0, 3, (4, 5)), np.ones((7, 6), int))
    found = signed_distances(labels, 4)
    for index in range(3):
        inside = labels == index
        expected = distance_transform_edt(~inside) - np.where(inside, distance_transform_edt(inside) - 1, 0)
        np.testing.assert_allclose(found[index], expected, atol=1e-4)
    assert (found[3] == 0).all()


def test_class_weights_by_hand() -> None:
    pixels = np.array([[80, 10, 0, 0], [90, 0, 10, 0], [90, 10, 0, 0], [100, 0, 0, 0]])
    inverse = np.array([1 / 360, 1 / 20, 1 / 10])
    np.testing.assert_allclose(class_weights(pixels, "balanced"), [*(inverse / inverse.mean()), 1], rtol=1e-6)
    root = inverse**0.5
    np.testing.assert_allclose(class_weights(pixels, "sqrt"), [*(root / root.mean()), 1], rtol=1e-6)
    # β = 3/4: E is 1 for one picture, 7/4 for two, 175/64 for four.
    inverse = np.array([64 / 175, 4 / 7, 1])
    np.testing.assert_allclose(class_weights(pixels, "effective"), [*(inverse / inverse.mean()), 1], rtol=1e-6)
    np.testing.assert_allclose(class_weights(pixels[:1], "effective"), 1)


def test_distances_do_not_depend_on_the_memory_they_are_computed_in() -> None:
    # OpenCV's differed in their last bit.
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 17, (32, 32))
    kept, found = [], set()
    for _ in range(40):
        kept.append(np.empty(rng.integers(1, 5000)))
        found.add(signed_distances(labels.copy(), 17).tobytes())
    assert len(found) == 1
