"""Whether a network's confidence can be believed, and the temperature that makes it so.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017: class scores divided by one number T > 0 keep their
order, and with it the labels, while the confidence comes down (T > 1) or goes up. T is what makes the true classes of
held-out pixels most probable. The classifier is linear, so T goes into its weights: whoever uses the network gets it.
"""

import copy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cssformer.data import IGNORE
from cssformer.data.channels import Pixels
from cssformer.data.dataset import Samples
from cssformer.data.multilabel import require_single_label
from cssformer.inference import Predictor
from cssformer.inference.prediction import by_class
from cssformer.inference.views import telling_of
from cssformer.metrics.evaluate import require_fitting
from cssformer.model import CSSFormer
from cssformer.utils.console import progress
from cssformer.utils.errors import UserError

BINS = 15
PIXELS, MOST = 4096, 2**26
"""Looked at: pixels of a picture, and numbers in all."""
COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures that are tried."""


@dataclass(frozen=True)
class Calibration:
    """What a temperature does to pictures that it was not fitted on.

    Attributes:
        temperature: T.
        error: expected calibration error, before and after, from 0 to 1.
        loss: mean of -ln p of the true class, before and after.
        pictures: how many it was fitted on, and how many it was tried on.
    """

    temperature: float
    error: tuple[float, float]
    loss: tuple[float, float]
    pictures: tuple[int, int]

    @property
    def is_open(self) -> bool:
        """Whether the temperature is at an end of those tried, since one beyond would have still less loss."""
        return not 1.001 * COLDEST < self.temperature < HOTTEST / 1.001

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def calibrate(predictor: Predictor, dataset: Samples) -> Calibration:
    """Fit a temperature on one half of the pictures and try it on the other.

    Raises:
        UserError: there are fewer than two labelled pictures, or data and network have different classes or channels.
    """
    require_fitting(predictor.network, dataset.info)
    require_single_label(dataset.info.multilabel, "The temperature")
    classes, count = len(predictor.classes), len(dataset)
    rng = np.random.default_rng(0)
    each = max(64, min(PIXELS, MOST // (classes * count)))
    found = []
    for index in progress("calibrate", rng.permutation(count)):
        name, image, label = dataset[int(index)]
        scored = np.empty(0, np.int64) if label is None else np.flatnonzero(label != IGNORE)
        if label is not None and scored.size:
            pixels = rng.choice(scored, min(each, scored.size), replace=False)
            with telling_of(name):
                said = predictor(Pixels(image, None), top_k=classes)
            assert said.top_labels is not None and said.top_probabilities is not None
            ranks, ordered = said.top_labels.reshape(classes, -1), said.top_probabilities.reshape(classes, -1)
            p = by_class(ranks[:, pixels], ordered[:, pixels])
            found.append((np.log(np.maximum(p.T, 1e-12)), label.ravel()[pixels]))
    if len(found) < 2:
        raise UserError("Two pictures with labels are needed at least: one to fit the temperature, one to try it on.")
    middle = len(found) // 2
    (fit_scores, fit_labels), (scores, labels) = (
        tuple(map(np.concatenate, zip(*half, strict=True))) for half in (found[:middle], found[middle:])
    )
    temperature = fit_temperature(fit_scores, fit_labels)
    before, after = (confidences(scores / t, labels) for t in (1.0, temperature))
    return Calibration(
        temperature,
        (calibration_error(*before[:2]), calibration_error(*after[:2])),
        (before[2], after[2]),
        (middle, len(found) - middle),
    )


def confidences(
    scores: NDArray[np.floating], labels: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], float]:
    """Confidence (n,), whether it is right (n,), and the mean loss, of class scores (n, C) and true classes (n,)."""
    log_p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    chosen = log_p.argmax(axis=1)
    return np.exp(log_p.max(axis=1)), chosen == labels, float(-np.take_along_axis(log_p, labels[:, None], 1).mean())


def calibration_error(confidence: NDArray[np.floating], right: NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error: Σ share of the bin · |mean confidence - share that is right|, bins of one width.

    Args:
        confidence: (n,) from 0 to 1.
        right: (n,).
        bins: how many.
    """
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def fit_temperature(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The T from ``COLDEST`` to ``HOTTEST`` of least loss, for scores (n, C) and true classes (n,).

    The loss is convex in 1/T; its slope, the mean of the expected score less the true class's, is halved upon.
    """
    true = np.take_along_axis(scores, labels[:, None], 1)[:, 0]
    low, high = np.log(1 / HOTTEST), np.log(1 / COLDEST)
    for _ in range(30):
        middle = (low + high) / 2
        scaled = scores * np.exp(middle)
        p = np.exp(scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True))
        low, high = (low, middle) if ((p * scores).sum(axis=1) - true).mean() > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))


def with_temperature(model: CSSFormer, temperature: float) -> CSSFormer:
    """A copy of the network whose class scores are divided by the temperature."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.head.classify.parameters():
            parameter.div_(temperature)
    return model
