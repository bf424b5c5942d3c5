"""What a benchmark is, and how any of them becomes a prepared folder."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cssformer.data.dataset import SPLITS
from cssformer.data.dataset_info import DatasetInfo, ignored_value
from cssformer.data.image_io import read_ids
from cssformer.prepare.archives import Member, open_source
from cssformer.prepare.writer import Entry, Reader, fill, require_free
from cssformer.utils.atomic import atomic_dir
from cssformer.utils.errors import UserError


class Part(NamedTuple):
    """One file's part in a benchmark: the picture or the label called ``name`` of a split."""

    split: str
    name: str
    kind: Literal["image", "label"]
    member: Member


@dataclass(frozen=True)
class Benchmark:
    """An official data set.

    Attributes:
        title, licence: for people.
        archives: what to give as sources, as its homepage names it.
        layout: where pictures and labels stand in them, for the message about a wrong archive.
        counts: pictures per split; a test split may be left out.
        classes, colours: in the order of their indices.
        index_of: value in the official labels -> class index, None where it is ignored. Any other value is an error.
        parts: finds pictures and labels among all files of the sources; test pictures may be without labels.
        read: decodes a label's bytes to its values (H, W).
    """

    title: str
    licence: str
    archives: str
    layout: str
    counts: dict[str, int]
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    index_of: dict[int, int | None]
    parts: Callable[[Sequence[Member]], Iterable[Part]]
    read: Reader = read_ids

    def info(self) -> DatasetInfo:
        """The description of the prepared data set, without counts and sources."""
        mapping = {str(value): index for value, index in sorted(self.index_of.items())}
        return DatasetInfo(self.classes, self.colours, ignored_value(len(self.classes)), mapping)


@dataclass(frozen=True)
class PreparedBenchmark:
    """What was written."""

    benchmark: Benchmark
    output: Path
    info: DatasetInfo

    def table(self) -> list[tuple[str, str]]:
        """Rows of a fact and its value."""
        rows = [("written", str(self.output)), ("data", self.benchmark.title)]
        rows += [("licence", self.benchmark.licence)]
        for split, official in self.benchmark.counts.items():
            count = self.info.counts.get(split, 0)
            rows.append((split, f"{count} pictures" + (f" of {official}" if count != official else "")))
        for index, name in enumerate(self.info.classes):
            rows.append((f"class {index}", f"{name} (from {self._ids(index)})"))
        rows.append(("ignored", self._ids(None) or "nothing"))
        if self.info.partial:
            rows.append(("note", "The set is partial: scores on it are not comparable with published ones."))
        return rows

    def _ids(self, index: int | None) -> str:
        """The raw ids of a class, as in "0, 5-9"."""
        ids = sorted(int(value) for value, target in self.info.mapping.items() if target == index)
        # Consecutive ids differ from their place in the row by the same amount.
        runs = [[id for _, id in run] for _, run in groupby(enumerate(ids), lambda pair: pair[1] - pair[0])]
        return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "output": str(self.output),
            "benchmark": self.benchmark.title,
            "partial": self.info.partial,
            "counts": self.info.counts,
            "classes": list(self.info.classes),
            "mapping": self.info.mapping,
            "sources": self.info.sources,
        }


def prepare_benchmark(
    benchmark: Benchmark | Callable[[Sequence[Member]], Benchmark],
    source: Sequence[Path],
    output: Path,
    *,
    partial: bool = False,
) -> PreparedBenchmark:
    """Make a prepared folder of a benchmark's official files.

    Args:
        benchmark: which data set; where its labels come in several forms, a function that tells it by the files.
        source: the official archives as downloaded (.zip, .tar, .tar.gz), or folders of what is in them.
        output: The prepared folder to be made.
        partial: Take fewer pictures than there are officially; dataset.yaml says so then.

    Raises:
        UserError: a source is missing, damaged, unsafe, or of another data set; pictures or labels are missing; the
            counts are not the official ones; ``output`` is something else. Nothing is left behind then.
    """
    require_free(output)
    with ExitStack() as opened:
        members = [member for path in source for member in opened.enter_context(open_source(path))]
        if not isinstance(benchmark, Benchmark):
            benchmark = benchmark(members)
        entries = _entries(benchmark, members, source)
        counts = Counter(entry.split for entry in entries)
        info = replace(benchmark.info(), partial=_is_partial(benchmark, counts, partial))
        with atomic_dir(output) as folder:
            # The tools of these sets read pictures as stored, whatever EXIF data say.
            info, _ = fill(folder, info, entries, benchmark.read, benchmark.index_of, masks_as="stored")
    return PreparedBenchmark(benchmark, output, info)


def full_name(member: Member) -> str:
    """``/SOURCE/NAME``: the source's name belongs to it, since a source may be the very folder that is looked for."""
    return f"/{member.source.resolve().name}/{member.name}"


def read_splits(members: Sequence[Member], files: dict[str, str], advice: str) -> dict[str, str]:
    """Return name -> split by the lists of some benchmarks among ``members``, one name a line.

    Args:
        members: all files of the sources.
        files: how the path of each split's list ends.
        advice: what to give, for the message about a missing list.

    Raises:
        UserError: a list is missing, is there twice, or is no text.
    """
    splits: dict[str, str] = {}
    for split, ending in files.items():
        found = [member for member in members if full_name(member).endswith(f"/{ending}")]
        if not found:
            raise UserError(f"The list {ending} is in none of the sources; {advice}.")
        if len(found) > 1:
            raise UserError(f"The list {ending} is there twice, {found[0]} and {found[1]}; give it once.")
        try:
            splits |= dict.fromkeys(found[0].read_bytes().decode().split(), split)
        except UnicodeDecodeError:
            raise UserError(f"The list {found[0]} is no text; get a whole copy.") from None
    return splits


def _entries(benchmark: Benchmark, members: Sequence[Member], source: Sequence[Path]) -> list[Entry]:
    """Pair pictures and labels, ordered by split and name."""
    found: dict[tuple[str, str], dict[str, Member]] = {}
    for part in benchmark.parts(members):
        pair = found.setdefault((part.split, part.name), {})
        if part.kind in pair:
            raise UserError(f"{pair[part.kind]} and {part.member} are the same {part.kind}; give it once.")
        pair[part.kind] = part.member
    kinds = Counter(kind for pair in found.values() for kind in pair)
    if not kinds["image"] or not kinds["label"]:
        missing = "pictures" if not kinds["image"] else "labels"
        shown = ", ".join(member.name for member in members[:3]) or "nothing"
        raise UserError(
            f"{', '.join(map(str, source))}: no {missing} of {benchmark.title} are there; expected "
            f"{benchmark.archives} with {benchmark.layout}, found {shown}{' and so on' if len(members) > 3 else ''}."
        )
    lonely = [pair["label"] for pair in found.values() if "image" not in pair]
    bare = [pair["image"] for (split, _), pair in found.items() if "label" not in pair and split != "test"]
    for files, kind, other in ((lonely, "label", "picture"), (bare, "picture", "label")):
        if files:
            raise UserError(f"The {kind} {files[0]} has no {other} ({len(files)} such); get the whole archives.")
    keys = sorted(found, key=lambda key: (SPLITS.index(key[0]), key[1]))
    return [Entry(*key, found[key]["image"], found[key].get("label")) for key in keys]


def _is_partial(benchmark: Benchmark, counts: dict[str, int], allowed: bool) -> bool:
    """Tell whether there are fewer pictures than officially.

    Raises:
        UserError: there are and that is not allowed, or there are more.
    """
    lacking = False
    for split, official in benchmark.counts.items():
        count = counts.get(split, 0)
        if count == official or (split == "test" and not count):
            continue
        if count > official or not allowed:
            advice = "take what is there with --partial" if count < official else "give the official archives alone"
            raise UserError(f"{benchmark.title} has {official} {split} pictures, the sources have {count}; {advice}.")
        lacking = True
    return lacking
