"""Masks as people have them: the forms of their files, their values, and which class each value is."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cssformer.data.dataset import DatasetInfo, distinct_colours
from cssformer.data.files import read_bytes
from cssformer.data.image_io import decode_mask
from cssformer.utils.errors import UserError

Colour = tuple[int, int, int]
MOST_COLOURS = 65536
"""Of one mask; a picture with more is no mask, and remembering the colours of many would fill the memory."""

# Values of a mask, by which its classes are told: ids, or colours packed as 0xRRGGBB.
Reader = Callable[[bytes, Path], NDArray[Any]]
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class MaskStats:
    """What one mask file holds: its ids (None if they are colours), its colours, and each id's colour in a palette."""

    ids: frozenset[int] | None
    colours: frozenset[int]
    palette: dict[int, Colour] | None = None


@dataclass(frozen=True)
class ClassLine:
    """A line of a class file: a name, and the id and the colour if the line gives them."""

    name: str
    id: int | None
    colour: Colour | None


@dataclass(frozen=True)
class LabelMapping:
    """How masks are read: as ids or colours, and the class of each value (None: ignored)."""

    as_colours: bool
    classes: tuple[str, ...]
    colours: tuple[Colour, ...]
    index_of: dict[int, int | None]
    notes: tuple[str, ...]

    def info(self) -> DatasetInfo:
        """The description of the prepared dataset, without counts and sources."""
        ignore = 255 if len(self.classes) <= 255 else 65535
        mapping = {self.written(value): index for value, index in sorted(self.index_of.items())}
        return DatasetInfo(self.classes, self.colours, ignore, mapping)

    def written(self, value: int) -> str:
        """An id as a number, a colour as "r g b"."""
        return " ".join(map(str, _unpacked(value))) if self.as_colours else str(value)

    def read(self, data: bytes, path: Path) -> NDArray[Any]:
        """Decode a mask to its values (H, W): ids, or colours packed as 0xRRGGBB."""
        mask = decode_mask(data, path)
        return mask.colours() if self.as_colours else mask.ids(path)


def survey(path: Path) -> MaskStats:
    """Read a mask and list its values.

    Raises:
        UserError: the file is missing, truncated, damaged, a JPEG, or of another form.
    """
    mask = decode_mask(read_bytes(path), path)
    if mask.pixels.ndim == 3:
        colours = values_of(mask.colours())
        if len(colours) > MOST_COLOURS:
            raise UserError(f"The mask {path} has {len(colours)} colours; it is a photograph, not a mask.")
        grey = all(value % 0x010101 == 0 for value in colours)
        return MaskStats(frozenset(value & 255 for value in colours) if grey else None, colours)
    ids = values_of(mask.pixels)
    if mask.palette is not None:
        rows = {index: _unpacked(_packed(mask.palette[index])) for index in ids if index < len(mask.palette)}
        return MaskStats(ids, frozenset(map(_packed, rows.values())), rows)
    return MaskStats(ids, frozenset(value * 0x010101 for value in ids if value < 256))


def values_of(array: NDArray[Any]) -> frozenset[int]:
    """The different values of an array."""
    flat = array.ravel()
    # Masks have long runs; only where a value differs from the one before can it be new.
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return frozenset(np.unique(np.append(flat[starts], flat[:1])).tolist())


def read_class_file(path: Path) -> list[ClassLine]:
    """Read a class a line: ``NAME``, ``ID NAME``, ``R G B NAME``, ``ID R G B NAME`` or ``NAME R G B``.

    Spaces, tabs and commas separate; empty lines, ``#`` lines and a heading of ``name,r,g,b`` are skipped.

    Raises:
        UserError: the file is missing, or a line has another form than the first.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8.") from None
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#") or re.match(r"\s*name\s*[,;\t ]\s*r\b", line, re.I):
            continue
        before, name, after = re.fullmatch(
            r"((?:\d+[\s,;:]+)*)(.*?)((?:[\s,;]+\d+){3})?[\s,;]*", line.strip(), re.S
        ).groups()  # type: ignore[union-attr]
        first, last = ([int(part) for part in re.findall(r"\d+", text or "")] for text in (before, after))
        numbers = first + last
        if not name or len(numbers) not in (0, 1, 3, 4) or (len(numbers) >= 3 and max(numbers[-3:]) > 255):
            raise UserError(f"{path}, line {number}: {line.strip()!r} is not NAME, ID NAME, R G B NAME or NAME R G B.")
        colour = (numbers[-3], numbers[-2], numbers[-1]) if len(numbers) >= 3 else None
        lines.append(ClassLine(name.strip(), numbers[0] if len(numbers) in (1, 4) else None, colour))
    if not lines:
        raise UserError(f"{path} names no classes.")
    forms = {(line.id is None, line.colour is None) for line in lines}
    if len(forms) > 1:
        raise UserError(f"{path} mixes lines of different forms; write all as NAME, ID NAME or R G B NAME.")
    name_of: dict[Any, str] = {}
    for each in lines:
        value = each.colour if each.id is None else each.id
        if value is not None and name_of.setdefault(value, each.name) != each.name:
            raise UserError(f"{path} calls {value} both {name_of[value]!r} and {each.name!r}; choose one.")
    return lines


def meaning(
    surveys: Sequence[MaskStats],
    lines: Sequence[ClassLine],
    names: Sequence[str],
    ignore: Sequence[str],
) -> LabelMapping:
    """Decide how masks are read and which class each of their values is.

    Args:
        surveys: what the masks hold.
        lines: the lines of a class file; empty without one.
        names: class names in order; used without a class file.
        ignore: ids, colours as ``r,g,b``, or names of classes that are no classes.

    Raises:
        UserError: names and values do not fit each other.
    """
    colours_found = frozenset[int]().union(*(each.colours for each in surveys))
    palette = {index: colour for each in surveys for index, colour in (each.palette or {}).items()}
    # Lines of colours without ids speak of colours if the masks have these; else they are in the order of the ids.
    table = {_packed(line.colour) for line in lines if line.colour is not None and line.id is None}
    as_colours = any(each.ids is None for each in surveys) or (
        bool(table) and (bool(palette) or colours_found <= table)
    )
    found = colours_found if as_colours else frozenset[int]().union(*(each.ids or () for each in surveys))
    notes = []

    known = {_value(line, number, as_colours): line for number, line in enumerate(lines)}
    if as_colours and None in known:
        raise UserError("The masks are colour-coded, but the class file gives no colours; write R G B NAME lines.")
    ignored = {value for token in ignore for value in _ignored(token, as_colours, known)}
    binary = not as_colours and 255 in found - ignored and found - ignored <= {0, 255} and 255 not in known
    if binary and lines:
        if lines[0].id is not None or len(lines) != 2:
            raise UserError(
                "The masks hold 0 and 255 alone, but the class file does not have two names, or ids 0 and 255."
            )
        known = {0: lines[0], 255: lines[1]}
    void = 65535 if not as_colours and max(found) > 255 else 255
    if not as_colours and void in found and void not in known and not binary and void not in ignored:
        ignored.add(void)
        notes.append(f"The value {void} is taken as ignored.")
    if binary:
        notes.append("The masks are binary: 0 is the first class, 255 the second.")

    if not lines:
        known = _named(sorted(found - ignored), names, ignored, binary, as_colours)
        low, high = max(pairwise(sorted(known)), key=lambda pair: pair[1] - pair[0], default=(0, 0))
        if high > low + 1 and not (names or binary or as_colours):
            notes.append(f"No mask holds an id between {low} and {high}; if {high} is no class, add --ignore {high}.")
    index_of: dict[int, int | None] = dict.fromkeys(sorted(ignored & (found | known.keys())))
    classes: dict[str, Colour | None] = {}
    for value, line in known.items():
        if value is not None and value not in ignored:
            colour = _unpacked(value) if as_colours else line.colour or palette.get(value)
            classes.setdefault(line.name, colour)
            index_of[value] = list(classes).index(line.name)
    colours = tuple(
        colour or default for colour, default in zip(classes.values(), distinct_colours(len(classes)), strict=True)
    )
    if not classes:
        raise UserError("Every value of the masks is ignored; no class is left.")
    return LabelMapping(as_colours, tuple(classes), colours, index_of, tuple(notes))


def _value(line: ClassLine, number: int, as_colours: bool) -> Any:
    if as_colours:
        return None if line.colour is None else _packed(line.colour)
    return number if line.id is None else line.id


def _ignored(token: str, as_colours: bool, known: dict[int, ClassLine]) -> list[int]:
    numbers = re.findall(r"\d+", token) if re.fullmatch(r"[\d\s,]+", token) else []
    if len(numbers) == 3 and as_colours:
        red, green, blue = map(int, numbers)
        return [_packed((red, green, blue))]
    if len(numbers) == 1 and not as_colours:
        return [int(numbers[0])]
    values = [value for value, line in known.items() if line.name == token]
    if not values:
        form = "a colour R,G,B" if as_colours else "an id"
        raise UserError(f"{token!r} cannot be ignored: it is neither {form} nor a name in the class file.")
    return values


def _named(
    values: Sequence[int], names: Sequence[str], ignored: set[int], binary: bool, as_colours: bool
) -> dict[int, ClassLine]:
    """Name the values found: by the names given, or after themselves."""
    if not values:
        raise UserError("Every value of the masks is ignored; no class is left.")
    in_order = list(islice((value for value in count() if value not in ignored), len(names)))
    if names and not as_colours and not binary and set(values) <= set(in_order):
        # A class that happens to be absent must not shift those behind it.
        values = in_order
    elif names and len(names) != len(values):
        shown = ", ".join(str(_unpacked(value)) if as_colours else str(value) for value in values[:20])
        raise UserError(
            f"{len(names)} classes are named, but the masks have {len(values)} values ({shown}"
            f"{', ...' if len(values) > 20 else ''}); name as many, ignore some, or give a class file of ID NAME lines."
        )
    elif len(values) > _MOST_CLASSES or (as_colours and not names and len(values) > 255):
        kind = "colours" if as_colours else "ids"
        raise UserError(
            f"The masks have {len(values)} different {kind}, too many for classes: they may be smoothed, compressed or "
            "instance ids; give the right masks, or a class file and the values to ignore."
        )
    elif not names:
        if binary:
            names = ["background", "foreground"][-len(values) :]
        elif as_colours:
            names = ["colour {} {} {}".format(*_unpacked(value)) for value in values]
        else:
            names = [f"class {value}" for value in values]
    return {value: ClassLine(name, value, None) for value, name in zip(values, names, strict=True)}


def _packed(colour: Sequence[int]) -> int:
    return int(colour[0]) << 16 | int(colour[1]) << 8 | int(colour[2])


def _unpacked(value: int) -> Colour:
    return value >> 16, value >> 8 & 255, value & 255
