"""The pictures and videos to predict, and where what is found of each is written."""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from glob import glob, has_magic
from os.path import abspath, commonpath, realpath, relpath
from pathlib import Path

from cssformer.data.dataset import require_outside_splits
from cssformer.data.files import PICTURE_SUFFIXES, files_under, is_picture, require_file
from cssformer.utils.errors import UserError

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
LABELS, OVERLAY, CONFIDENCE, PROBABILITIES = "labels", "overlay", "confidence", "probabilities"
LEGEND = "legend.png"


@dataclass(frozen=True)
class Source:
    """A file to predict, and its place below the output folder, without suffix but where others differ in it alone."""

    path: Path
    place: Path

    @property
    def keeps_suffix(self) -> bool:
        return self.path.suffix != "" and self.place.name == self.path.name

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def find_sources(inputs: Sequence[Path], output: Path) -> tuple[list[Source], Counter[str]]:
    """All files to predict, in order, none of them written by an earlier prediction, and others by their suffix.

    A file is placed by its name alone, what a folder holds by its way from there; where two of different folders would
    get one place, all are placed by their ways from the folder that they share. Files of one folder that differ in
    their suffix alone, as ``a.jpg`` and ``a.png``, keep it.

    Args:
        inputs: files, folders, and patterns such as ``photos/*.jpg`` and ``**/*.png``.
        output: the folder to write into.

    Raises:
        UserError: there are none, one is missing or no ordinary file, two have one place, or the output lies in
            prepared data.
    """
    if not inputs:
        raise UserError("No picture, folder or video is named; give one at least.")
    require_outside_splits(output)
    written = {output.resolve() / name for name in (LABELS, OVERLAY, CONFIDENCE, PROBABILITIES, LEGEND)}
    sources: list[Source] = []
    left_out: Counter[str] = Counter()
    for given in _matching(inputs):
        if given.is_dir():
            present = inputs_under(given, written)
            files = [path for path in present if is_picture(path) or path.suffix.lower() in VIDEOS]
            if not files:
                known = " ".join((*PICTURE_SUFFIXES, *VIDEOS))
                there = f"; it has {', '.join(sorted(set(map(_kind, present))))}" if present else ""
                raise UserError(f"The folder {given} holds no pictures or videos ({known}){there}.")
            left_out.update(_kind(path) for path in set(present) - set(files))
            sources += [Source(path, path.relative_to(given).with_suffix("")) for path in files]
        elif given.exists():
            require_file(given)
            sources.append(Source(given, Path(given.stem)))
        else:
            raise UserError(f"There is no file or folder {given}.")
    sources = list(dict.fromkeys(sources))
    if any(one.path.parent != two.path.parent for one, two in _of_one_place(sources)):
        # On Windows those of two drives share none.
        with suppress(ValueError):
            paths = dict.fromkeys(source.path for source in sources)
            shared = commonpath([abspath(path.parent) for path in paths])
            sources = [Source(path, Path(relpath(path, shared)).with_suffix("")) for path in paths]
    alike = {source for two in _of_one_place(sources) for source in two}
    sources = [replace(each, place=each.place.with_name(each.path.name)) if each in alike else each for each in sources]
    for one, two in _of_one_place(sources):
        raise UserError(
            f"{one.path} and {two.path} would both be written as {two.place}; predict them into two folders."
        )
    return sources, left_out


def _of_one_place(sources: Sequence[Source]) -> Iterator[tuple[Source, Source]]:
    """Files that would be written as one: the first, and each other."""
    places: dict[tuple[Path, bool], Source] = {}
    for source in sources:
        other = places.setdefault((source.place, source.is_video), source)
        if other.path != source.path:
            yield other, source


def _kind(path: Path) -> str:
    return path.suffix.lower() or "without suffix"


def is_there(source: Source, output: Path, wanted: Sequence[tuple[str, str]]) -> bool:
    """Whether all files of a picture or video are written; what is there is whole, or empty after a power cut."""
    kinds = [(OVERLAY, ".mp4")] if source.is_video else wanted
    places = [(output / kind / source.place, suffix) for kind, suffix in kinds]
    alike = [[named(place, each) for each in (suffix, ".tif")] for place, suffix in places]
    return all(any(path.is_file() and path.stat().st_size for path in paths) for paths in alike)


def inputs_under(folder: Path, but: Set[Path] = frozenset()) -> list[Path]:
    """All files below a folder, but for some files and folders (resolved) and the labels of prepared data.

    Raises:
        UserError: a folder cannot be read.
    """
    # Which, unlike Path.resolve, takes links to themselves.
    found = [(path, Path(realpath(path))) for path in files_under(folder)]
    described = [folder.resolve().parent / "dataset.yaml", *(real for _, real in found)]
    roots = [path.parent for path in described if path.name == "dataset.yaml" and path.is_file()]
    masks = {labels.resolve() for root in roots for labels in root.glob("*/labels")} - {folder.resolve()} | but
    return [path for path, real in found if masks.isdisjoint((real, *real.parents))]


def _matching(inputs: Sequence[Path]) -> Iterator[Path]:
    """Patterns that no shell has replaced by what they match, as Windows' do not; a file may be named like one."""
    for given in inputs:
        found = sorted(glob(str(given), recursive=True)) if has_magic(str(given)) and not given.exists() else []
        yield from (Path(path) for path in found) if found else (given,)


def named(place: Path, suffix: str) -> Path:
    """The place with the suffix added: ``with_suffix`` would cut names such as ``frame.001``."""
    return place.with_name(place.name + suffix)
