"""From what annotation tools export to a prepared folder: all that their formats have in common.

A format's file only parses: its function ``read`` makes an ``Export`` of the files of a folder or an archive, whose
pictures have their shapes drawn by :mod:`cssformer.prepare.shapes` when they are written.
"""

import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from cssformer.data.dataset import SPLITS, DatasetInfo, distinct_colours
from cssformer.data.files import Readable, is_picture
from cssformer.data.image_io import read_ids
from cssformer.data.picture_facts import notes as picture_notes
from cssformer.prepare.archives import Member, open_source
from cssformer.prepare.class_file import Colour
from cssformer.prepare.folder import Prepared
from cssformer.prepare.multilabel import IGNORED, bits_of
from cssformer.prepare.pairing import read_folders
from cssformer.prepare.shapes import ClassMap, Overlap, Shape, Size, draw
from cssformer.prepare.splits import draw_validation
from cssformer.prepare.writer import Drawing, Entry, Faults, MasksAs, fill, require_free, turned_notes
from cssformer.utils.atomic import atomic_dir
from cssformer.utils.errors import UserError

MOST_ANNOTATIONS = 4 << 30
"""Bytes of one annotation file; the largest official one, of COCO, has half a gigabyte."""
UNLABELED = "unlabeled pixels"
_SPLIT_WORD = re.compile(r"(?:^|[_\-. ])(train|val|test)(?:ing|id|idation)?(?:20\d\d)?(?=$|[_\-. ])", re.I)


@dataclass(frozen=True)
class Annotated:
    """One picture of an export.

    Attributes:
        image: its file.
        path: the path by which it is called, relative to the source.
        place: where its shapes stand, for messages.
        size: height and width, if the file tells them.
        shapes: its shapes for a height and width, or the class of each pixel; raises UserError.
        split: train, val or test; None if the export does not say.
    """

    image: Readable
    path: str
    place: str
    size: Size | None
    shapes: Callable[[Size], Iterable[Shape] | ClassMap]
    split: str | None


@dataclass(frozen=True)
class Export:
    """What an annotation tool wrote.

    Attributes:
        pictures: those that it annotates.
        classes: names of the classes, in the order of the file.
        sources: the annotation files.
        overlap: which of two shapes lies on top.
        unlabeled: what pixels without a shape are.
        colours: of classes, where the file gives them.
        ignored: names that mean no class.
        notes: what is worth telling.
    """

    pictures: Sequence[Annotated]
    classes: Sequence[str]
    sources: Sequence[Member]
    overlap: Overlap = "smaller"
    unlabeled: Literal["background", "ignore"] = "background"
    colours: dict[str, Colour] = field(default_factory=dict)
    ignored: Sequence[str] = ()
    notes: Sequence[str] = ()


class Pictures:
    """The pictures among files, found by what annotations call them."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._by_name: dict[str, list[Member]] = defaultdict(list)
        for member in members:
            if is_picture(path := Path(member.name)):
                for name in {path.name, path.stem}:
                    self._by_name[name].append(member)

    def find(self, name: str, beside: Member) -> Member:
        """The picture called ``name`` in the file ``beside``: of that path from there, or whose path ends most alike.

        The name may be without its suffix.

        Raises:
            UserError: there is none, or several are as much alike.
        """
        path = str(name).replace("\\", "/")
        folder = posixpath.dirname(beside.name)
        from_there = posixpath.normpath(posixpath.join(folder, path))
        wanted = [part for part in path.split("/") if part not in ("", ".", "..")]
        there = self._by_name.get(wanted[-1], []) if wanted else []
        best = [each for each in there if each.source == beside.source and each.name == from_there]
        if not best and there:
            # Of as many of the last folders, then of the split that the annotation file names, then beside it.
            splits = set(split_words(beside.name))
            ranks = [
                (_common(each, wanted), bool(splits & set(split_words(str(each)))), each.source == beside.source)
                for each in there
            ]
            best = [each for each, rank in zip(there, ranks, strict=True) if rank == max(ranks)]
        if not best:
            raise UserError(f"{beside} names the picture {name}, which is not there; give its folder as a source too.")
        if len(best) > 1:
            raise UserError(f"{beside} names the picture {name}, which may be {best[0]} or {best[1]}; leave one there.")
        return best[0]


def _common(member: Member, wanted: Sequence[str]) -> int:
    """How many of the last parts of the paths are the same, the name aside."""
    parts = (member.source.name, *member.name.split("/"))
    number = 1
    while number < min(len(parts), len(wanted)) and parts[-1 - number] == wanted[-1 - number]:
        number += 1
    return number


def split_words(path: str) -> list[str]:
    """The splits that the names of a file and its folders speak of: train, val, test."""
    return [found.lower() for part in path.split("/") for found in _SPLIT_WORD.findall(part)]


def read_json(member: Member, made_of: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """What a JSON file holds; ``made_of`` gives what takes the place of each of its objects.

    Raises:
        UserError: it cannot be read or is not whole JSON.
    """
    try:
        return json.loads(member.read_bytes(MOST_ANNOTATIONS), object_hook=made_of)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{member} is not whole JSON: {str(error).rstrip('.')}.") from None


def read_text(member: Member) -> str:
    """What a text file holds.

    Raises:
        UserError: it cannot be read or is not UTF-8.
    """
    try:
        return member.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{member} is no text: byte {error.start} is not UTF-8.") from None


@contextmanager
def within(place: object) -> Iterator[None]:
    """What is missing or of another kind in the data of ``place`` is one sentence."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{place} has no {error.args[0]!r}.") from None
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(f"{place} cannot be understood: {str(error).rstrip('.')}.") from None


def prepare_export(
    read: Callable[[Sequence[Member], Faults], Export],
    source: Sequence[Path],
    output: Path,
    *,
    map: list[str] | None = None,
    ignore: list[str] | None = None,
    unlabeled: Literal["background", "ignore"] | None = None,
    overlap: Overlap | None = None,
    val_share: float = 0.1,
    seed: int = 0,
    skip_broken: bool = False,
    masks_as: MasksAs = "shown",
    shown: list[int] | None = None,
) -> Prepared:
    """Make a prepared folder of what an annotation tool exported.

    Args:
        read: That of the format.
        source: The folders or archives of the export and of its pictures.
        output: The prepared folder to be made; it must not exist, or be empty.
        map: What classes become, as in car,truck=vehicle; car= leaves its shapes out.
        ignore: Names of classes, or unlabeled, whose pixels are ignored.
        unlabeled: Whether pixels without a shape are a class, background, or ignored; by default background, in
            panoptic labels ignored.
        overlap: Which of two shapes lies on top: the smaller, the first or the last in the file, or in CVAT's z_order;
            by default the last where the tool stacks them, else the smaller. With keep none does: a pixel is of several
            classes (multi-label), and what has no shape is of none.
        val_share: Share of the pictures that validation gets, where the export names no validation split.
        seed: Of the draw of the validation split.
        skip_broken: Leave out pictures that are missing, broken, or have broken shapes, instead of refusing them.
        masks_as: Whether shapes on pictures with an EXIF orientation lie on the pictures as viewers show them or as
            files store them; the size that the export tells decides where it can.
        shown: Channels that overlays and sheets show as red, green and blue, counted from 0, or one in grey; by default
            the first three.

    Raises:
        UserError: anything about the source that is not as above; nothing is written then.
    """
    require_free(output)
    faults = Faults(skip_broken)
    with ExitStack() as opened:
        members = [member for path in source for member in opened.enter_context(open_source(path))]
        # Archives hold what folders hide: macOS adds a file of its own to each.
        members = [member for member in members if not re.search(r"(^|/)(\.|__MACOSX/)", member.name)]
        export = read(_without_predictions(members), faults)
        if not export.pictures:
            raise UserError(faults.sentences[0] if faults.sentences else f"{source[0]} has no annotated pictures.")
        first: dict[Readable, Annotated] = {}
        for picture in export.pictures:
            if (other := first.setdefault(picture.image, picture)) is not picture:
                raise UserError(f"{other.place} and {picture.place} both annotate {picture.path}; leave one there.")
        labels = _Labels(export, map or [], ignore or [], unlabeled, overlap)
        chosen, how = _split(export.pictures, val_share, seed)
        entries = [
            Entry(split, _flat_name(picture.path), picture.image, labels.drawing(picture)) for picture, split in chosen
        ]
        with atomic_dir(output) as folder:
            info, found = fill(
                folder, labels.info, entries, read_ids, labels.index_of, masks_as, faults, export.sources, shown=shown
            )
            if lacking := {"train", "val"} - info.counts.keys():
                reason = faults.sentences[0] if faults.sentences else "give more pictures."
                raise UserError(f"There are no pictures for the {max(lacking)} split: {reason}")
            if not labels.seen:
                raise UserError(f"No picture of {source[0]} has a shape; export polygons or masks, not boxes alone.")
            written = [(entry, each) for entry, each in zip(entries, found, strict=True) if each is not None]
            notes = turned_notes([each for _, each in written], masks_as)
    notes = [*export.notes, *notes, *picture_notes({entry.image: each.picture for entry, each in written})]
    notes += labels.notes()
    if faults.sentences:
        notes.append(f"{len(faults.sentences)} broken ones were left out; the first: {faults.sentences[0]}")
    return Prepared(output, info, (), how, tuple(notes))


class _Labels:
    """How the shapes of an export become labels, and which classes and pictures turn out to have none.

    Args:
        export: what the annotation tool wrote.
        map, ignore, unlabeled, overlap: of :func:`prepare_export`.

    Attributes:
        info: the description of the data set, without counts and sources.
        index_of: class index, or bit field, of each value that is drawn; None where it is ignored.

    Raises:
        UserError: the options name what the export has not, or leave no class.
    """

    def __init__(
        self,
        export: Export,
        map: Sequence[str],
        ignore: Sequence[str],
        unlabeled: Literal["background", "ignore"] | None,
        overlap: Overlap | None,
    ) -> None:
        self.export, self.overlap = export, overlap or export.overlap
        self.bare: list[str] = []
        self.seen: set[str] = set()
        several = self.overlap == "keep"
        if several and unlabeled == "ignore":
            raise UserError(
                "Where overlapping shapes are kept, pixels without one are of no class; leave out unlabeled."
            )
        bare_pixels = "ignore" if several else unlabeled or export.unlabeled
        self.info, self.value_of, self.index_of = _classes(export, map, ignore, bare_pixels)
        self.empty = len(export.classes)
        if several:
            indices = {name: self.index_of[value] for name, value in self.value_of.items()}
            self.value_of = {name: IGNORED if index is None else 1 << index for name, index in indices.items()}
            mapping = {name: index for name, index in self.info.mapping.items() if name != UNLABELED}
            self.info = replace(self.info, ignore=IGNORED, mapping=mapping, multilabel=True)
            self.index_of, self.empty = bits_of(len(self.info.classes)), 0

    def drawing(self, picture: Annotated) -> Drawing:
        """The label of a picture, drawn when it is written."""

        def draw_values(size: Size) -> NDArray[Any]:
            found, names = picture.shapes(size), set[str]()
            if isinstance(found, ClassMap):
                names.update(found.names.values())
                values = found.draw(self.value_of, self.empty)
            else:
                values = draw(_noted(found, names), self.value_of, size, self.empty, self.overlap)
            self.seen.update(names)
            if not names:
                self.bare.append(picture.path)
            return values

        return Drawing(picture.place, picture.size, draw_values)

    def notes(self) -> Iterator[str]:
        """What is worth telling once all pictures are written."""
        on_top = {"smaller": "that of fewer pixels", "first": "the first one drawn", "last": "the last one drawn"}
        if self.overlap == "keep":
            yield "A pixel is of all classes whose shapes it lies in."
        else:
            yield f"Of shapes that overlap, {on_top[self.overlap]} lies on top."
        if self.bare:
            yield f"{len(self.bare)} pictures have no shape, {min(self.bare)} the first."
        if absent := [name for name in self.export.classes if name not in {*self.seen, *self.export.ignored}]:
            yield f"No shape is of the class {', '.join(absent)}."


def _noted(shapes: Iterable[Shape], names: set[str]) -> Iterator[Shape]:
    """The shapes one by one, for many masks would fill the memory; their names are added to ``names``."""
    for shape in shapes:
        names.add(shape.name)
        yield shape


def _without_predictions(members: Sequence[Member]) -> list[Member]:
    """Without what ``cssformer predict`` draws beside its annotations, which is called as the pictures are."""
    drawn = {
        (each.source, each.name.removesuffix("legend.png") + folder)
        for each in members
        if each.name.rpartition("/")[2] == "legend.png"
        for folder in ("labels/", "overlay/", "confidence/")
    }
    return [
        each
        for each in members
        if not is_picture(Path(each.name))
        or not any(each.source == source and each.name.startswith(folder) for source, folder in drawn)
    ]


def _classes(
    export: Export, map: Sequence[str], ignore: Sequence[str], unlabeled: Literal["background", "ignore"]
) -> tuple[DatasetInfo, dict[str, int], dict[int, int | None]]:
    """The description of the data set, the value that each of the export's classes is drawn with, and their meaning."""
    known, ignore = list(export.classes), [*ignore, *(name for name in export.ignored if name in export.classes)]
    renamed = {name: name for name in known}
    for rule in map:
        names, equals, new = rule.rpartition("=")
        for name in [names] if names in renamed else [part.strip() for part in names.split(",")]:
            if not equals:
                raise UserError(f"{rule!r} is no rule of the map; give OLD=NEW, or OLD,OTHER=NEW.")
            if name not in renamed:
                raise UserError(f"{name!r} in {rule!r} is no class of the export, which has {', '.join(known)}.")
            renamed[name] = new.strip()
    for name in ignore:
        if name not in renamed and name not in renamed.values() and name != "unlabeled":
            raise UserError(f"{name!r} cannot be ignored: the classes are {', '.join(known)}, and unlabeled pixels.")
    # What has no label may have a class of its own name in the export.
    ignored = unlabeled == "ignore" or ("unlabeled" in ignore and "unlabeled" not in renamed)
    background = None if ignored else "background"
    kept = [new for old, new in renamed.items() if new and old not in ignore and new not in ignore]
    classes = list(dict.fromkeys(([background] if background else []) + kept))
    if len(classes) < 1 + bool(background):
        raise UserError("Every class is ignored or left out; no class is left.")
    index = {name: number for number, name in enumerate(classes)}
    target = {old: None if old in ignore else index.get(new) for old, new in renamed.items() if new}
    value_of = {name: number for number, name in enumerate(known) if name in target}
    empty = index[background] if background else None
    own = {renamed[name]: colour for name, colour in reversed(export.colours.items())} | {"background": (0, 0, 0)}
    palette = [own.get(name, colour) for name, colour in zip(classes, distinct_colours(len(classes)), strict=True)]
    mapping = {UNLABELED: empty, **target}
    info = DatasetInfo(tuple(classes), tuple(palette), 255 if len(classes) <= 255 else 65535, mapping)
    return info, value_of, {len(known): empty} | {value: target[name] for name, value in value_of.items()}


def _split(pictures: Sequence[Annotated], val_share: float, seed: int) -> tuple[list[tuple[Annotated, str]], str]:
    """Give each picture its split, by the export or a draw; the second value says which."""
    if not 0 < val_share < 1:
        raise UserError(f"The share of the validation split must lie between 0 and 1; it is {val_share}.")
    without = [picture for picture in pictures if picture.split is None]
    if 0 < len(without) < len(pictures):
        raise UserError(f"{without[0].place} is of no split, train, val or test, but other pictures are.")
    chosen = [(picture, picture.split or "train") for picture in pictures]
    how = "" if without else "by the export"
    if not any(split == "val" for _, split in chosen):
        labelled = [(posixpath.dirname(picture.path), picture) for picture, split in chosen if split == "train"]
        drawn, groups = draw_validation(labelled, val_share, seed)
        chosen = [(picture, "val" if picture in drawn else split) for picture, split in chosen]
        how = f"{how + ', ' if how else ''}{val_share:.0%} drawn for validation, {groups}"
    chosen.sort(key=lambda pair: (SPLITS.index(pair[1]), pair[0].path))
    return chosen, how


def _flat_name(path: str) -> str:
    *parts, name = path.split("/")
    folders, _, _ = read_folders(parts)
    return "__".join((*folders, name.rpartition(".")[0] or name))
