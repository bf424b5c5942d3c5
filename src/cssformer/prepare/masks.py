"""Which class each value of masks is that people have: ids, palette indices, colours, 0 and 255."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from cssformer.data.dataset_info import DatasetInfo, distinct_colours, ignored_value
from cssformer.data.image_io import decode_mask
from cssformer.prepare.class_file import ClassLine, Colour
from cssformer.prepare.survey import TRANSPARENT, MaskStats, packed, unpacked
from cssformer.utils.console import counted
from cssformer.utils.errors import UserError

Transparent = Literal["background", "ignore"]
"""What the transparent pixels of masks are: a class of its own, or ignored."""
VOC_BORDER = (224, 224, 192)
"""VOC's colour of the pixels around objects, which are no class: that of 255 in its colour map."""
_MOST_CLASSES = 1000


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
        mapping = {self.written(value): index for value, index in sorted(self.index_of.items())}
        return DatasetInfo(self.classes, self.colours, ignored_value(len(self.classes)), mapping)

    def written(self, value: int) -> str:
        """An id as a number, a colour as "r g b"."""
        if value == TRANSPARENT:
            return "transparent"
        return " ".join(map(str, unpacked(value))) if self.as_colours else str(value)

    def classes_of(self, mask: MaskStats) -> set[int]:
        """The classes that a mask has pixels of."""
        values = {*mask.values(self.as_colours), *([TRANSPARENT] if mask.transparent else [])}
        return {index for value in values if (index := self.index_of.get(value)) is not None}

    def read(self, data: bytes, path: Path) -> NDArray[Any]:
        """Decode a mask to its values (H, W): ids, or colours packed as 0xRRGGBB, or ``TRANSPARENT``."""
        mask = decode_mask(data, path)
        return mask.colours(path, TRANSPARENT) if self.as_colours else mask.ids(path, TRANSPARENT)


def meaning(
    surveys: Sequence[MaskStats],
    lines: Sequence[ClassLine],
    names: Sequence[str],
    ignore: Sequence[str],
    transparent: Transparent | None = None,
) -> LabelMapping:
    """Decide how masks are read and which class each of their values is.

    Args:
        surveys: what the masks hold.
        lines: the lines of a class file; empty without one.
        names: class names in order; used without a class file.
        ignore: ids, colours as ``r,g,b``, or names of classes that are no classes.
        transparent: what transparent pixels are; if a class, the first of ``names`` is its name.

    Raises:
        UserError: names and values do not fit each other, or it is not told what transparent pixels are.
    """
    notes: list[str] = []
    behind = _transparent_class(surveys, names, transparent)
    names = names[1:] if behind else names
    as_colours = _read_by_colour(surveys, lines, names, ignore, notes)
    found = frozenset[int]().union(*(each.values(as_colours) for each in surveys))
    known = _of_class_file(lines, as_colours)
    ignored = {value for token in ignore for value in _ignored(token, as_colours, known)}
    ignored |= {value for value, line in known.items() if line.ignored}
    # What 8 or 16 bits hold at most is the foreground of binary masks and what other masks ignore.
    top = 65535 if not as_colours and max(found) > 255 else 255
    binary = not as_colours and top in found - ignored and found - ignored <= {0, top} and top not in known
    if binary and lines:
        if lines[0].id is not None or len(lines) != 2:
            raise UserError(
                f"The masks hold 0 and {top} alone, but the class file does not have two names, or ids 0 and {top}."
            )
        known = {0: lines[0], top: lines[1]}
    if not as_colours and top not in known:
        _require_one_foreground(surveys, found - ignored)
    _require_sharp(surveys, found - ignored - known.keys(), as_colours)
    void = packed(VOC_BORDER) if as_colours else top
    if void in found - known.keys() - ignored and not binary:
        shown = _token(void, as_colours)
        if not lines and len(rest := found - ignored - {void}) == 1:
            (value,) = rest
            raise UserError(
                f"The masks hold {_token(value, as_colours)} and {shown} alone: if {shown} is no class, add --ignore "
                f"{shown}; if it is one, give a class file of {'R G B' if as_colours else 'ID'} NAME lines."
            )
        ignored.add(void)
        notes.append(
            f"The colour {shown}, VOC's border, is taken as ignored; if it is a class, give it a line in a class file."
            if as_colours
            else f"The value {shown} is taken as ignored."
        )
    if binary:
        notes.append(f"The masks are binary: 0 is the first class, {top} the second.")

    if not lines:
        known = _named(sorted(found - ignored), names, ignored, binary, as_colours)
    if not as_colours:
        notes += _doubts_about_ids(lines, names, known, found - ignored, binary)
    see_through = any(each.transparent for each in surveys)
    if see_through:
        if not (lines or names) and behind in {line.name for line in known.values()}:
            behind = "transparent"
        notes.append(f"What is transparent in masks is {f'the class {behind}' if behind else 'ignored'}.")
    palette = {index: colour for each in surveys for index, colour in each.palette.items()}
    unused = dict.fromkeys(sorted(ignored & (found | known.keys())))
    kept = {value: line for value, line in known.items() if value not in ignored}
    return _mapping(as_colours, kept, unused, behind if see_through else None, palette, tuple(notes))


def _mapping(
    as_colours: bool,
    known: dict[int, ClassLine],
    ignored: dict[int, None],
    behind: str | None,
    palette: dict[int, Colour],
    notes: tuple[str, ...],
) -> LabelMapping:
    """Number the classes in the order of their values; values of one name are one class.

    Args:
        as_colours: whether values are colours.
        known: the class of each value.
        ignored: values that are no class.
        behind: the class of transparent pixels, the first; empty where they are ignored, None where there are none.
        palette: the colours of ids for which ``known`` has none.
        notes: of the mapping.
    """
    index_of: dict[int, int | None] = dict(ignored)
    classes: dict[str, tuple[int, Colour | None]] = {}
    if behind is not None:
        index_of[TRANSPARENT] = classes.setdefault(behind, (0, None))[0] if behind else None
    for value, line in known.items():
        colour = unpacked(value) if as_colours else line.colour or palette.get(value)
        index_of[value] = classes.setdefault(line.name, (len(classes), colour))[0]
    if not classes:
        raise UserError("Every value of the masks is ignored; no class is left.")
    alike: dict[str, str] = {}
    for name in classes:
        if alike.setdefault(name.casefold(), name) != name:
            raise UserError(f"The classes {alike[name.casefold()]!r} and {name!r} differ in case alone; rename one.")
    given = (colour for _, colour in classes.values())
    colours = tuple(own or default for own, default in zip(given, distinct_colours(len(classes)), strict=True))
    return LabelMapping(as_colours, tuple(classes), colours, index_of, notes)


def _transparent_class(surveys: Sequence[MaskStats], names: Sequence[str], transparent: Transparent | None) -> str:
    """The name of the class that transparent pixels are, empty if they are none."""
    see_through = [each.path for each in surveys if each.transparent]
    if not see_through:
        return ""
    if transparent is None:
        raise UserError(
            f"The mask {see_through[0]} is transparent in places ({len(see_through)} such masks); add --transparent "
            "background if these (or those of nodata) are a class of their own, the first, or --transparent ignore."
        )
    if not any(each.ids or each.colours for each in surveys):
        raise UserError(f"The masks are transparent throughout, {see_through[0]} for one; no class is left.")
    if transparent == "ignore":
        return ""
    if len(names) == 1:
        raise UserError("With --transparent background the first name is that of what is transparent; name more.")
    return names[0] if names else "background"


def _read_by_colour(
    surveys: Sequence[MaskStats],
    lines: Sequence[ClassLine],
    names: Sequence[str],
    ignore: Sequence[str],
    notes: list[str],
) -> bool:
    """Tell whether classes go by colours; that palettes say so is added to ``notes``.

    Raises:
        UserError: two palettes give one id different colours, and classes are told by their ids.
    """
    colours = frozenset[int]().union(*(each.colours for each in surveys))
    # Lines of colours without ids speak of colours if the masks have these; else they are in the order of the ids.
    table = {packed(line.colour) for line in lines if line.colour is not None and line.id is None}
    palettes = [each for each in surveys if each.palette]
    if any(each.ids is None for each in surveys) or (table and (palettes or colours <= table)):
        return True
    first: dict[int, MaskStats] = {}
    for each in palettes:
        for index, colour in each.palette.items():
            other = first.setdefault(index, each)
            if other.palette[index] == colour or str(index) in ignore:
                continue
            what = f"{other.path} and {each.path} give the id {index} two colours"
            if lines and all(line.colour is not None or line.ignored for line in lines):
                notes.append(f"The palettes of {what}; masks are read by the colours of the class file.")
                return True
            if not lines and not names and len(palettes) == len(surveys) and len(colours) <= len(first):
                notes.append(f"The palettes of {what}; masks are read by colour.")
                return True
            raise UserError(
                f"The palettes of {what}, {' '.join(map(str, other.palette[index]))} and {' '.join(map(str, colour))}, "
                "so ids do not tell the classes; give a class file of R G B NAME lines, or save all with one palette."
            )
    if palettes and (grey := [each.path for each in surveys if not each.palette]):
        notes.append(
            f"{len(palettes)} masks have a palette and {len(grey)} are grey, {palettes[0].path} and {grey[0]} for two: "
            "an id of the one is taken as the same id of the other."
        )
    if {index: each.palette[index] for index, each in first.items()} == {0: (255, 255, 255), 1: (0, 0, 0)}:
        notes.append("In the palettes 0 is white and 1 is black, so the first class is what looks white.")
    return False


def _of_class_file(lines: Sequence[ClassLine], as_colours: bool) -> dict[int, ClassLine]:
    """The class of each value that the class file speaks of."""
    known = {_value(line, number, as_colours): line for number, line in enumerate(lines)}
    if as_colours and None in known:
        raise UserError("The masks are colour-coded, but the class file gives no colours; write R G B NAME lines.")
    for number, line in enumerate(lines):
        other = known[_value(line, number, as_colours)]
        if other.name != line.name:
            raise UserError(
                f"The class file gives {line.name!r} and {other.name!r} one colour, by which masks are read."
            )
    return known


def _doubts_about_ids(
    lines: Sequence[ClassLine],
    names: Sequence[str],
    known: dict[int, ClassLine],
    values: frozenset[int],
    binary: bool,
) -> list[str]:
    """Notes on classes that go by ids in order, which ids left out may have shifted."""
    if not lines:
        low, high = max(pairwise(sorted(known)), key=lambda pair: pair[1] - pair[0], default=(0, 0))
        if names or binary or high <= low + 1:
            return []
        return [f"No mask holds an id between {low} and {high}; if {high} is no class, add --ignore {high}."]
    if lines[0].id is not None:
        return []
    notes = []
    if lines[0].colour is not None:
        notes.append(
            "The colours of the class file are not in the masks: its classes are taken in the order of the ids."
        )
    largest = max(values, default=0)
    if len(lines) > largest + 1 and not binary:
        notes.append(
            f"The class file has {len(lines)} names in the order of the ids, but no mask holds an id above {largest}: "
            f"see that {lines[0].name!r} is the class of id 0."
        )
    return notes


def _require_one_foreground(surveys: Sequence[MaskStats], values: frozenset[int]) -> None:
    """Raise if some masks say 1 and others 255 (or 65535) for what is likely one and the same."""
    if len(values - {0}) < 2 or not values <= {0, 1, 255, 65535}:
        return
    example: dict[int, Path] = {}
    for each in surveys:
        own = (each.ids or frozenset()) & values - {0}
        if len(own) > 1:
            return
        example |= {value: each.path for value in own - example.keys()}
    low, *_, high = sorted(example)
    raise UserError(
        f"The mask {example[low]} holds {low} and no {high}, {example[high]} holds {high} and no {low}: if both mean "
        f"the object, save all masks alike; if {high} is no class, add --ignore {high}."
    )


def _require_sharp(surveys: Sequence[MaskStats], values: frozenset[int], as_colours: bool) -> None:
    """Raise if most values are specks or between those beside them, as smoothing and lossy compression leave them."""
    pixels = Counter[int]()
    for each in surveys:
        pixels.update(each.blended)
    blended = sorted(pixels.keys() & values, key=lambda value: -pixels[value])
    # Compression leaves values just above 0 and just below 255, with gaps between them.
    compressed = 2 <= len(values) < 128 and values & {1, 2, 3} and values & {252, 253, 254}
    # Else 255, the object, would be taken as ignored, and its border as a class.
    binary = blended and values.difference(blended) in ({0, 255}, {0, 65535})
    if not ((len(blended) >= 3 and 2 * len(blended) >= len(values)) or compressed or binary):
        return
    what = "Values of the masks lie just above 0 and just below 255"
    if blended:
        named = [_token(value, as_colours) for value in blended[:3]]
        kind, total = "colour" if as_colours else "value", sum(pixels[value] for value in blended)
        what = (
            f"{counted(len(blended), kind)} of the masks, {' and '.join(named)} first, {total} pixels, are specks or "
            "lie between those of the pixels beside them"
        )
    path = next((each.path for each in surveys if each.blended), surveys[0].path)
    raise UserError(
        f"{what}, in {path} for one: the masks were smoothed or compressed. Save them again without anti-aliasing and "
        "compression, or give a class file and --ignore the other values."
    )


def _value(line: ClassLine, number: int, as_colours: bool) -> Any:
    if as_colours:
        return None if line.colour is None else packed(line.colour)
    return number if line.id is None else line.id


def _token(value: int, as_colours: bool) -> str:
    """A value as ``--ignore`` takes it."""
    return ",".join(map(str, unpacked(value))) if as_colours else str(value)


def _ignored(token: str, as_colours: bool, known: dict[int, ClassLine]) -> list[int]:
    numbers = re.findall(r"\d+", token) if re.fullmatch(r"[\d\s,]+", token) else []
    if len(numbers) == 3 and as_colours:
        red, green, blue = map(int, numbers)
        return [packed((red, green, blue))]
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
    void = sorted(ignored & ({packed(VOC_BORDER)} if as_colours else {255, 65535}))
    if names and not as_colours and not binary and set(values) <= set(in_order):
        # A class that happens to be absent must not shift those behind it.
        values = in_order
    elif names and len(names) != len(values):
        shown = ", ".join(str(unpacked(value)) if as_colours else str(value) for value in values[:20])
        shown += ", ..." if len(values) > 20 else ""
        shown += f" and {_token(void[0], as_colours)}, which is ignored" if void else ""
        raise UserError(
            f"{len(names)} classes are named, but the masks have {len(values)} values ({shown}); name as many, ignore "
            "some, or give a class file of ID NAME lines."
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
            names = ["colour {} {} {}".format(*unpacked(value)) for value in values]
        else:
            names = [f"class {value}" for value in values]
    return {value: ClassLine(name, value, None) for value, name in zip(values, names, strict=True)}
