"""Which of two is better, and whether other pictures would say so too: the paired bootstrap over pictures.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 16: pictures are drawn with replacement, the
same ones for both, and the difference of the two scores is taken each time. The interval tells of other pictures of
the same kind. It does not tell of other trainings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Subset

from cssformer.data import IGNORE, DatasetInfo, Sample
from cssformer.data.channels import rgb_view
from cssformer.data.class_pixels import pixels_of
from cssformer.metrics.confusion import intersection_over_union, mean_of_present, number, percent
from cssformer.metrics.report import EXAMPLES, legend_entries, thinned, tile
from cssformer.metrics.scoring import FEW, Evaluation, percentile_interval, resampled
from cssformer.utils.errors import UserError
from cssformer.visualize.drawing import UNKNOWN, WRONG, Picture, colourise, legend, pale, sheet

FIRST_RIGHT, SECOND_RIGHT = (51, 154, 240), (255, 146, 43)
"""Colours of pixels that only one of the two has right."""


class Difference(NamedTuple):
    """A score of two evaluations, fractions from 0 to 1, and the 95 % interval of second - first; NaN where none is."""

    first: float
    second: float
    low: float
    high: float

    @property
    def is_real(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def row(self, name: str) -> tuple[str, ...]:
        """Name, both scores in percent, difference and interval in points, and whether it is real."""
        apart, low, high = (
            "–" if np.isnan(value) else f"{100 * value:+.2f}"
            for value in (self.second - self.first, self.low, self.high)
        )
        interval = "–" if np.isnan(self.low) else f"{low} to {high}"
        return name, percent(self.first), percent(self.second), apart, interval, "real" if self.is_real else ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {**self._asdict(), "difference": self.second - self.first}
        return {**{name: number(value) for name, value in values.items()}, "real": self.is_real}


def require_comparable(first: Any, second: Any) -> None:
    """Raise UserError if two data sets, or what was scored on them, have different classes or pictures."""
    if first.info.classes != second.info.classes:
        raise UserError("The two are scored on different classes; compare them on the same data.")
    if tuple(first.names) != tuple(second.names):
        raise UserError("The two are scored on different pictures; compare them on the same data.")


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same pictures and truth.

    Raises:
        UserError: the classes, pictures, labels or ways of counting differ, or fewer than two pictures, or groups,
            have labels.
    """

    first: Evaluation
    second: Evaluation

    def __post_init__(self) -> None:
        first, second = self.first, self.second
        require_comparable(first, second)
        differs = (first.areas[:, 1] != second.areas[:, 1]).any(axis=1)
        if differs.any():
            name = first.names[int(differs.argmax())]
            raise UserError(f"The two are scored by different labels, {name} the first; compare them on the same data.")
        if first.dilation_ratio != second.dilation_ratio or first.groups != second.groups:
            raise UserError("The two are scored with different widths of Boundary IoU's bands, or different groups.")
        if first.number_drawn < 2:
            raise UserError(
                "Fewer than two pictures, or groups, have labels: that tells nothing of others; compare on several."
            )

    @cached_property
    def iou(self) -> list[Difference]:
        """Of the mIoU and then of each class's IoU."""
        return paired_bootstrap(self.first.drawn(self.first.areas), self.second.drawn(self.second.areas))

    @cached_property
    def boundary_iou(self) -> list[Difference]:
        """The same for Boundary IoU."""
        return paired_bootstrap(self.first.drawn(self.first.boundary), self.second.drawn(self.second.boundary))

    def most_different(self, count: int) -> list[int]:
        """The indices of the ``count`` pictures whose own mIoU differs most, the most first."""
        apart = np.nan_to_num(abs(self.first.picture_miou - self.second.picture_miou), nan=-1)
        return [int(index) for index in np.argsort(-apart, kind="stable")[:count]]

    def tables(self) -> list[list[tuple[str, ...]]]:
        """Two tables, IoU and Boundary IoU, each with its heading."""
        names = self.first.info.classes
        return [
            [(title, "A", "B", "B - A", "95 %", ""), *(each.row(name) for name, each in zip(rows, found, strict=True))]
            for title, rows, found in (
                ("IoU %", ("mean", *names), self.iou),
                ("Boundary IoU %", ("mean", *names), self.boundary_iou),
            )
        ]

    def sentences(self) -> list[str]:
        """Whether the differences are real, in plain words."""
        told = []
        for name, found in (("mIoU", self.iou[0]), ("mean Boundary IoU", self.boundary_iou[0])):
            apart = found.second - found.first
            better = "B" if apart > 0 else "A"
            if np.isnan(found.low):
                told.append(f"{name}: no score.")
            elif found.is_real:
                told.append(f"{name}: {better} is better by {100 * abs(apart):.2f}; real, the interval excludes 0.")
            else:
                told.append(f"{name}: these pictures do not tell which is better; the interval includes 0.")
        drawn, count = "Groups" if self.first.groups else "Pictures", self.first.number_drawn
        if count <= FEW:
            told.append(f"{count} {drawn.lower()} are few: these intervals are too narrow to go by.")
        told.append(f"{drawn} were drawn anew, not trainings: two trainings of one recipe may differ by more.")
        return told

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; fractions from 0 to 1, None where a class has no score."""
        names = self.first.info.classes
        return {
            "first": self.first.about,
            "second": self.second.about,
            "pictures": len(self.first.names),
            "groups": None if self.first.groups is None else len(set(self.first.groups)),
            "miou": self.iou[0].as_dict(),
            "mean_boundary_iou": self.boundary_iou[0].as_dict(),
            "classes": {
                name: {"iou": iou.as_dict(), "boundary_iou": boundary.as_dict()}
                for name, iou, boundary in zip(names, self.iou[1:], self.boundary_iou[1:], strict=True)
            },
        }


def paired_bootstrap(first: NDArray[np.int64], second: NDArray[np.int64]) -> list[Difference]:
    """The difference of the mean IoU, then of the C classes' IoU, with its 95 % percentile interval.

    A class of one picture alone has no interval: every draw that holds it gives the same difference.

    Args:
        first: (n, 3, C) areas per picture, see :class:`cssformer.metrics.scoring.Evaluation`.
        second: the same of the same pictures.
    """

    def scores(areas: NDArray[Any]) -> NDArray[np.float64]:
        iou = intersection_over_union(areas)
        return np.concatenate([mean_of_present(iou)[..., None], iou], axis=-1)

    whole = scores(np.stack([first.sum(axis=0), second.sum(axis=0)]))
    # Both in one draw: the same pictures, as often.
    drawn = scores(resampled(np.stack([first, second], axis=1)))
    apart = drawn[:, 1] - drawn[:, 0]
    pictures = (first + second).any(axis=1).sum(axis=0)
    unknown = np.isnan(whole).any(axis=0) | np.concatenate([[False], pictures < 2])
    intervals = [
        (np.nan, np.nan) if unknown[index] else percentile_interval(apart[:, index]) for index in range(whole.shape[1])
    ]
    return [Difference(*each, *interval) for *each, interval in zip(*whole.tolist(), intervals, strict=True)]


class Chosen(Subset[Sample]):
    """Some pictures of a data set, with its face."""

    dataset: Any

    @property
    def info(self) -> DatasetInfo:
        return self.dataset.info

    @property
    def names(self) -> list[str]:
        return [self.dataset.names[index] for index in self.indices]

    def label(self, index: int) -> NDArray[np.int32] | None:
        return self.dataset.label(self.indices[index])


def differences_sheet(comparison: Comparison, data: Any, scored: Sequence[Callable[[Any], Evaluation]]) -> Picture:
    """The pictures on which the two differ most: picture, truth, what each says, and which of them is right.

    Args:
        comparison: of the two.
        data: that they were scored on.
        scored: what scores each of the two on a data set; asked once more, for these pictures.

    Returns:
        RGB (height, width, 3).
    """
    chosen = Chosen(data, comparison.most_different(EXAMPLES))
    told = [score(chosen).examples for score in scored]
    rows, captions = [], []
    pixels = np.zeros(len(data.info.classes), np.int64)
    for place, index in enumerate(chosen.indices):
        name, image, label = chosen[place]
        assert label is not None
        picture, truth = np.ascontiguousarray(rgb_view(thinned(image), data.info.channels)), thinned(label)
        first, second = (examples[place] for examples in told)
        pixels += sum(pixels_of(shown, data.info) for shown in (truth, first, second))
        who = pale(picture)
        right = np.stack([first == truth, second == truth])
        who[right[0] & ~right[1]] = FIRST_RIGHT
        who[right[1] & ~right[0]] = SECOND_RIGHT
        who[~right.any(axis=0)] = WRONG
        who[truth == IGNORE] = UNKNOWN
        maps = (colourise(each, data.info.palette) for each in (truth, first, second))
        rows.append([tile(part, smooth=number == 0) for number, part in enumerate((picture, *maps, who))])
        scores = (percent(float(each.picture_miou[index])) for each in (comparison.first, comparison.second))
        captions.append("{} · mIoU of A {} %, of B {} %".format(name, *scores))
    heads = ("picture", "truth", "A", "B", "who is right")
    kinds = [("only A right", FIRST_RIGHT), ("only B right", SECOND_RIGHT), ("both wrong", WRONG)]
    entries = [*legend_entries(pixels, data.info), *kinds, ("not scored", UNKNOWN)]
    return sheet(rows, heads, captions, partial(legend, entries))
