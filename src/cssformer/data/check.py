"""What is wrong with a prepared folder, in plain sentences."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cssformer.data.dataset import (
    IGNORE,
    SPLITS,
    DatasetInfo,
    SegmentationFolder,
    label_table,
    labels_by_name,
    pictures_by_name,
    require_same_size,
    to_classes,
)
from cssformer.data.files import read_bytes, require_whole_file
from cssformer.data.image_io import decode_image, decode_mask, read_ids, read_size
from cssformer.data.picture_facts import PictureFacts, notes
from cssformer.utils.errors import UserError
from cssformer.utils.parallel import in_parallel

# So many classes are named in one sentence.
_SHOWN = 8


@dataclass
class CheckReport:
    """What ``check`` found: sentences for what is wrong and for what is suspicious, and the facts behind them."""

    info: DatasetInfo
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    #: Pictures per split.
    pictures: dict[str, int] = field(default_factory=dict)
    #: Number of pictures of each size (width, height).
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    #: Share of the pixels of labels that are ignored.
    ignored: float = 0.0
    #: Share of each class in the labelled pixels, and the number of pictures it is in, per split.
    shares: list[float] = field(default_factory=list)
    present: list[dict[str, int]] = field(default_factory=list)

    def table(self) -> list[tuple[str, ...]]:
        """The class table: a heading, then a row a class."""
        rows: list[tuple[str, ...]] = [("id", "class", "pixels", *(f"in {split}" for split in self.pictures))]
        for index, name in enumerate(self.info.classes):
            within = (f"{self.present[index][split]}" for split in self.pictures)
            rows.append((str(index), name, f"{self.shares[index]:.2%}", *within))
        return rows

    def as_dict(self) -> dict[str, Any]:
        """The whole report for JSON."""
        return {
            "errors": self.errors,
            "warnings": self.warnings,
            "pictures": self.pictures,
            "sizes": {f"{width}x{height}": count for (width, height), count in self.sizes.items()},
            "ignored": self.ignored,
            "classes": [
                {"id": index, "name": name, "share": self.shares[index], "pictures": self.present[index]}
                for index, name in enumerate(self.info.classes)
            ],
        }


@dataclass(frozen=True)
class _Facts:
    """What one picture and its label hold; a file that cannot be read leaves a problem instead."""

    split: str
    image: Path
    label: Path | None
    problems: tuple[str, ...] = ()
    file: PictureFacts | None = None
    size: tuple[int, int] | None = None
    label_size: tuple[int, int] | None = None
    digest: str = ""
    #: Of the label's pixels.
    bits: int = 0
    pixels: dict[int, int] = field(default_factory=dict)
    label_orientation: int = 1


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
            report.errors.append(f"The {split} split is missing: there is no folder {root / split}.")
    facts = in_parallel(_read, pairs, "Checking")
    report.pictures = dict(Counter(each.split for each in facts))
    for split, count in report.info.counts.items():
        if report.pictures.get(split, 0) != count:
            there = report.pictures.get(split, 0)
            report.warnings.append(f"dataset.yaml speaks of {count} {split} pictures, but there are {there}.")
    if report.info.partial:
        report.warnings.append("The set is partial (dataset.yaml): its scores are not comparable with published ones.")
    report.errors += [problem for each in facts for problem in each.problems]
    _check_sizes(facts, report)
    _check_ids(facts, report)
    _check_classes(facts, report)
    _check_duplicates(facts, report)
    _check_files(facts, report)
    return report


def _pairs(folder: Path, report: CheckReport) -> list[tuple[str, Path, Path | None]]:
    split, labels = folder.name, folder / "labels"
    try:
        images = pictures_by_name(folder / "images")
    except UserError as error:
        report.errors.append(str(error))
        return []
    if not images:
        report.errors.append(f"{folder / 'images'} holds no pictures.")
    if split == "test" and not labels.is_dir():
        return [(split, path, None) for path in images.values()]
    masks = labels_by_name(labels) if labels.is_dir() else {}
    bare = [path for name, path in images.items() if name not in masks]
    if bare:
        report.errors.append(f"{_are(len(bare), split + ' picture')} without label, {bare[0]} the first.")
    lonely = [path for name, path in masks.items() if name not in images]
    if lonely:
        report.errors.append(f"{_are(len(lonely), split + ' label')} without picture, {lonely[0]} the first.")
    return [(split, path, masks.get(name)) for name, path in images.items()]


def _read(pair: tuple[str, Path, Path | None]) -> _Facts:
    split, path, label_path = pair
    problems, facts, size, label_size, digest, bits, label_orientation = [], None, None, None, "", 0, 1
    pixels: dict[int, int] = {}
    try:
        image, facts = decode_image(read_bytes(path), path)
        size = image.shape[1], image.shape[0]
        digest = hashlib.sha256(image.tobytes()).hexdigest()
    except UserError as error:
        problems.append(str(error))
    try:
        if label_path is not None:
            mask = decode_mask(read_bytes(label_path), label_path)
            label, label_orientation = mask.ids(label_path), mask.orientation
            bits = 8 * label.itemsize
            label_size = label.shape[1], label.shape[0]
            counts = np.bincount(label.ravel())
            pixels = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    except UserError as error:
        problems.append(str(error))
    return _Facts(
        split, path, label_path, tuple(problems), facts, size, label_size, digest, bits, pixels, label_orientation
    )


def _check_sizes(facts: list[_Facts], report: CheckReport) -> None:
    report.sizes = dict(Counter(each.size for each in facts if each.size).most_common())
    differ = [each for each in facts if each.size and each.label_size and each.size != each.label_size]
    if differ:
        first, count = differ[0], len(differ)
        report.errors.append(
            f"{count} {'label differs' if count == 1 else 'labels differ'} from the picture in size: {first.label} is "
            f"{_size(first.label_size)}, its picture {_size(first.size)}."
        )


def _check_ids(facts: list[_Facts], report: CheckReport) -> None:
    """Ids outside the classes, and what they look like as a whole."""
    classes, ignore = len(report.info.classes), report.info.ignore
    wide = [each for each in facts if each.bits > 8]
    if wide and ignore == 255:
        report.errors.append(
            f"{len(wide)} {'label has' if len(wide) == 1 else 'labels have'} 16 bits, but those of a dataset that "
            f"ignores 255 have 8: {wide[0].label} is the first."
        )
    found = {value for each in facts for value in each.pixels}
    outside = sorted(value for value in found if value >= classes and value != ignore)
    for value in outside[:10]:
        files = [each for each in facts if value in each.pixels]
        pixels = sum(each.pixels[value] for each in files)
        report.errors.append(
            f"The id {value} is outside the classes 0 to {classes - 1} (and is not the ignored {ignore}): "
            f"{pixels} pixels in {len(files)} {'label' if len(files) == 1 else 'labels'}, {files[0].label} the first."
        )
    if len(outside) > 10:
        report.errors.append(f"{len(outside) - 10} more ids are outside the classes, up to {outside[-1]}.")
    if outside == [classes] and 0 not in found:
        report.errors.append(
            f"All labels look shifted by one: they have {classes} but never 0. If 1 is the first class, "
            "prepare the data again with a class file of `ID NAME` lines that starts at 1."
        )
    elif len(outside) > max(2, len(found) // 2):
        report.errors.append(
            f"The labels look like colours read as ids: {len(outside)} of their {len(found)} ids are no classes. "
            "Prepare the data again from the colour masks with a class file of `R G B NAME` lines."
        )
    if ignore in found and found <= {0, ignore} and classes > 1:
        report.errors.append(
            f"The labels hold nothing but 0 and {ignore}, which is ignored: they look like binary masks whose "
            f"foreground is {ignore}. Prepare the data again from the masks."
        )


def _check_classes(facts: list[_Facts], report: CheckReport) -> None:
    """Shares of classes and of ignored pixels; classes that are absent."""
    classes, labelled = range(len(report.info.classes)), [each for each in facts if each.pixels]
    totals = [sum(each.pixels.get(index, 0) for each in labelled) for index in classes]
    ignored = sum(each.pixels.get(report.info.ignore, 0) for each in labelled)
    report.shares = [total / max(1, sum(totals)) for total in totals]
    report.ignored = ignored / max(1, sum(sum(each.pixels.values()) for each in labelled))
    report.present = [
        {split: sum(index in each.pixels for each in labelled if each.split == split) for split in report.pictures}
        for index in classes
    ]
    splits = list(dict.fromkeys(each.split for each in labelled))
    absent: dict[str, list[str]] = defaultdict(list)
    for index, name in enumerate(report.info.classes):
        where = [split for split in splits if not report.present[index][split]]
        text = "in no label" if len(where) == len(splits) else f"absent from {' and '.join(where)}"
        if where:
            absent[text].append(f"{index} ({name})")
    for text, classes_there in absent.items():
        more = f" and {len(classes_there) - _SHOWN} more" if len(classes_there) > _SHOWN else ""
        shown = ", ".join(classes_there[:_SHOWN]) + more
        one = len(classes_there) == 1
        report.warnings.append(f"The class{' ' if one else 'es '}{shown} {'is' if one else 'are'} {text}.")
    void = [each for each in labelled if set(each.pixels) == {report.info.ignore}]
    if void:
        report.warnings.append(f"{_are(len(void), 'label')} ignored entirely, {void[0].label} the first.")
    if sum(share > 0 for share in report.shares) == 1:
        report.warnings.append(
            f"All labelled pixels are of one class, {report.info.classes[report.shares.index(1.0)]}: there is nothing "
            "to learn. What is not the object must be a class too, not ignored."
        )
    if report.ignored > 0.5:
        report.warnings.append(f"{report.ignored:.0%} of all pixels are ignored.")


def _check_files(facts: list[_Facts], report: CheckReport) -> None:
    """What is read, but perhaps not as people or other programs expect."""
    files = {each.image: each.file for each in facts if each.file}
    tagged = [path for path, each in files.items() if each.orientation != 1]
    tagged_labels = [each.label for each in facts if each.label_orientation != 1]
    for paths, noun in ((tagged, "picture"), (tagged_labels, "label")):
        if paths:
            report.warnings.append(
                f"{_are(len(paths), noun)} turned upright when read, as the EXIF orientation says, {paths[0]} the "
                "first; pictures and labels must agree upright, and programs that ignore EXIF data see other pixels."
            )
    report.warnings += notes(files)


def _check_duplicates(facts: list[_Facts], report: CheckReport) -> None:
    by_digest: dict[str, list[_Facts]] = defaultdict(list)
    for each in facts:
        if each.digest:
            by_digest[each.digest].append(each)
    leaks = [same for same in by_digest.values() if len({each.split for each in same}) > 1]
    if leaks:
        first = leaks[0][0]
        other = next(each for each in leaks[0] if each.split != first.split)
        report.warnings.append(
            f"{_are(len(leaks), 'picture')} in more than one split, pixel by pixel: {first.image} equals {other.image}."
        )


def _are(count: int, noun: str) -> str:
    return f"{count} {noun} is" if count == 1 else f"{count} {noun}s are"


def _size(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size or ()))


def verify_labels(folder: str | Path, splits: tuple[str, ...] = ("train", "val")) -> dict[str, list[str]]:
    """Read every label and the ends of every picture of ``splits``, so that training does not stop in the middle.

    Returns:
        For each split the names of the classes that are in none of its labels.

    Raises:
        UserError: a split, a picture's label or ``dataset.yaml`` is missing, a label is unreadable or has an id
            outside the classes, a picture is truncated, or their sizes differ; the first such file is named.
    """
    absent = {}
    for split in splits:
        dataset = SegmentationFolder(folder, split)
        if dataset.labels is not None:
            table, classes = label_table(dataset.info), dataset.info.classes
            pairs = [(dataset.images[name], dataset.labels[name]) for name in dataset.names]
            there = np.any(in_parallel(_Verifier(table, len(classes)), pairs, f"Verifying {split}"), axis=0)
            absent[split] = [name for name, held in zip(classes, there, strict=True) if not held]
    return absent


@dataclass(frozen=True)
class _Verifier:
    table: NDArray[np.int32]
    count: int

    def __call__(self, pair: tuple[Path, Path]) -> NDArray[np.bool_]:
        """Which classes the label holds."""
        picture, path = pair
        label = to_classes(read_ids(read_bytes(path), path), self.table, path)
        require_whole_file(picture)
        width, height = read_size(picture)
        require_same_size(picture, (height, width), path, label.shape)
        return np.bincount(label[label != IGNORE], minlength=self.count) > 0
