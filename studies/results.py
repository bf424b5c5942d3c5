"""From the runs of a study to its tables: scores over the seeds, paired differences, costs."""

import csv
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cssformer.metrics.confusion import number, percent
from cssformer.metrics.report import SCORES
from cssformer.utils.atomic import atomic_write
from cssformer.utils.errors import UserError
from studies.grid import Run
from studies.measure import Cost
from studies.variants import BASELINE, Kind, Variant

MEASURES = ("miou", "mean_boundary_iou", "pixel_accuracy")


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
        pairs: how many seeds both have.
    """

    mean: float
    deviation: float
    low: float
    high: float
    pairs: int


def outcome(run: Run) -> Outcome:
    """Read a finished run."""
    scores = json.loads((run.folder / SCORES).read_text(encoding="utf-8"))
    numbers = {name: math.nan if scores[name] is None else scores[name] for name in MEASURES}
    iou = tuple(math.nan if value is None else value for value in scores["iou"])
    return Outcome(
        run.variant,
        run.recipe.seed,
        tuple(scores["classes"]),
        iou=iou,
        training_seconds=_training_seconds(run),
        **numbers,
    )


def _training_seconds(run: Run) -> float:
    """Seconds spent in training steps, by the speeds in its metrics: without validation, whatever interrupted it."""
    seconds, last = 0.0, 0
    for row in run.metrics():
        if row["images_per_second"]:
            speed = float(row["images_per_second"])
            seconds += (int(row["step"]) - last) * run.recipe.training.batch_size / speed
            last = int(row["step"])
    return seconds * run.recipe.training.steps / last if last else math.nan


class Results:
    """The outcomes of one study.

    Args:
        kind: which study.
        outcomes: of finished runs.
        costs: of each variant among them.
        reference: name of the variant that differences are taken to; by default the baseline among the modules, the
            best peer among the decoders (of those with the most seeds), 16 points (else the most) among the points.

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
        return statistics.fmean(getattr(outcome, measure) for outcome in self.of(variant))

    def deviation(self, variant: Variant, measure: str = "miou") -> float:
        """Standard deviation of a score over the seeds, NaN for a single one."""
        return _deviation([getattr(outcome, measure) for outcome in self.of(variant)])

    def class_iou(self, variant: Variant, index: int) -> float:
        """Mean IoU of a class over the seeds in which it has one."""
        values = [outcome.iou[index] for outcome in self.of(variant) if not math.isnan(outcome.iou[index])]
        return statistics.fmean(values) if values else math.nan

    def difference(self, variant: Variant) -> Difference | None:
        """Of the mIoU to the reference's, over the seeds that both have; None without such a seed."""
        others = {outcome.seed: outcome.miou for outcome in self.of(self.reference)}
        pairs = [outcome.miou - others[outcome.seed] for outcome in self.of(variant) if outcome.seed in others]
        if variant == self.reference or not pairs:
            return None
        mean, deviation = statistics.fmean(pairs), _deviation(pairs)
        margin = _student_t(len(pairs) - 1) * deviation / math.sqrt(len(pairs))
        return Difference(mean, deviation, mean - margin, mean + margin, len(pairs))

    def _reference(self, name: str | None) -> Variant:
        if name is not None:
            for variant in self.variants:
                if variant.name == name:
                    return variant
            raise UserError(
                f"There is no finished run of --reference {name!r}; there are "
                f"{', '.join(variant.name for variant in self.variants)}."
            )
        peers = [variant for variant in self.variants if variant.peer is not None]
        if self.kind == "decoders" and peers:
            # Seeds count first: a mean of few is uncertain, and few differences could be paired.
            return max(peers, key=lambda peer: (len(self.of(peer)), self.mean(peer)))
        wanted = BASELINE.name if self.kind == "modules" else "points-16"
        return next((variant for variant in self.variants if variant.name == wanted), self.variants[-1])

    def rows(self) -> list[tuple[str, ...]]:
        """Heading, then a row for each variant."""
        columns = [self._columns(variant) for variant in self.variants]
        return [tuple(columns[0]), *(tuple(row.values()) for row in columns)]

    def summary(self) -> list[tuple[str, ...]]:
        """The columns of :meth:`rows` that a terminal has room for."""
        columns = [self._columns(variant) for variant in self.variants]
        shown = ("network", "mIoU", self._minus_reference, "95 % interval", "GFLOPs", "latency ratio")
        return [shown, *(tuple(row[name] for name in shown) for row in columns)]

    @property
    def _minus_reference(self) -> str:
        return f"mIoU − {self.reference.title}"

    def _columns(self, variant: Variant) -> dict[str, str]:
        cost = self.costs[variant.name]
        found, seeds = self.difference(variant), len(self.of(variant))
        difference, interval = _texts(found)
        scores = {
            title: _spread(self.mean(variant, name), self.deviation(variant, name))
            for title, name in (
                ("mIoU", "miou"),
                ("Boundary IoU", "mean_boundary_iou"),
                ("pixel accuracy", "pixel_accuracy"),
            )
        }
        columns = {"network": variant.title, **scores, self._minus_reference: difference, "95 % interval": interval}
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
        return {
            "study": self.kind,
            "reference": self.reference.name,
            "variants": {
                variant.name: {
                    "seeds": [outcome.seed for outcome in self.of(variant)],
                    **{name: [number(getattr(outcome, name)) for outcome in self.of(variant)] for name in MEASURES},
                    "difference": _numbers(self.difference(variant)),
                    "iou": [number(self.class_iou(variant, index)) for index in range(len(self.classes))],
                    "training_seconds": [number(outcome.training_seconds) for outcome in self.of(variant)],
                    "cost": asdict(self.costs[variant.name]),
                }
                for variant in self.variants
            },
            "classes": list(self.classes),
        }

    def write_csv(self, path: Path) -> None:
        """A row for each run: its scores as fractions, the difference to the reference, its cost."""
        reference = {outcome.seed: outcome.miou for outcome in self.of(self.reference)}
        with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            costs = ("parameters", "decoder_multiply_adds", "multiply_adds", "milliseconds", "ratio")
            difference = f"miou_minus_{self.reference.name}"
            classes = (f"iou {name}" for name in self.classes)
            writer.writerow(("variant", "seed", *MEASURES, difference, "training_seconds", *costs, *classes))
            for outcome in self.outcomes:
                cost = self.costs[outcome.variant.name]
                writer.writerow(
                    (
                        outcome.variant.name,
                        outcome.seed,
                        *(_plain(getattr(outcome, name)) for name in MEASURES),
                        _plain(outcome.miou - reference.get(outcome.seed, math.nan)),
                        _plain(outcome.training_seconds),
                        *(f"{getattr(cost, name):.6g}" if name in costs[3:] else getattr(cost, name) for name in costs),
                        *(_plain(value) for value in outcome.iou),
                    )
                )

    def write_markdown(self, path: Path, note: str) -> None:
        """Both tables, with a note of how they came about."""
        parts = (_markdown(self.rows()), note, "IoU of the classes, mean over the seeds:", _markdown(self.class_rows()))
        with atomic_write(path) as temporary:
            temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _student_t(degrees: int) -> float:
    """Student's t that 2.5 % of the draws exceed."""
    from scipy.stats import t

    return float(t.ppf(0.975, degrees)) if degrees else math.nan


def _spread(mean: float, deviation: float) -> str:
    return percent(mean) if math.isnan(deviation) else f"{percent(mean)} ± {percent(deviation)}"


def _numbers(difference: Difference | None) -> dict[str, float | None] | None:
    return None if difference is None else {name: number(value) for name, value in asdict(difference).items()}


def _texts(difference: Difference | None) -> tuple[str, str]:
    """Mean with deviation, and the interval, in percent."""
    if difference is None:
        return "", ""
    if math.isnan(difference.deviation):
        return f"{100 * difference.mean:+.2f}", ""
    return (
        f"{100 * difference.mean:+.2f} ± {percent(difference.deviation)}",
        f"{100 * difference.low:+.2f} to {100 * difference.high:+.2f}",
    )


def _plain(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines)
