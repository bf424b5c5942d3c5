"""From pictures and masks as people have them to a prepared folder."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from cssformer.data.dataset import SPLITS
from cssformer.data.dataset_info import DatasetInfo, distinct_colours
from cssformer.data.image_io import read_ids
from cssformer.data.picture_facts import notes as picture_notes
from cssformer.prepare.class_file import read_class_file
from cssformer.prepare.masks import LabelMapping, Transparent, meaning
from cssformer.prepare.multilabel import IGNORED, MasksOf, bits_of, pair_by_class, with_bit_fields
from cssformer.prepare.pairing import Pair, Pairing, find_pairs
from cssformer.prepare.splits import draw_validation
from cssformer.prepare.survey import MaskStats, survey
from cssformer.prepare.writer import Entry, MasksAs, fill, left_out, require_free, turned_notes
from cssformer.utils.atomic import atomic_dir
from cssformer.utils.console import counted
from cssformer.utils.errors import UserError
from cssformer.utils.options import Natural, Share
from cssformer.utils.parallel import in_parallel
from cssformer.utils.text import listed

# So many values are named in one sentence.
_SHOWN = 30


@dataclass(frozen=True)
class Prepared:
    """What was written, and how the source was understood."""

    output: Path
    info: DatasetInfo
    suffixes: tuple[tuple[str, str], ...]
    split: str
    notes: tuple[str, ...]

    def table(self) -> list[tuple[str, str]]:
        """Rows of a fact and its value."""
        pairs = ", ".join(f"*{image} + *{label}" for image, label in self.suffixes)
        rows = [("written", str(self.output)), *([("paired", pairs)] if pairs else []), ("split", self.split)]
        rows += [(split, counted(count, "picture")) for split, count in self.info.counts.items()]
        for index, name in enumerate(self.info.classes):
            raw = [value for value, target in self.info.mapping.items() if target == index]
            origin = f"from {', '.join(raw)}" if raw else "not in these labels"
            rows.append((f"class {index}", f"{name} ({origin})"))
        ignored = [value for value, target in self.info.mapping.items() if target is None]
        rows.append(("ignored", ", ".join(ignored) or "nothing"))
        return rows + [("note", note) for note in self.notes]

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "output": str(self.output),
            "counts": self.info.counts,
            "classes": list(self.info.classes),
            "mapping": self.info.mapping,
            "suffixes": [list(pair) for pair in self.suffixes],
            "split": self.split,
            "notes": list(self.notes),
        }


def prepare_folder(
    source: list[Path],
    output: Path,
    *,
    image_suffix: str | None = None,
    label_suffix: str | None = None,
    classes: list[str] | None = None,
    class_file: Path | None = None,
    ignore: list[str] | None = None,
    train_list: Path | None = None,
    val_list: Path | None = None,
    test_list: Path | None = None,
    val_share: Share = 0.1,
    seed: Natural = 0,
    skip_unpaired: bool = False,
    masks_as: MasksAs = "shown",
    transparent: Transparent | None = None,
    as_stored: bool = False,
    shown: list[int] | None = None,
    multilabel: bool = False,
) -> Prepared:
    """Make a prepared folder of pictures and masks.

    A picture and its mask stand in the same folder, words like ``images`` or ``masks`` aside, and have the same name
    up to a suffix. Masks may hold ids (8 or 16 bits), palette indices, 0 and 255, or colours. Folders named
    train, val or test decide the split; without any, whole folders are drawn for validation, so that neighbouring
    frames of a video stay together.

    Args:
        source: The folder of pictures and masks, or that of the pictures and that of the masks.
        output: The prepared folder to be made; it must not exist, or be empty.
        image_suffix: How pictures' names end, as in _image.jpg; by default found by itself.
        label_suffix: How masks' names end, as in _label.png; by default found by itself.
        classes: Names of the classes, in the order of their ids; colours are in the order of their R, G, B.
        class_file: A file of the classes: lines of NAME, ID NAME or R G B NAME, a table, JSON or YAML, or the list of
            CVAT or labelme. Lines of one name are one class.
        ignore: Ids, colours (R,G,B) or names that are no class; 255 (65535 in 16-bit masks) is ignored anyway.
        train_list: A file of the names of the training pictures, one a line.
        val_list: A file of the names of the validation pictures.
        test_list: A file of the names of the test pictures.
        val_share: Share of the pictures that validation gets, where the source names no validation split: of each class
            some, where the share allows, the rarest first, and none that training would lack.
        seed: Of the draw of the validation split.
        skip_unpaired: Leave out pictures without mask and masks without picture, instead of refusing them.
        masks_as: Whether masks of pictures with an EXIF orientation lie on the pictures as viewers show them or as
            files store them; the size of a mask decides where it can.
        transparent: What the transparent pixels of masks are: background, a class of its own and the first, or
            ignore; such masks are refused without it.
        as_stored: Take grey and RGB pictures too as the channels that their files store; by default they become RGB
            of 8 bits, and TIFFs of other channels alone are taken so.
        shown: Channels that overlays and sheets show as red, green and blue, counted from 0, or one in grey; by default
            the first three.
        multilabel: A pixel may be of several classes: the second source has a folder of masks for each, CLASS/NAME.png,
            which are 0 where the class is not; classes then chooses folders and their order. Or one-hot files, TIFFs or
            NumPy's .npy, whose bands are the classes.

    Raises:
        UserError: anything about the source that is not as above; nothing is written then.
    """
    require_free(output)
    if not 1 <= len(source) <= 2:
        raise UserError("Give one source folder, or two: that of the pictures and that of the masks.")
    if classes and class_file:
        raise UserError("Give the classes by name or by a class file, not both.")
    if not 0 < val_share < 1:
        raise UserError(f"The share of the validation split must lie between 0 and 1; it is {val_share}.")
    lines = read_class_file(class_file) if class_file else []
    names: tuple[str, ...] = ()
    masks_of: MasksOf = {}
    if multilabel:
        if len(source) == 1 or class_file:
            raise UserError("With multilabel give the folder of the pictures and that of the masks, and no class file.")
        names, pairing, masks_of = pair_by_class(source[0], source[1], classes, image_suffix, label_suffix)
    else:
        pairing = find_pairs(source[0], source[1] if len(source) == 2 else None, image_suffix, label_suffix)
    lists = {"train": train_list, "val": val_list, "test": test_list}
    entries, how = _split(pairing.pairs, lists)
    notes = []
    if not any(lists.values()):
        entries, note = _without_unpaired(entries, pairing, skip_unpaired)
        notes += note
    _require_masks(entries)

    told: Sequence[str]
    classes_of: dict[str, set[int]] = {}
    if multilabel:
        entries, told, classes_of = with_bit_fields(entries, masks_of, names, ignore or [], transparent)
        mapping: dict[str, int | None] = {f"{name}/": index for index, name in enumerate(names)}
        info = DatasetInfo(names, distinct_colours(len(names)), IGNORED, mapping, multilabel=True)
        how_read = read_ids, bits_of(len(names)), masks_as
    else:
        masks = [entry.label for entry in entries if isinstance(entry.label, Path)]
        surveys = in_parallel(survey, masks, "Reading masks")
        understood = meaning(surveys, lines, classes or [], ignore or [], transparent)
        _require_known_values(masks, surveys, understood)
        if len(understood.classes) == 1:
            notes.append("There is one class alone, so nothing to learn: what is not the object must be a class too.")
        held = dict(zip(masks, map(understood.classes_of, surveys), strict=True))
        classes_of = {
            entry.name: held[entry.label]
            for entry in entries
            if entry.split == "train" and isinstance(entry.label, Path)
        }
        info, told = understood.info(), understood.notes
        how_read = understood.read, understood.index_of, masks_as
    if not any(entry.split == "val" for entry in entries):
        folders = {pair.name: pair.folders for pair in pairing.pairs}
        entries, drawn, lacking = _with_validation(entries, folders, classes_of, val_share, seed)
        how = f"{how + ', ' if how else ''}{drawn}"
        if lacking:
            absent = listed([info.classes[index] for index in lacking[:_SHOWN]], len(lacking))
            notes.append(
                f"Classes without a validation picture, and so without a score: {absent}; give more pictures of each, "
                "a larger --val_share, or a --val_list."
            )
    with atomic_dir(output) as folder:
        info, found = fill(folder, info, entries, *how_read, as_stored=as_stored, shown=shown)
        written = [each for each in found if each is not None]
        notes += turned_notes(written, masks_as)
        if info.channels is not None:
            notes.append(f"The pictures have {info.channels}, taken as stored; dataset.yaml tells their means.")
    notes += picture_notes({entry.image: each.picture for entry, each in zip(entries, written, strict=True)})
    return Prepared(output, info, tuple(pairing.suffixes), how, (*notes, *told))


def _require_known_values(masks: Sequence[Path], surveys: Sequence[MaskStats], understood: LabelMapping) -> None:
    first: dict[int, Path] = {}
    for path, found in zip(masks, surveys, strict=True):
        for value in found.values(understood.as_colours) - understood.index_of.keys():
            first.setdefault(value, path)
    if first:
        kind = "colour" if understood.as_colours else "id"
        unknown = sorted(first)
        shown = [understood.written(value).replace(" ", ",") for value in unknown[:_SHOWN]]
        more = f" (and {len(unknown) - _SHOWN} more)" if len(unknown) > _SHOWN else ""
        are = f"{kind} that is" if len(unknown) == 1 else f"{kind}s that are"
        raise UserError(
            f"The masks have {len(unknown)} {are} no class, {shown[0]} in {first[unknown[0]]} for one; give each a "
            f"line in the class file, or add --ignore {' '.join(shown)}{more}."
        )


def _without_unpaired(entries: list[Entry], pairing: Pairing, skip: bool) -> tuple[list[Entry], list[str]]:
    bare = [entry for entry in entries if entry.label is None and entry.split != "test"]
    lonely = pairing.lonely_masks
    if skip:
        notes = left_out([entry.image for entry in bare], "picture", "mask") + left_out(lonely, "mask", "picture")
        return [entry for entry in entries if entry.label is not None or entry.split == "test"], notes
    if bare:
        raise UserError(
            f"The picture {bare[0].image} has no mask ({len(bare)} such pictures); add masks, or leave them out "
            "with --skip_unpaired true."
        )
    if lonely:
        raise UserError(
            f"The mask {lonely[0]} has no picture ({len(lonely)} such masks); add pictures, or leave them out "
            "with --skip_unpaired true."
        )
    return entries, []


def _require_masks(entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.label is None and entry.split != "test":
            raise UserError(f"The picture {entry.image} has no mask.")
    with_masks = {entry.image for entry in entries if entry.split == "test" and entry.label is not None}
    for entry in entries:
        if entry.split == "test" and entry.label is None and with_masks:
            raise UserError(f"The test picture {entry.image} has no mask, but others have; give all or none.")
    if not any(entry.split == "train" for entry in entries):
        raise UserError("There are no pictures for the train split.")


def _with_validation(
    entries: Sequence[Entry],
    folders: dict[str, tuple[str, ...]],
    classes_of: dict[str, set[int]],
    val_share: float,
    seed: int,
) -> tuple[list[Entry], str, list[int]]:
    """Draw some of the training pictures; also a word on how, and the classes that training alone has.

    Args:
        entries: without validation pictures.
        folders: in which each name lies.
        classes_of: the classes of each training picture's mask, by its name; empty where they are not known.
        val_share: of the training pictures.
        seed: of the draw.
    """
    training = [(folders[entry.name], entry.name) for entry in entries if entry.split == "train"]
    drawn, how = draw_validation(training, val_share, seed, classes_of)
    seen = {index for name in drawn for index in classes_of.get(name, ())}
    lacking = sorted({index for held in classes_of.values() for index in held} - seen)
    chosen = [
        replace(entry, split="val") if entry.split == "train" and entry.name in drawn else entry for entry in entries
    ]
    return _in_order(chosen), how, lacking


def _in_order(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (SPLITS.index(entry.split), entry.name))


def _split(pairs: Sequence[Pair], lists: dict[str, Path | None]) -> tuple[list[Entry], str]:
    """Give each picture its split, by the lists or the folders; the second value says which, empty for neither."""
    if any(lists.values()):
        chosen = [(pair, split) for split, path in lists.items() if path for pair in _listed(pairs, path)]
        how = "by the lists"
        split_of: dict[Pair, str] = {}
        for pair, split in chosen:
            if pair in split_of:
                where = f"twice in the {split} list" if split_of[pair] == split else "in more than one list"
                raise UserError(f"{pair.image} is {where}; leave it there once.")
            split_of[pair] = split
    elif any(pair.split for pair in pairs):
        without = [pair for pair in pairs if pair.split is None]
        if without:
            raise UserError(
                f"{without[0].image} is in no folder named train, val or test, but other pictures are; "
                "move it, or give lists."
            )
        chosen = [(pair, str(pair.split)) for pair in pairs]
        how = "by the folders' names"
    else:
        chosen = [(pair, "train") for pair in pairs]
        how = ""
    return _in_order([Entry(split, pair.name, pair.image, pair.label) for pair, split in chosen]), how


def _listed(pairs: Sequence[Pair], path: Path) -> list[Pair]:
    """The pictures that a list names, by the first word or the whole of a line: stem, file name or path."""
    by_name: dict[str, set[Pair]] = defaultdict(set)
    for pair in pairs:
        for name in {pair.stem, pair.image.name, pair.image.stem}:
            by_name[name].add(pair)
    try:
        # Not by `utils.text`, which refuses pipes: a shell's <(command) is one.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the list {path}: {error}.") from None
    found: list[Pair] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        # A line may name the mask, too, but a picture's name may also hold spaces and commas.
        parts = (line, re.split("[,;\t]", line)[0], line.split()[0])
        ways = [
            PurePosixPath(way)
            for part in parts
            for way in (part.strip(" \"'\t"), part.strip(" \"'\t").replace("\\", "/"))
        ]
        wanted = next((way for way in ways if way.name in by_name), ways[0])
        fits = by_name.get(wanted.name, set())
        if len(fits) > 1:
            folder = wanted.parts[-2:-1]
            fits = {pair for pair in fits if (*pair.image.parts[-2:-1],) == folder}
        if len(fits) != 1:
            problem = "is no picture of the source" if not fits else "fits several pictures"
            raise UserError(f"{path}, line {number}: {wanted} {problem}.")
        found += fits
    if not found:
        raise UserError(f"The list {path} is empty.")
    return found
