"""From what annotation tools export to a prepared folder.

A format's file only parses: its function ``read`` makes an ``Export`` of the files of a folder or an archive, whose
pictures have their shapes drawn by :mod:`cssformer.prepare.shapes` when they are written.
"""

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from cssformer.data.dataset import SPLITS
from cssformer.data.dataset_info import DatasetInfo, distinct_colours, ignored_value
from cssformer.data.files import Readable, is_picture
from cssformer.data.image_io import read_ids
from cssformer.data.picture_facts import notes as picture_notes
from cssformer.prepare.annotated import Annotated, Export
from cssformer.prepare.archives import Member, open_source
from cssformer.prepare.folder import Prepared
from cssformer.prepare.multilabel import IGNORED, bits_of
from cssformer.prepare.pairing import read_folders
from cssformer.prepare.shapes import ClassMap, Overlap, Shape, Size, draw
from cssformer.prepare.splits import draw_validation
from cssformer.prepare.writer import Drawing, Entry, Faults, MasksAs, fill, require_free, turned_notes
from cssformer.utils.atomic import atomic_dir
from cssformer.utils.console import counted
from cssformer.utils.errors import UserError
from cssformer.utils.options import Natural, Share

UNLABELED = "unlabeled pixels"


def prepare_export(
    read: Callable[[Sequence[Member], Faults], Export],
    source: Sequence[Path],
    output: Path,
    *,
    map: list[str] | None = None,
    order: list[str] | None = None,
    ignore: list[str] | None = None,
    unlabeled: Literal["background", "ignore"] | None = None,
    overlap: Overlap | None = None,
    val_share: Share = 0.1,
    seed: Natural = 0,
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
        order: Names of all classes in their order, so that they are those of other data or of a model, also where this
            export has no shape of some; background among them unless unlabeled pixels are ignored.
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
        labels = _Labels(export, map or [], order or [], ignore or [], unlabeled, overlap)
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
        notes.append(f"{counted(len(faults.sentences), 'broken one')} left out; the first: {faults.sentences[0]}")
    return Prepared(output, info, (), how, tuple(notes))


class _Labels:
    """How the shapes of an export become labels, and which classes and pictures turn out to have none.

    Args:
        export: what the annotation tool wrote.
        map, order, ignore, unlabeled, overlap: of :func:`prepare_export`.

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
        order: Sequence[str],
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
        self.info, self.value_of, self.index_of = _classes(export, map, order, ignore, bare_pixels)
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
            yield f"{counted(len(self.bare), 'picture')} without a shape, {min(self.bare)} the first."
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
    export: Export,
    map: Sequence[str],
    order: Sequence[str],
    ignore: Sequence[str],
    unlabeled: Literal["background", "ignore"],
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
    if order:
        if other := [name for name in classes if name not in order]:
            raise UserError(f"The order lacks {', '.join(other)}; add every class of the data, or rename some by map.")
        classes = list(dict.fromkeys(order))
    index = {name: number for number, name in enumerate(classes)}
    target = {old: None if old in ignore else index.get(new) for old, new in renamed.items() if new}
    value_of = {name: number for number, name in enumerate(known) if name in target}
    empty = index[background] if background else None
    own = {renamed[name]: colour for name, colour in reversed(export.colours.items())} | {"background": (0, 0, 0)}
    palette = [own.get(name, colour) for name, colour in zip(classes, distinct_colours(len(classes)), strict=True)]
    mapping = {UNLABELED: empty, **target}
    info = DatasetInfo(tuple(classes), tuple(palette), ignored_value(len(classes)), mapping)
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
        drawn, drawn_how = draw_validation(labelled, val_share, seed)
        chosen = [(picture, "val" if picture in drawn else split) for picture, split in chosen]
        how = f"{how + ', ' if how else ''}{drawn_how}"
    chosen.sort(key=lambda pair: (SPLITS.index(pair[1]), pair[0].path))
    return chosen, how


def _flat_name(path: str) -> str:
    *parts, name = path.split("/")
    folders, _, _ = read_folders(parts)
    return "__".join((*folders, name.rpartition(".")[0] or name))
