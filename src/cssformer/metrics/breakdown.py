"""Where the errors are: scores by the size of regions, by class, and by the distance from the true contours.

Regions are the connected ones (8-connected) of each class, in the truth and in the prediction, compared by the adjusted
IoU of Rottmann et al., "Prediction Error Meta Classification in Semantic Segmentation" (IJCNN 2020), as Chan et al.,
"SegmentMeIfYouCan" (NeurIPS 2021), count it: a true region k is compared with all predicted regions K of its class that
it touches, and what of these lies on other true regions of the class is no error of k:

    sIoU(k) = |k ∩ K| / (|k| + |K outside the true pixels of the class|)

A true region is found if its sIoU is 1/2 or more; a predicted region is false if less than half of it has its class in
the truth. Sizes are COCO's (small below 32², medium below 96² pixels, large from there on), with the tiny ones below
16² apart, as in AI-TOD (Wang et al., ICPR 2021): most of these are crumbs. Ignored pixels belong to no class, in truth
and prediction.
"""

from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.data import IGNORE
from cssformer.metrics.boundary import TRIMAP_WIDTH, TRIMAP_WIDTHS
from cssformer.metrics.confusion import Scores, number, percent, ratio

if TYPE_CHECKING:
    from cssformer.metrics.scoring import Evaluation

By = Literal["size", "class", "boundary"]

SIZES = {"tiny": 0, "small": 16**2, "medium": 32**2, "large": 96**2}
"""Size of a region -> its least area in pixels."""

COUNTED = ("regions", "found", "siou", "pixels", "right", "predicted", "false")
"""True regions, those found, the sum of their sIoU, their pixels, those of them that are right; predicted regions, and
those that are false."""

RATIOS = {"found": "regions", "siou": "regions", "right": "pixels", "false": "predicted"}
"""What is told as a share, and of what."""


def count_regions(prediction: NDArray[np.int32], label: NDArray[np.int32], classes: int) -> NDArray[np.float64]:
    """What a picture adds to the scores of regions: (sizes, C, 7), the last axis as ``COUNTED``.

    Args:
        prediction: class indices (H, W), ``IGNORE`` where none is given.
        label: the truth (H, W) with ``IGNORE``.
        classes: C.
    """
    said = np.where(label == IGNORE, IGNORE, prediction)
    (of_true, true), (of_said, guessed) = _numbered(label), _numbered(said)
    common = (label == said) & (label != IGNORE)
    pixels, right = (np.bincount(each.ravel(), minlength=len(true)) for each in (of_true, of_true[common]))
    predicted, inside = (np.bincount(each.ravel(), minlength=len(guessed)) for each in (of_said, of_said[common]))
    # Regions that touch; along a row the pairs repeat themselves.
    pairs = of_true[common].astype(np.int64) * len(guessed) + of_said[common]
    touching, touched = np.divmod(np.unique(pairs[np.diff(pairs, prepend=-1) != 0]), len(guessed))
    outside = np.bincount(touching, (predicted - inside)[touched], minlength=len(true))
    siou = ratio(right, pixels + outside)
    counts = np.zeros((len(SIZES), classes, len(COUNTED)))
    for place, region, area, columns in (
        (np.s_[:5], true, pixels, (np.ones_like(siou), siou >= 0.5, siou, pixels, right)),
        (np.s_[5:], guessed, predicted, (np.ones_like(predicted), 2 * inside < predicted)),
    ):
        size = np.searchsorted(list(SIZES.values()), area, side="right") - 1
        # Number 0 is what is no region.
        np.add.at(counts[..., place], (size[1:], region[1:]), np.stack(columns, axis=1)[1:])
    return counts


def _numbered(labels: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The number of each pixel's region (H, W), 0 for none, and the class of each number."""
    numbers, classes = np.zeros(labels.shape, np.int32), [0]
    for index in np.flatnonzero(np.bincount(labels[labels != IGNORE])).tolist():
        mask = (labels == index).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        box = np.s_[top : top + height, left : left + width]
        count, own = cv2.connectedComponents(mask[box])
        numbers[box] += np.where(own > 0, own + (len(classes) - 1), 0)
        classes += [index] * (count - 1)
    return numbers, np.array(classes)


def region_scores(counts: NDArray[np.float64]) -> dict[str, float]:
    """Numbers of regions, and shares from 0 to 1, NaN where there is nothing to share, of counts (7,)."""
    told = dict(zip(COUNTED, counts.tolist(), strict=True))
    return {name: float(ratio(each, told[RATIOS[name]])) if name in RATIOS else each for name, each in told.items()}


def distance_scores(evaluation: "Evaluation") -> dict[str, Scores]:
    """Scores of the pixels up to so many from a true contour, of those beyond, and of all."""
    within = {f"up to {width}": scores for width, scores in evaluation.trimap.items()}
    beyond = Scores.from_matrix(evaluation.bands[-1])
    return {**within, f"beyond {TRIMAP_WIDTHS[-1]}": beyond, "all": evaluation.scores}


def table(evaluation: "Evaluation", by: By) -> list[tuple[str, ...]]:
    """The table of an evaluation that counted regions, its heading first."""
    if by == "boundary":
        scores = distance_scores(evaluation)
        pixels = np.array([sum(each.pixels) for each in scores.values()])
        shares = ratio(pixels, pixels[-1]).tolist()
        return [
            ("pixels from contours", "share %", "mIoU %", "pixel accuracy %"),
            *(
                (name, *map(percent, (share, each.miou, each.pixel_accuracy)))
                for (name, each), share in zip(scores.items(), shares, strict=True)
            ),
        ]
    assert evaluation.regions is not None
    regions = ("regions", "found %", "mean sIoU %", "predicted", "false %")
    if by == "size":
        rows = zip((*SIZES, "all"), (*evaluation.regions.sum(axis=1), evaluation.regions.sum(axis=(0, 1))), strict=True)
        return [
            ("size", "pixels right %", *regions),
            *((name, percent(region_scores(counts)["right"]), *_cells(counts)) for name, counts in rows),
        ]
    near, beyond = evaluation.trimap[TRIMAP_WIDTH].iou, Scores.from_matrix(evaluation.bands[-1]).iou
    columns = (evaluation.info.classes, evaluation.scores.iou, evaluation.boundary_iou, near, beyond)
    return [
        ("class", "IoU %", "Boundary IoU %", f"up to {TRIMAP_WIDTH} px", f"beyond {TRIMAP_WIDTHS[-1]} px", *regions),
        *(
            (name, *map(percent, scores), *_cells(counts))
            for (name, *scores), counts in zip(zip(*columns, strict=True), evaluation.regions.sum(axis=0), strict=True)
        ),
    ]


def _cells(counts: NDArray[np.float64]) -> tuple[str, ...]:
    told = region_scores(counts)
    return (
        f"{told['regions']:.0f}",
        percent(told["found"]),
        percent(told["siou"]),
        f"{told['predicted']:.0f}",
        percent(told["false"]),
    )


def as_dict(evaluation: "Evaluation") -> dict[str, Any]:
    """Plain values for JSON; fractions from 0 to 1, None where there is nothing to score."""
    told: dict[str, Any] = {
        "boundary": {
            name: {**scores.as_dict(), "pixels": sum(scores.pixels)}
            for name, scores in distance_scores(evaluation).items()
        }
    }
    if evaluation.regions is not None:

        def plain(counts: NDArray[np.float64]) -> dict[str, float | None]:
            return {name: number(value) for name, value in region_scores(counts).items()}

        for name, counts in zip(SIZES, evaluation.regions, strict=True):
            classes = {each: plain(own) for each, own in zip(evaluation.info.classes, counts, strict=True)}
            told.setdefault("size", {})[name] = {**plain(counts.sum(axis=0)), "classes": classes}
    return told
