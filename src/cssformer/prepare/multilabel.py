"""Masks of classes of which a pixel may have several: a folder for each class, ``CLASS/NAME.png``, or one-hot files."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cssformer.data.bands import decode_bands
from cssformer.data.dataset_info import MOST_MULTILABEL
from cssformer.data.files import files_under, is_picture, read_bytes
from cssformer.prepare.masks import LabelMapping, Transparent, meaning
from cssformer.prepare.pairing import Pairing, find_pairs, read_folders
from cssformer.prepare.survey import MaskStats, survey
from cssformer.prepare.writer import Drawing, Entry
from cssformer.utils.console import counted
from cssformer.utils.errors import UserError
from cssformer.utils.parallel import in_parallel

IGNORED = 65535
MasksOf = Mapping[Path, Mapping[int, Path]]
"""The masks of each picture, by the index of their class; nothing where masks are one-hot."""
_ONE_HOT = (".npy", ".tif", ".tiff")


def bits_of(count: int) -> dict[int, int | None]:
    """The label of each value of a bit field of so many classes, which is itself, or None where it is ignored.

    Raises:
        UserError: there are more classes than bits.
    """
    if count > MOST_MULTILABEL:
        raise UserError(f"There are {count} classes, but multi-label data have {MOST_MULTILABEL} at most; take fewer.")
    return {**{value: value for value in range(1 << count)}, IGNORED: None}


def pair_by_class(
    images: Path, masks: Path, classes: Sequence[str] | None, image_suffix: str | None, label_suffix: str | None
) -> tuple[tuple[str, ...], Pairing, MasksOf]:
    """Pair pictures with the masks of each class as :func:`cssformer.prepare.pairing.find_pairs` does.

    Args:
        images: the folder of the pictures.
        masks: that of the classes' folders, or of one-hot files: TIFFs or NumPy's arrays with a band for each class.
        classes: which of these, in order; all by default, in the order of their names. Of one-hot files the bands'.
        image_suffix, label_suffix: of ``find_pairs``.

    Returns:
        The classes; the pictures, each with the first of its masks; and all masks.

    Raises:
        UserError: there is no folder of a class, two classes differ in case at most, or as ``find_pairs``.
    """
    found = sorted(path.name for path in masks.glob("*/") if not path.name.startswith("."))
    splits = [name for name in found if read_folders([name])[1]]
    if (splits or not found) and masks.is_dir() and any(path.suffix.lower() in _ONE_HOT for path in files_under(masks)):
        if not classes:
            raise UserError(f"{masks} holds files of several bands; name their classes in order with --classes.")

        def readable(path: Path) -> bool:
            return is_picture(path) or path.suffix.lower() == ".npy"

        return tuple(classes), find_pairs(images, masks, image_suffix, label_suffix, readable), {}
    if not found or splits:
        what = f"the folder {splits[0]}" if found else "no folder of a class"
        raise UserError(f"{masks} has {what}; several classes a pixel need {masks}/CLASS/NAME.png.")
    for name in classes or ():
        if name not in found:
            raise UserError(f"There is no folder {masks / name} with masks of the class; there are {', '.join(found)}.")
    names = tuple(classes or found)
    alike = [name for name in names if [each.casefold() for each in names].count(name.casefold()) > 1]
    if alike:
        raise UserError(
            f"The classes {alike[0]!r} and {alike[1]!r} differ in case at most; rename one or leave it out."
        )
    pairings = [find_pairs(images, masks / name, image_suffix, label_suffix) for name in names]
    masks_of: dict[Path, dict[int, Path]] = defaultdict(dict)
    for index, pairing in enumerate(pairings):
        for pair in pairing.pairs:
            if pair.label is not None:
                masks_of[pair.image][index] = pair.label
    pairs = [replace(pair, label=next(iter(masks_of[pair.image].values()), None)) for pair in pairings[0].pairs]
    lonely = sorted(path for pairing in pairings for path in pairing.lonely_masks)
    suffixes = list(dict.fromkeys(ends for pairing in pairings for ends in pairing.suffixes))
    return names, Pairing(pairs, lonely, suffixes), masks_of


def with_bit_fields(
    entries: Sequence[Entry],
    masks_of: MasksOf,
    classes: Sequence[str],
    ignore: Sequence[str],
    transparent: Transparent | None,
) -> tuple[list[Entry], list[str], dict[str, set[int]]]:
    """The entries with all masks of each picture as one label, and notes on how the masks were understood.

    Also the classes of each training picture, by its name; one-hot files are not read for them.

    In the masks of a class 0 (or black) is where it is not, and one other value where it is; a class without a mask is
    not in the picture. What one mask ignores is ignored.

    Raises:
        UserError: a mask cannot be read, or the masks of a class have more values.
    """
    if not masks_of:
        one_hot = [isinstance(entry.label, Path) and _one_hot(entry.label, len(classes)) for entry in entries]
        return [replace(entry, label=label or None) for entry, label in zip(entries, one_hot, strict=True)], [], {}
    notes = []
    masks = [masks_of[Path(str(entry.image))] for entry in entries]
    understood = {}
    classes_of: dict[str, set[int]] = defaultdict(set)
    for index, name in enumerate(classes):
        holders = [(entry, own[index]) for entry, own in zip(entries, masks, strict=True) if index in own]
        if not holders:
            continue
        try:
            surveys = in_parallel(survey, [path for _, path in holders], f"Reading {name}")
            understood[index] = _meaning(surveys, name, ignore, transparent)
        except UserError as error:
            raise UserError(f"Masks of the class {name}: {error}") from None
        mapping = understood[index]
        for (entry, _), found in zip(holders, surveys, strict=True):
            if entry.split == "train" and 1 in mapping.classes_of(found):
                classes_of[entry.name].add(index)
        if ignored := [mapping.written(value) for value, target in mapping.index_of.items() if target is None]:
            notes.append(f"What is {', '.join(ignored)} in masks of {name} is ignored.")
    lacking = sum(len(own) < len(classes) for entry, own in zip(entries, masks, strict=True) if entry.label is not None)
    if lacking:
        notes.append(f"{counted(lacking, 'picture')} without a mask of some class, which is taken as not there.")
    drawn = [
        replace(entry, label=_drawing(own, understood)) if entry.label else entry
        for entry, own in zip(entries, masks, strict=True)
    ]
    return drawn, notes, classes_of


def _meaning(
    surveys: Sequence[MaskStats], name: str, ignore: Sequence[str], transparent: Transparent | None
) -> LabelMapping:
    """0 or 1 for each value of a class's masks, None where it is ignored."""
    palette = next((each.palette for each in surveys if 0 in each.palette), {})
    # What masks of other pictures would hold: there is 0 even where all of these show the class everywhere.
    zero = frozenset({0})
    empty = MaskStats(surveys[0].path, zero, zero, {0: palette[0]} if palette else {})
    see_through = transparent == "background" and any(each.transparent for each in surveys)
    return meaning(surveys if see_through else [*surveys, empty], [], ["absent", name], ignore, transparent)


def _drawing(masks: Mapping[int, Path], understood: Mapping[int, LabelMapping]) -> Drawing:
    """The bit field of a picture's masks."""

    def draw(size: tuple[int, int]) -> NDArray[np.uint16]:
        fields: list[NDArray[np.uint16]] = []
        for index, path in masks.items():
            mapping = understood[index]
            values = mapping.read(read_bytes(path), path)
            ignored, there = ([value for value, is_of in mapping.index_of.items() if is_of == of] for of in (None, 1))
            field = np.where(np.isin(values, there), np.uint16(1 << index), np.uint16(0))
            fields.append(np.where(np.isin(values, ignored), np.uint16(IGNORED), field))
            if fields[-1].shape != fields[0].shape:
                raise UserError(f"The mask {path} and others of its picture differ in size; they must be alike.")
        return np.bitwise_or.reduce(fields)

    paths = tuple(masks.values())
    return Drawing(str(paths[0]), None, draw, paths)


def _one_hot(path: Path, count: int) -> Drawing:
    """The bit field of a file with a band for each of so many classes."""

    def draw(size: tuple[int, int]) -> NDArray[np.uint16]:
        data = read_bytes(path)
        if path.suffix.lower() == ".npy":
            try:
                values = np.load(BytesIO(data), allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise UserError(f"{path} cannot be read as NumPy's array: {str(error).rstrip('.')}.") from None
        else:
            values = decode_bands(data, path).values
        # Arrays have the classes last as often as first.
        axes = (0, -1) if values.ndim == 3 and values.dtype.kind in "biuf" else ()
        fits = [np.moveaxis(values, axis, 0) for axis in axes if values.shape[axis] == count]
        if not fits:
            raise UserError(
                f"{path} is an array of {values.dtype} {values.shape}, without a band for each of {count} classes."
            )
        bands = next((each for each in fits if each.shape[1:] == size), fits[0])
        found = np.unique(bands)
        if len(set(found.tolist()) - {0}) > 1 or not (found >= 0).all():
            held = ", ".join(str(value) for value in found[:5])
            raise UserError(
                f"{path} holds {held}; bands are 0 where their class is not, and one other value where it is."
            )
        return np.einsum("chw,c->hw", bands != 0, 1 << np.arange(count)).astype(np.uint16)

    return Drawing(str(path), None, draw, (path,))
