"""What a benchmark is, and how any of them becomes a prepared folder."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cssformer.data.dataset import SPLITS, DatasetInfo
from cssformer.data.image_io import read_ids
from cssformer.prepare.archives import Member, open_source
from cssformer.prepare.masks import Reader
from cssformer.prepare.writer import CHECKSUMS, Entry, fill
from cssformer.utils.atomic import resumable_dir, unfinished
from cssformer.utils.errors import UserError


class Part(NamedTuple):
    """One file's part in a benchmark: the picture or the label called ``name`` of a split."""

    split: str
    name: str
    kind: Literal["image", "label"]
    member: Member


@dataclass(frozen=True)
class Benchmark:
    """An official data set."""

    title: str
    homepage: str
    licence: str
    #: What to give as sources, as the homepage names it.
    archives: str
    #: Where pictures and labels stand in them, for the message about a wrong archive.
    layout: str
    #: Pictures per split; a test split may be left out.
    counts: dict[str, int]
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    #: Value in the official labels -> class index, None where it is ignored. Any other value is an error.
    index_of: dict[int, int | None]
    #: Finds pictures and labels among all files of the sources; test pictures may be without labels.
    parts: Callable[[Sequence[Member]], Iterable[Part]]
    #: Decodes a label's bytes to its values (H, W).
    read: Reader = read_ids

    def info(self) -> DatasetInfo:
        """The description of the prepared data set, without counts and sources."""
        ignore = 255 if len(self.classes) <= 255 else 65535
        mapping = {str(value): index for value, index in sorted(self.index_of.items())}
        return DatasetInfo(self.classes, self.colours, ignore, mapping)


@dataclass(frozen=True)
class PreparedBenchmark:
    """What was written, or found to be there already."""

    benchmark: Benchmark
    output: Path
    info: DatasetInfo
    already: bool

    def table(self) -> list[tuple[str, str]]:
        """Rows of a fact and its value."""
        rows = [("already prepared" if self.already else "written", str(self.output)), ("data", self.benchmark.title)]
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
            "already": self.already,
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

    An interrupted run leaves ``output.partial`` and is continued by the next one with the same arguments. A complete
    output of the same sources is left as it is.

    Args:
        benchmark: which data set; where its labels come in several forms, a function that tells it by the files.
        source: the official archives as downloaded (.zip, .tar, .tar.gz), or folders of what is in them.
        output: the prepared folder to be made.
        partial: accept fewer pictures than officially; ``dataset.yaml`` says so then.

    Raises:
        UserError: a source is missing, damaged, unsafe, or of another data set; pictures or labels are missing; the
            counts are not the official ones; ``output`` is something else. Nothing is left behind then.
    """
    own = output.resolve(), unfinished(output)
    with ExitStack() as opened:
        members: list[Member] = []
        for path in source:
            root, found = path.resolve(), opened.enter_context(open_source(path))
            # The output may lie in the source.
            inside = [place for place in own if root in place.parents]
            members += [each for each in found if not any((root / each.name).is_relative_to(place) for place in inside)]
        if not isinstance(benchmark, Benchmark):
            benchmark = benchmark(members)
        entries = _entries(benchmark, members, source)
        counts = {split: count for split in SPLITS if (count := sum(entry.split == split for entry in entries))}
        info = replace(
            benchmark.info(),
            counts=counts,
            sources=_sizes(entries),
            partial=_is_partial(benchmark, counts, partial),
        )
        if _is_begun(output, info, "prepared"):
            return PreparedBenchmark(benchmark, output, DatasetInfo.load(output), already=True)
        _is_begun(unfinished(output), info, "begun")
        with resumable_dir(output) as folder:
            info.save(folder)
            # The tools of these sets read pictures as stored, whatever EXIF data say.
            info, _ = fill(folder, info, entries, benchmark.read, benchmark.index_of, masks_as="stored")
    return PreparedBenchmark(benchmark, output, info, already=False)


def _is_begun(folder: Path, info: DatasetInfo, how: str) -> bool:
    """Tell whether ``folder`` holds data of this description.

    Raises:
        UserError: it holds anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / "dataset.yaml").is_file():
        raise UserError(f"{folder} exists already; give another output or remove it.")
    if _identity(DatasetInfo.load(folder)) != _identity(info):
        raise UserError(f"{folder} was {how} from other sources; give another output or remove it.")
    return True


def _sizes(entries: Sequence[Entry]) -> dict[str, str]:
    """The size of each source: of an archive itself, of what is taken from a folder."""
    taken = [file for entry in entries for file in (entry.image, entry.label) if isinstance(file, Member)]
    sizes = {}
    for path in dict.fromkeys(member.source for member in taken):
        name = path.resolve().name
        parts = [member.size for member in taken if member.source == path]
        size = f"{sum(parts)} bytes in {len(parts)} files" if path.is_dir() else f"{path.stat().st_size} bytes"
        sizes[str(path) if name in sizes else name] = size
    return sizes


def _identity(info: DatasetInfo) -> DatasetInfo:
    """What two runs must share: all but the checksums, which are known at the end alone."""
    return replace(info, sources={name: size for name, size in info.sources.items() if name != CHECKSUMS})


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
