"""Losses of several classes a pixel: each against a slow definition from the sigmoid, its gradient, ignored pixels."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cssformer.losses import SegmentationLoss, class_weights, signed_distances
from cssformer.model import SegmentationOutput

IGNORE = -100
CLASSES = 3
WEIGHTS = torch.tensor([0.5, 3.0, 1.0], dtype=torch.float64)
ONLY = {"cross_entropy": 0.0}


def example(seed: int, size: tuple[int, int, int] = (2, 5, 6), ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    """Logits of float64 and bit fields; the last class is in no label of an odd seed."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(size[0], CLASSES, *size[1:], generator=generator, dtype=torch.float64)
    labels = torch.randint(1 << (CLASSES - seed % 2), size, generator=generator)
    labels[torch.rand(size, generator=generator) < ignored] = IGNORE
    labels[0, 0, 0] = 3
    return logits, labels


Problem = tuple[list[float], list[bool]]
"""Probabilities of a class, and whether it is there, of the labelled pixels."""


def problems(logits: Tensor, labels: Tensor) -> list[Problem]:
    known = labels != IGNORE
    return [
        (logits[:, index].sigmoid()[known].tolist(), [bool(label >> index & 1) for label in labels[known].tolist()])
        for index in range(logits.shape[1])
    ]


def over_pixels(cost: Callable[[float, bool], float], weights: list[float], every: list[Problem], ohem: float) -> float:
    means = []
    for weight, (probabilities, there) in zip(weights, every, strict=True):
        pairs = [
            (cost(p, y) * (weight if y else 1), weight if y else 1) for p, y in zip(probabilities, there, strict=True)
        ]
        kept = sorted(pairs, reverse=True)[: math.ceil(ohem * len(pairs))]
        means.append(sum(loss for loss, _ in kept) / sum(each for _, each in kept))
    return sum(means) / len(means)


def over_regions(cost: Callable[[Problem], float], weights: list[float], every: list[Problem]) -> float:
    held = [(weight, cost(each)) for weight, each in zip(weights, every, strict=True) if any(each[1])]
    return sum(weight * each for weight, each in held) / sum(weight for weight, _ in held)


def bce(p: float, y: bool) -> float:
    return -math.log(p if y else 1 - p)


def focal(p: float, y: bool) -> float:
    right = p if y else 1 - p
    return -((1 - right) ** 2) * math.log(right)


def tversky(beta: float) -> Callable[[Problem], float]:
    def cost(problem: Problem) -> float:
        pairs = list(zip(*problem, strict=True))
        hit, false, missed = (
            sum(p for p, y in pairs if y), sum(p for p, y in pairs if not y), sum(1 - p for p, y in pairs if y)
        )  # fmt: skip
        return 1 - hit / (hit + (1 - beta) * false + beta * missed)

    return cost


def lovasz(problem: Problem) -> float:
    pairs = sorted(((abs(y - p), y) for p, y in zip(*problem, strict=True)), reverse=True)
    total, before, wrong_true, wrong_false, true = 0.0, 0.0, 0, 0, sum(problem[1])
    for error, y in pairs:
        wrong_true, wrong_false = wrong_true + y, wrong_false + (not y)
        jaccard = 1 - (true - wrong_true) / (true + wrong_false)
        total, before = total + error * (jaccard - before), jaccard
    return total


def slow_boundary(logits: Tensor, labels: Tensor, weights: list[float]) -> float:
    costs = {}
    for index in range(CLASSES):
        own = []
        for scores, label in zip(logits[:, index].sigmoid().numpy(), labels.numpy(), strict=True):
            plane = np.where(label == IGNORE, IGNORE, label >> index & 1)
            if (plane == 1).any():
                level = signed_distances(plane, 2)[1] / math.hypot(*plane.shape)
                own.append((level * scores).sum() / (plane != IGNORE).sum())
        if own:
            costs[index] = sum(own) / len(own)
    return sum(weights[index] * cost for index, cost in costs.items()) / sum(weights[index] for index in costs)


Slow = Callable[[Tensor, Tensor, list[float]], float]
CASES: dict[str, tuple[dict[str, float], Slow]] = {
    "bce": ({}, lambda z, y, w: over_pixels(bce, w, problems(z, y), 1)),
    "ohem": ({"ohem": 0.3}, lambda z, y, w: over_pixels(bce, w, problems(z, y), 0.3)),
    "focal": ({**ONLY, "focal": 1}, lambda z, y, w: over_pixels(focal, w, problems(z, y), 1)),
    "dice": ({**ONLY, "dice": 1}, lambda z, y, w: over_regions(tversky(0.5), w, problems(z, y))),
    "tversky": ({**ONLY, "tversky": 1}, lambda z, y, w: over_regions(tversky(0.7), w, problems(z, y))),
    "lovasz": ({**ONLY, "lovasz": 1}, lambda z, y, w: over_regions(lovasz, w, problems(z, y))),
    "boundary": ({**ONLY, "boundary": 1}, slow_boundary),
}
every_loss = pytest.mark.parametrize("name", CASES)


def loss_of(name: str, weights: Tensor | None = None) -> SegmentationLoss:
    return SegmentationLoss(**CASES[name][0], class_weights=weights, multilabel=True)


@every_loss
@settings(max_examples=8)
@given(st.integers(0, 999), st.booleans(), st.sampled_from([(2, 5, 6), (1, 7, 3)]))
def test_equals_the_slow_definition(name: str, seed: int, weighted: bool, size: tuple[int, int, int]) -> None:
    logits, labels = example(seed, size)
    expected = CASES[name][1](logits, labels, WEIGHTS.tolist() if weighted else [1.0] * CLASSES)
    found = loss_of(name, WEIGHTS if weighted else None)(logits, labels).item()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


@every_loss
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient(name: str, seed: int) -> None:
    logits, labels = example(seed, (2, 3, 3))
    assert torch.autograd.gradcheck(lambda values: loss_of(name, WEIGHTS)(values, labels), logits.requires_grad_())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ignored_pixels_count_for_nothing(name: str, dtype: torch.dtype) -> None:
    logits, labels = example(0, ignored=0.5)
    logits = logits.to(dtype).requires_grad_()
    value = loss_of(name)(logits, labels)
    value.backward()
    ignored = (labels == IGNORE)[:, None].expand_as(logits)
    assert value.dtype == torch.float32 and logits.grad is not None
    assert (logits.grad[ignored] == 0).all() and logits.grad[~ignored].abs().max() > 0
    other = torch.where(ignored, torch.randn_like(logits) * 9, logits.detach())
    assert loss_of(name)(other, labels).item() == pytest.approx(value.item(), rel=1e-6)
    nothing = loss_of(name, WEIGHTS)(logits, torch.full_like(labels, IGNORE))
    nothing.backward()
    assert nothing == 0


def test_equals_pytorch_and_smp() -> None:
    logits, labels = example(0, ignored=0)
    bits = torch.stack([labels >> index & 1 for index in range(CLASSES)], 1).double()
    found = loss_of("bce")(SegmentationOutput(logits, -logits), labels)
    expected = [F.binary_cross_entropy_with_logits(each, bits) for each in (logits, -logits)]
    torch.testing.assert_close(found, expected[0] + 0.4 * expected[1])
    # PyTorch divides the weighted sum by the number of pixels, we by that of their weights.
    pos_weight = WEIGHTS[:, None, None]
    sums = F.binary_cross_entropy_with_logits(logits, bits, pos_weight=pos_weight, reduction="none").sum((0, 2, 3))
    shares = torch.where(bits == 1, pos_weight, 1.0).sum((0, 2, 3))
    torch.testing.assert_close(loss_of("bce", WEIGHTS)(logits, labels), (sums / shares).mean())
    peers = pytest.importorskip("segmentation_models_pytorch.losses")
    torch.testing.assert_close(loss_of("dice")(logits, labels), peers.DiceLoss("multilabel")(logits, bits))
    tversky_of_smp = peers.TverskyLoss("multilabel", alpha=0.3, beta=0.7)(logits, bits)
    torch.testing.assert_close(loss_of("tversky")(logits, labels), tversky_of_smp)


def test_balanced_weights_are_absent_over_present_pixels() -> None:
    pixels = np.array([[[90, 10], [0, 100], [100, 0]], [[290, 10], [0, 300], [300, 0]]])
    np.testing.assert_allclose(class_weights(pixels, "balanced"), [380 / 20, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(class_weights(pixels[:1], "effective"), 1)
