"""From label maps to what a whole data set scores; knows nothing of networks and files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cssformer.data import DatasetInfo
from cssformer.data.multilabel import presence
from cssformer.metrics import breakdown
from cssformer.metrics.boundary import (
    DILATION_RATIO,
    TRIMAP_WIDTH,
    TRIMAP_WIDTHS,
    contour_distance,
    contour_distances,
    count_by_distance,
    count_multilabel,
)
from cssformer.metrics.confusion import Scores, areas_of, intersection_over_union, mean_of_present, number, percent
from cssformer.utils.console import counted
from cssformer.utils.errors import UserError

RESAMPLINGS = 1000
"""Bootstrap samples for the confidence interval."""
FEW = 12
"""So many pictures or groups, and fewer, make an interval that is too narrow, which is told beside it."""


@dataclass(frozen=True)
class Evaluation:
    """What scoring a data set found.

    Attributes:
        info: the data set's classes and colours.
        names: the pictures, n of them.
        bands: (widths + 1, C, C + 1) int64, confusion matrices by distance from the true contours, see
            :func:`cssformer.metrics.boundary.count_by_distance`; multi-label (widths + 1, C, 2, 3), see
            :func:`cssformer.metrics.boundary.count_multilabel`.
        areas: (n, 3, C) int64, per picture and class the pixels in common, in the truth and in the prediction.
        boundary: the same near the contours, see :mod:`cssformer.metrics.boundary`.
        dilation_ratio: width of Boundary IoU's bands as a share of the picture's diagonal.
        options: how the pictures were predicted, arguments of :func:`cssformer.inference.predict`.
        examples: index of a picture -> its prediction, of those that a report shows, see
            :class:`cssformer.metrics.report.Examples`.
        about: what was scored, such as "model", "data" and "split", for JSON.
        groups: the group of each picture, such as the video that it is a frame of; each its own where there are none.
        regions: (sizes, C, 7), see :func:`cssformer.metrics.breakdown.count_regions`; None if they were not counted.
    """

    info: DatasetInfo
    names: tuple[str, ...]
    bands: NDArray[np.int64]
    areas: NDArray[np.int64]
    boundary: NDArray[np.int64]
    dilation_ratio: float = DILATION_RATIO
    options: dict[str, Any] = field(default_factory=dict)
    examples: dict[int, NDArray[np.integer]] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] | None = None
    regions: NDArray[np.float64] | None = None

    @cached_property
    def matrix(self) -> NDArray[np.int64]:
        """(C, C + 1) confusion matrix; rows are the truth, columns the prediction, the last one none at all.

        Multi-label (C, 2, 3), of each class against its absence.
        """
        return self.bands.sum(axis=0)

    @cached_property
    def scores(self) -> Scores:
        return Scores.from_matrix(self.matrix)

    @cached_property
    def trimap(self) -> dict[int, Scores]:
        """Width in pixels -> scores of the pixels up to so far from a true contour."""
        within = self.bands.cumsum(axis=0)
        return {width: Scores.from_matrix(matrix) for width, matrix in zip(TRIMAP_WIDTHS, within[:-1], strict=True)}

    @cached_property
    def boundary_iou(self) -> tuple[float, ...]:
        """Boundary IoU of each class over the data set, NaN for a class in neither truth nor prediction."""
        return tuple(intersection_over_union(self.boundary.sum(axis=0)).tolist())

    @cached_property
    def mean_boundary_iou(self) -> float:
        return float(mean_of_present(intersection_over_union(self.boundary.sum(axis=0))))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Percentile bootstrap over pictures, or groups of them: the 95 % confidence interval of the mIoU.

        NaN of one picture, which tells nothing of others.
        """
        return bootstrap_interval(self.drawn(self.areas))

    def drawn(self, areas: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the bootstrap draws: areas of pictures (n, 3, C), summed over each group where there are groups.

        A picture without a labelled pixel says nothing about a network and is not drawn.
        """
        labelled = self.areas[:, 1].any(axis=1) | self.info.multilabel
        if self.groups is None:
            return areas[labelled]
        names, group_of = np.unique(np.array(self.groups)[labelled], return_inverse=True)
        sums = np.zeros((len(names), *areas.shape[1:]), np.int64)
        np.add.at(sums, group_of, areas[labelled])
        return sums

    @cached_property
    def number_drawn(self) -> int:
        """How many pictures, or groups of them, the bootstrap draws."""
        return len(self.drawn(self.areas))

    @cached_property
    def picture_miou(self) -> NDArray[np.float64]:
        """(n,) the mIoU of each picture for itself, over the classes in its truth or its prediction."""
        return mean_of_present(intersection_over_union(self.areas))

    def worst(self, count: int) -> list[int]:
        """The indices of the ``count`` pictures of least mIoU, the worst first; of equal ones the first."""
        order = np.argsort(self.picture_miou, kind="stable")
        return [int(index) for index in order[:count] if not np.isnan(self.picture_miou[index])]

    def caption(self, index: int) -> str:
        """Name and scores of a picture."""
        common, truth, _ = self.areas[index].sum(axis=1)
        accuracy = common / truth if truth else np.nan
        miou = percent(float(self.picture_miou[index]))
        what = "classes' pixels are found" if self.info.multilabel else "pixels are right"
        return f"{self.names[index]} · mIoU {miou} % · {percent(float(accuracy))} % of the {what}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; fractions from 0 to 1, None where a class has no score."""
        scores = self.scores
        columns = (self.info.classes, scores.iou, scores.dice, scores.accuracy, self.boundary_iou, scores.pixels)
        return {
            **self.about,
            **scores.as_dict(),
            "miou_interval": [number(value) for value in self.interval],
            "mean_boundary_iou": number(self.mean_boundary_iou),
            "dilation_ratio": self.dilation_ratio,
            "trimap_miou": {str(width): number(scores.miou) for width, scores in self.trimap.items()},
            "classes": {
                name: {
                    "iou": number(iou),
                    "dice": number(dice),
                    "accuracy": number(accuracy),
                    "boundary_iou": number(boundary),
                    "pixels": pixels,
                }
                for name, iou, dice, accuracy, boundary, pixels in zip(*columns, strict=True)
            },
            "pictures": len(self.names),
            "groups": None if self.groups is None else len(set(self.groups)),
            "partial": self.info.partial,
            "by": breakdown.as_dict(self),
            "options": dict(self.options),
        }

    def summary(self) -> list[tuple[str, str]]:
        """Name and value in percent of each score of the whole data set."""
        low, high = self.interval
        drawn = "" if self.groups is None else f", by {self.number_drawn} groups"
        size = counted(self.number_drawn, "picture" if self.groups is None else "group")
        likely = "" if np.isnan(low) else f"  (95 %: {percent(low)} to {percent(high)}{drawn})"
        return [
            ("mIoU", f"{percent(self.scores.miou)}{likely}"),
            ("mean accuracy", percent(self.scores.mean_accuracy)),
            ("pixel accuracy", percent(self.scores.pixel_accuracy)),
            ("frequency-weighted IoU", percent(self.scores.frequency_weighted_iou)),
            ("mean Dice", percent(float(mean_of_present(np.array(self.scores.dice))))),
            ("mean Boundary IoU", percent(self.mean_boundary_iou)),
            (f"mIoU within {TRIMAP_WIDTH} pixels of contours", percent(self.trimap[TRIMAP_WIDTH].miou)),
            *([("note", f"{size}: too few to go by the interval")] if likely and self.number_drawn <= FEW else []),
            *([("note", "partial data, not comparable with published scores")] if self.info.partial else []),
        ]


class Counts(NamedTuple):
    """What one picture adds to an evaluation.

    ``bands`` and ``boundary`` are of :func:`cssformer.metrics.boundary.count_by_distance`, ``regions`` of
    :func:`cssformer.metrics.breakdown.count_regions`.
    """

    bands: NDArray[np.int64]
    boundary: NDArray[np.int64]
    regions: NDArray[np.float64] | None = None


class Scorer:
    """Collects the counts of a data set picture by picture.

    Args:
        info: the classes and colours of the data set.
        dilation_ratio: width of Boundary IoU's bands as a share of the picture's diagonal.
        regions: also count the regions of each size, a few passes over the picture for each of its classes.

    Raises:
        UserError: the ratio is not between 0 and 1.
    """

    def __init__(self, info: DatasetInfo, dilation_ratio: float = DILATION_RATIO, regions: bool = False) -> None:
        if not 0 < dilation_ratio <= 1:
            raise UserError(f"The dilation ratio of Boundary IoU must lie between 0 and 1; it is {dilation_ratio}.")
        self.info = info
        self.dilation_ratio = dilation_ratio
        self.names: list[str] = []
        self.areas: list[NDArray[np.int64]] = []
        self.boundary: list[NDArray[np.int64]] = []
        classes = len(info.classes)
        cells = (2, 3) if info.multilabel else (classes + 1,)
        self.bands = np.zeros((len(TRIMAP_WIDTHS) + 1, classes, *cells), np.int64)
        self.regions = np.zeros((len(breakdown.SIZES), classes, len(breakdown.COUNTED))) if regions else None

    def distance(self, label: NDArray[np.int32]) -> NDArray[np.uint16]:
        """The truth's distances from its contours, (H, W) -> (H, W), which may be computed ahead for :meth:`count`.

        Multi-label (C, H, W), from those of each class.
        """
        if self.info.multilabel:
            return contour_distances(label, len(self.info.classes), self.dilation_ratio)
        return contour_distance(label, label, self.dilation_ratio)

    def count(
        self, prediction: NDArray[np.integer], label: NDArray[np.int32], distance: NDArray[np.uint16] | None = None
    ) -> Counts:
        """Compare a prediction with the truth; changes nothing here, so that several threads may count.

        Args:
            prediction: class indices or bit fields (H, W), ``IGNORE`` where none is given, which is wrong for whatever
                class is true.
            label: the truth (H, W) with ``IGNORE``.
            distance: the truth's :meth:`distance`, if it is known already.

        Raises:
            ValueError: the shapes differ, or a class index lies outside the classes.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction {prediction.shape} and label {label.shape} differ in shape.")
        said, classes = prediction.astype(np.int32, copy=False), len(self.info.classes)
        count = count_multilabel if self.info.multilabel else count_by_distance
        areas = count(said, label, classes, self.dilation_ratio, distance)
        return Counts(*areas, None if self.regions is None else self._count_regions(said, label, classes))

    def _count_regions(self, said: NDArray[np.int32], label: NDArray[np.int32], classes: int) -> NDArray[np.float64]:
        if not self.info.multilabel:
            return breakdown.count_regions(said, label, classes)
        planes = ((presence(said, index), presence(label, index)) for index in range(classes))
        return np.stack([breakdown.count_regions(*pair, 2)[:, 1] for pair in planes], axis=1)

    def add(self, name: str, counts: Counts) -> None:
        """Add the counts of the picture ``name``."""
        self.names.append(name)
        self.bands += counts.bands
        self.areas.append(areas_of(counts.bands.sum(axis=0)))
        self.boundary.append(counts.boundary)
        if self.regions is not None and counts.regions is not None:
            self.regions += counts.regions

    def result(self, **details: Any) -> Evaluation:
        """The evaluation of all pictures added so far; ``details`` are its ``options`` and ``examples``."""
        details |= {"dilation_ratio": self.dilation_ratio, "regions": self.regions}
        areas, boundary = np.stack(self.areas), np.stack(self.boundary)
        return Evaluation(self.info, tuple(self.names), self.bands, areas, boundary, **details)


def groups_of(names: Sequence[str], pattern: str | None) -> tuple[str, ...] | None:
    """The group of each picture: the text that the regular expression finds in its name; None without a pattern.

    Frames of one video are alike: taken as independent pictures they make the interval too narrow.

    Raises:
        UserError: no regular expression, one that is not found in a name, or a single group.
    """
    if pattern is None:
        return None
    try:
        found = [re.search(pattern, name) for name in names]
    except re.error as error:
        raise UserError(f"{pattern!r} is no regular expression: {error}.") from error
    groups = tuple(match[0] for match in found if match)
    if len(groups) < len(found):
        missed = names[found.index(None)]
        raise UserError(f"The pattern {pattern!r} of the groups is not found in the name {missed}.")
    if len(set(groups)) < 2:
        raise UserError(f"The pattern {pattern!r} makes one group of all pictures; an interval needs several.")
    return groups


def bootstrap_interval(areas: NDArray[np.int64], level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the mIoU if other pictures of the same kind had been drawn.

    Each of 1000 resamplings draws as many pictures as there are, with replacement, and takes the mIoU of their summed
    areas; the interval runs between the percentiles of these scores. One picture has none (NaN).

    Args:
        areas: (n, 3, C), see :class:`Evaluation`.
        level: share of the resamplings inside.
    """
    if len(areas) < 2:
        return np.nan, np.nan
    return percentile_interval(mean_of_present(intersection_over_union(resampled(areas))), level)


def resampled(areas: NDArray[np.int64]) -> NDArray[np.float64]:
    """Areas (n, ...) summed over n pictures drawn with replacement, 1000 times: (1000, ...)."""
    pictures = len(areas)
    rng = np.random.default_rng(0)
    times_drawn = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLINGS).astype(np.float64)
    return (times_drawn @ areas.reshape(pictures, -1)).reshape(-1, *areas.shape[1:])


def percentile_interval(scores: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Between which two values the share ``level`` of the resampled scores (1000,) lies; NaN is no score."""
    # Where no pixel is labelled there is none.
    scores = scores[~np.isnan(scores)]
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2]) if scores.size else (np.nan, np.nan)
    return float(low), float(high)
