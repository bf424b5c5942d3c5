"""What is wrong with a prepared folder, in plain sentences."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cssformer.data import findings
from cssformer.data.channels import Moments, merged
from cssformer.data.dataset import SPLITS, labels_by_name, pictures_by_name
from cssformer.data.dataset_info import DatasetInfo
from cssformer.data.findings import Finding, are
from cssformer.data.pair_facts import PairFacts, read_pair
from cssformer.utils.errors import UserError
from cssformer.utils.parallel import in_parallel


@dataclass
class CheckReport:
    """What ``check`` found: what is wrong, what is suspicious, and the facts behind them.

    Attributes:
        info: what ``dataset.yaml`` says.
        findings: what is told, in sentences.
        pictures: how many each split has.
        sizes: number of pictures of each size (width, height).
        ignored: share of the pixels of labels that are ignored.
        shares, present: share of each class in the labelled pixels of the training split, and the pictures it is in,
            per split.
        regions, areas: connected regions of each class, and their mean area in pixels.
        channels: of each channel of the training pictures, in the files' units.
    """

    info: DatasetInfo
    findings: list[Finding] = field(default_factory=list)
    pictures: dict[str, int] = field(default_factory=dict)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    ignored: float = 0.0
    shares: list[float] = field(default_factory=list)
    present: list[dict[str, int]] = field(default_factory=list)
    regions: list[int] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    channels: Moments | None = None

    @property
    def errors(self) -> list[str]:
        """Sentences for what is wrong."""
        return [each.text for each in self.findings if each.wrong]

    @property
    def warnings(self) -> list[str]:
        """Sentences for what is suspicious."""
        return [each.text for each in self.findings if not each.wrong]

    def table(self) -> list[tuple[str, ...]]:
        """The class table: a heading, then a row a class."""
        heading = ("id", "class", "pixels", "regions", "mean area", *(f"in {split}" for split in self.pictures))
        rows: list[tuple[str, ...]] = [heading]
        for index, name in enumerate(self.info.classes):
            within = (f"{self.present[index][split]}" for split in self.pictures)
            counts = (f"{self.shares[index]:.2%}", f"{self.regions[index]}", f"{self.areas[index]:.0f}")
            rows.append((str(index), name, *counts, *within))
        return rows

    def channel_table(self) -> list[tuple[str, ...]]:
        """The statistics of the channels: a heading, then a row a channel."""
        rows = (tuple("-" if value is None else f"{value:.6g}" for value in row.values()) for row in self._channels())
        return [("channel", "mean", "std", "least", "most"), *rows]

    def _channels(self) -> list[dict[str, float | None]]:
        """A row for each; of a channel without any value it tells the number alone."""
        if self.channels is None:
            return []
        columns = (self.channels.mean, self.channels.std, self.channels.low, self.channels.high)
        names, numbers = ("mean", "std", "min", "max"), self.channels.number
        return [
            {
                "channel": index,
                **{name: float(value) if number else None for name, value in zip(names, row, strict=True)},
            }
            for index, (number, *row) in enumerate(zip(numbers, *columns, strict=True))
        ]

    def as_dict(self) -> dict[str, Any]:
        """The whole report for JSON."""
        return {
            "errors": self.errors,
            "warnings": self.warnings,
            "pictures": self.pictures,
            "sizes": {f"{width}x{height}": count for (width, height), count in self.sizes.items()},
            "ignored": self.ignored,
            "channels": self._channels(),
            "classes": [
                {
                    "id": index,
                    "name": name,
                    "share": self.shares[index],
                    "pictures": self.present[index],
                    "regions": self.regions[index],
                    "mean_area": self.areas[index],
                }
                for index, name in enumerate(self.info.classes)
            ],
        }


def check(folder: str | Path) -> CheckReport:
    """Read every picture and label of a prepared folder and report what is wrong.

    Raises:
        UserError: there is no such folder, or its ``dataset.yaml`` is missing or wrong.
    """
    root = Path(folder)
    report = CheckReport(DatasetInfo.load(root))
    pairs: list[tuple[str, Path, Path | None]] = []
    for split in SPLITS:
        if (root / split).is_dir():
            pairs += _pairs(root / split, report)
        elif split != "test":
            report.findings.append(Finding(f"The {split} split is missing: there is no folder {root / split}.", True))
    facts = in_parallel(lambda pair: read_pair(*pair, report.info), pairs, "Checking")
    report.pictures = dict(Counter(each.split for each in facts))
    report.sizes = dict(Counter(each.size for each in facts if each.size).most_common())
    _count_classes(facts, report)
    measured = [each.channels for each in facts if each.channels and each.split == "train"]
    report.channels = merged(measured) if measured else None
    report.findings += findings.of_description(report.info, report.pictures)
    report.findings += [Finding(problem, True) for each in facts for problem in each.problems]
    if report.info.channels is not None and report.channels is not None:
        report.findings += findings.of_channels(report.info.channels, report.channels)
    for find in findings.OF_PAIRS:
        report.findings += find(facts, report.info)
    return report


def _pairs(folder: Path, report: CheckReport) -> list[tuple[str, Path, Path | None]]:
    split, labels = folder.name, folder / "labels"
    try:
        images = pictures_by_name(folder / "images")
    except UserError as error:
        report.findings.append(Finding(str(error), True))
        return []
    if not images:
        report.findings.append(Finding(f"{folder / 'images'} holds no pictures.", True))
    if split == "test" and not labels.is_dir():
        return [(split, path, None) for path in images.values()]
    masks = labels_by_name(labels) if labels.is_dir() else {}
    bare = [path for name, path in images.items() if name not in masks]
    lonely = [path for name, path in masks.items() if name not in images]
    for alone, noun, lack in ((bare, "picture", "label"), (lonely, "label", "picture")):
        if alone:
            text = f"{are(len(alone), f'{split} {noun}')} without {lack}, {alone[0]} the first."
            report.findings.append(Finding(text, True))
    return [(split, path, masks.get(name)) for name, path in images.items()]


def _count_classes(facts: list[PairFacts], report: CheckReport) -> None:
    """Shares of classes and of ignored pixels, the pictures they are in, and their regions."""
    classes, labelled = range(len(report.info.classes)), [each for each in facts if each.pixels]
    totals = [sum(each.pixels.get(index, 0) for each in labelled) for index in classes]
    ignored = sum(each.pixels.get(report.info.ignore, 0) for each in labelled)
    report.ignored = ignored / max(1, sum(each.label_area for each in labelled))
    training = [each for each in labelled if each.split == "train"]
    learnt = [sum(each.pixels.get(index, 0) for each in training) for index in classes]
    unknown = sum(each.pixels.get(report.info.ignore, 0) for each in training)
    known = sum(each.label_area for each in training) - unknown if report.info.multilabel else sum(learnt)
    report.shares = [count / max(1, known) for count in learnt]
    report.regions = [sum(each.regions.get(index, 0) for each in labelled) for index in classes]
    report.areas = [total / max(1, count) for total, count in zip(totals, report.regions, strict=True)]
    report.present = [
        {split: sum(index in each.pixels for each in labelled if each.split == split) for split in report.pictures}
        for index in classes
    ]
