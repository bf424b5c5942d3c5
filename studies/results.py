"""From the runs of a study to its tables: scores over the seeds, paired differences, costs."""

import csv
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_rel

from cssformer.metrics.confusion import number, percent
from cssformer.utils.atomic import atomic_csv, atomic_text
from cssformer.utils.errors import UserError
from cssformer.weights.run_files import SCORES
from studies.grid import Run
from studies.measure import Cost
from studies.variants import BASELINE, Kind, Variant

MEASURES = {"miou": "mIoU", "mean_boundary_iou": "Boundary IoU", "pixel_accuracy": "pixel accuracy"}


@dataclass(frozen=True)
class Outcome:
    """What one finished run scored; fractions from 0 to 1, NaN where there is no score."""

    variant: Variant
    seed: int
    classes: tuple[str, ...]
    miou: float
    mean_boundary_iou: float
    pixel_accuracy: float
    iou: tuple[float, ...]
    training_seconds: float


@dataclass(frozen=True)
class Difference:
    """Mean over the seeds of the difference to the reference at the same seed, its deviation and 95 % interval.

    Attributes:
        pairs: how many seeds both have; with a single one, deviation and interval are NaN.
    """

    mean: float
    deviation: float
    low: float
    high: float
    pairs: int


def outcome(run: Run) -> Outcome:
    """Read a finished run."""
    scores = json.loads((run.folder / SCORES).read_text(encoding="utf-8"))
    values = *(scores[name] for name in MEASURES), *(row["iou"] for row in scores["classes"].values())
    miou, boundary, accuracy, *iou = (math.nan if value is None else value for value in values)
    classes, seconds = tuple(scores["classes"]), _training_seconds(run)
    return Outcome(run.variant, run.recipe.seed, classes, miou, boundary, accuracy, tuple(iou), seconds)


def _training_seconds(run: Run) -> float:
    """Seconds spent in training steps, by the speeds in its metrics: without validation, whatever interrupted it."""
    seconds, last = 0.0, 0
    for row in run.metrics():
        if row["images_per_second"]:
            speed = float(row["images_per_second"])
            seconds += (int(row["step"]) - last) * run.recipe.training.batch_size / speed
            last = int(row["step"])
    # Its last row is a validation's, after the last step.
    return seconds * int(row["step"]) / last if last else math.nan


class Results:
    """The outcomes of one study.

    Args:
        kind: which study.
        outcomes: of finished runs.
        costs: of each variant among them.
        reference: name of the variant that differences are taken to; by default the best peer (of those with the most
            seeds), without peers the baseline or 16 points, without these the first.

    Raises:
        UserError: there is no finished run of the reference.
    """

    def __init__(
        self, kind: Kind, outcomes: Sequence[Outcome], costs: dict[str, Cost], reference: str | None = None
    ) -> None:
        self.kind = kind
        self.outcomes = list(outcomes)
        self.costs = costs
        self.variants = list(dict.fromkeys(outcome.variant for outcome in outcomes))
        self.classes = outcomes[0].classes
        self.reference = self._reference(reference)

    def of(self, variant: Variant) -> list[Outcome]:
        """The variant's outcomes, one for each seed."""
        return [outcome for outcome in self.outcomes if outcome.variant == variant]

    def mean(self, variant: Variant, measure: str = "miou") -> float:
        """Of a score over the seeds."""
        return float(np.mean([getattr(outcome, measure) for outcome in self.of(variant)]))

    def deviation(self, variant: Variant, measure: str = "miou") -> float:
        """Standard deviation of a score over the seeds, NaN for a single one."""
        return _deviation([getattr(outcome, measure) for outcome in self.of(variant)])

    def class_iou(self, variant: Variant, index: int) -> float:
        """Mean IoU of a class over the seeds in which it has one."""
        values = [outcome.iou[index] for outcome in self.of(variant)]
        return math.nan if np.isnan(values).all() else float(np.nanmean(values))

    def difference(self, variant: Variant) -> Difference | None:
        """Of the mIoU to the reference's, over the seeds that both have; None without such a seed.

        The interval is that of the paired t-test.
        """
        others = {outcome.seed: outcome.miou for outcome in self.of(self.reference)}
        pairs = [(outcome.miou, others[outcome.seed]) for outcome in self.of(variant) if outcome.seed in others]
        if variant == self.reference or not pairs:
            return None
        own, theirs = np.transpose(pairs)
        with warnings.catch_warnings():
            # A single pair, or equal differences: the NaN or the empty interval tells it.
            warnings.simplefilter("ignore", RuntimeWarning)
            interval = ttest_rel(own, theirs).confidence_interval()
        return Difference(
            float(np.mean(own - theirs)),
            _deviation(own - theirs),
            float(interval.low),
            float(interval.high),
            len(pairs),
        )

    def _reference(self, name: str | None) -> Variant:
        if name is not None:
            for variant in self.variants:
                if variant.name == name:
                    return variant
            raise UserError(
                f"There is no finished run of --reference {name!r}; there are "
                f"{', '.join(variant.name for variant in self.variants)}."
            )
        if peers := [variant for variant in self.variants if variant.peer is not None]:
            # Seeds count first: a mean of few is uncertain, and few differences could be paired.
            return max(peers, key=lambda peer: (len(self.of(peer)), self.mean(peer)))
        usual = (BASELINE.name, "points-16")
        return next((variant for variant in self.variants if variant.name in usual), self.variants[0])

    def rows(self) -> list[tuple[str, ...]]:
        """Heading, then a row for each variant."""
        columns = [self._columns(variant) for variant in self.variants]
        return [tuple(columns[0]), *(tuple(row.values()) for row in columns)]

    def summary(self) -> list[tuple[str, ...]]:
        """The columns of :meth:`rows` that a terminal has room for."""
        heading, *rows = self.rows()
        shown = ("network", "mIoU", self._minus_reference, "95 % interval", "GFLOPs", "latency ratio")
        places = [heading.index(name) for name in shown]
        return [tuple(row[place] for place in places) for row in (heading, *rows)]

    @property
    def _minus_reference(self) -> str:
        return f"mIoU − {self.reference.title}"

    def _columns(self, variant: Variant) -> dict[str, str]:
        cost, found, seeds = self.costs[variant.name], self.difference(variant), len(self.of(variant))
        columns = {"network": variant.title}
        for name, title in MEASURES.items():
            columns[title] = _spread(percent(self.mean(variant, name)), self.deviation(variant, name))
        columns[self._minus_reference] = columns["95 % interval"] = ""
        if found is not None:
            columns[self._minus_reference] = _spread(f"{100 * found.mean:+.2f}", found.deviation)
            low, high = 100 * found.low, 100 * found.high
            columns["95 % interval"] = "–" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}"
        if self.kind == "modules" and self.reference == BASELINE:
            columns["in the paper"] = "" if variant.paper is None else f"{variant.paper:+.2f}"
        minutes = self.mean(variant, "training_seconds") / 60
        return columns | {
            "parameters (M)": f"{cost.parameters / 1e6:.2f}",
            "GFLOPs, decoder": f"{cost.decoder_multiply_adds / 1e9:.3g}",
            "GFLOPs": f"{cost.multiply_adds / 1e9:.3g}",
            "latency (ms)": f"{cost.milliseconds:.1f}",
            "latency ratio": f"{cost.ratio:.2f}",
            "training (min)": "" if math.isnan(minutes) else f"{minutes:.1f}",
            "seeds": str(seeds) if found is None or found.pairs == seeds else f"{seeds}, {found.pairs} paired",
        }

    def class_rows(self) -> list[tuple[str, ...]]:
        """Heading, then a row for each class with its mean IoU in percent by every variant."""
        return [
            ("class", *(variant.title for variant in self.variants)),
            *(
                (name, *(percent(self.class_iou(variant, index)) for variant in self.variants))
                for index, name in enumerate(self.classes)
            ),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; fractions from 0 to 1, None where there is no number."""
        variants = {}
        for variant in self.variants:
            outcomes, found = self.of(variant), self.difference(variant)
            variants[variant.name] = {
                "seeds": [outcome.seed for outcome in outcomes],
                **{name: [number(getattr(outcome, name)) for outcome in outcomes] for name in MEASURES},
                "difference": found and {name: number(value) for name, value in asdict(found).items()},
                "iou": [number(self.class_iou(variant, index)) for index in range(len(self.classes))],
                "training_seconds": [number(outcome.training_seconds) for outcome in outcomes],
                "cost": asdict(self.costs[variant.name]),
            }
        return {
            "study": self.kind,
            "reference": self.reference.name,
            "variants": variants,
            "classes": list(self.classes),
        }

    def write_csv(self, path: Path) -> None:
        """A row for each run: its scores as fractions, the difference to the reference, its cost."""
        reference = {outcome.seed: outcome.miou for outcome in self.of(self.reference)}
        rows = []
        for outcome in self.outcomes:
            scores = {name: getattr(outcome, name) for name in MEASURES}
            scores[f"miou_minus_{self.reference.name}"] = outcome.miou - reference.get(outcome.seed, math.nan)
            scores["training_seconds"] = outcome.training_seconds
            iou = {f"iou {name}": value for name, value in zip(self.classes, outcome.iou, strict=True)}
            cost = {
                name: f"{value:.6g}" if isinstance(value, float) else value
                for name, value in asdict(self.costs[outcome.variant.name]).items()
            }
            who = {"variant": outcome.variant.name, "seed": outcome.seed}
            rows.append(who | _plain(scores) | cost | _plain(iou))
        with atomic_csv(path) as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def write_markdown(self, path: Path, note: str) -> None:
        """Both tables, with a note of how they came about."""
        parts = (_markdown(self.rows()), note, "IoU of the classes, mean over the seeds:", _markdown(self.class_rows()))
        atomic_text(path, "\n\n".join(parts) + "\n")


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _spread(mean: str, deviation: float) -> str:
    return mean if math.isnan(deviation) else f"{mean} ± {percent(deviation)}"


def _plain(scores: dict[str, float]) -> dict[str, str]:
    return {name: "" if math.isnan(value) else f"{value:.6f}" for name, value in scores.items()}


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines)
