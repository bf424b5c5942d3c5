"""Files of classes as people and programs write them: lines, tables, CVAT's and labelme's lists, JSON and YAML."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cssformer.data.files import read_bytes
from cssformer.utils.errors import UserError

Colour = tuple[int, int, int]
MOST_CLASSES = 65535
"""Labels of 16 bits hold no more; 65535 itself is ignored."""
FORMS = "NAME, ID NAME, R G B NAME or #RRGGBB NAME on each line, or a JSON or YAML file of names"
_MOST_BYTES = 1 << 23
_IGNORE = "__ignore__"
# As in `0 -> road`, `0. road`, `0|road` and the other way round, if every line is so.
_MARKED_ID = re.compile(r"(?P<id>\d+)\s*(?:[-=]>|[|.)]|-(?=\s))\s*(?P<name>[^\W\d].*)")
_MARKED_ID_BEHIND = re.compile(r"(?P<name>.*\S)\s*(?:[-=]>|\||\s-\s)\s*(?P<id>\d+)")
_YAML = re.compile(r"-\s|[A-Za-z_]\w*:(\s*$|\s*[\[{&*])")
# What stands in no name, but in other programs' lists: brackets, bullets, fractions, triples of numbers.
_OTHER = re.compile(r"^[\[\]{}()<\"'*\-]|^\d+\.0\b|^0x|::|[:,{\[\"]$|\d\s*,\s*\d+\s*,\s*\d", re.I)
# A name, of whose last word not all are digits, then a number.
_NAME_ID = re.compile(r"((?:.*[\s,;:=])?[^\s,;:=]*[^\d\s,;:=][^\s,;:=]*)[\s,;:=]+(\d+)")

# Titles of columns; of several the first is taken.
_NAMES = ("name", "names", "class_name", "label_name", "category_name", "class", "label", "category", "title")
_IDS = (
    *("id", "ids", "index", "pixel_value", "value"),
    *("class_id", "label_id", "category_id", "class_index", "number", "code"),
)
_CHANNELS = (("r", "red"), ("g", "green"), ("b", "blue"))
_COLOURS = ("color", "colour", "rgb", "color_rgb", "hex", "hex_code", "hex_color")
# Under which other programs keep the names among other things.
_KEYS = ("names", "id2label", "classes", "label2id", "categories", "labels")


@dataclass(frozen=True)
class ClassLine:
    """A class of a class file: a name, its id and colour if the file gives them, and whether it is to be ignored."""

    name: str
    id: int | None
    colour: Colour | None
    ignored: bool = False


def read_class_file(path: Path) -> list[ClassLine]:
    """Read the classes of a file, in its order.

    Lines hold ``NAME``, ``ID NAME``, ``NAME ID``, ``R G B NAME``, ``ID R G B NAME``, ``NAME R G B`` or
    ``#RRGGBB NAME``, separated by spaces, tabs, commas, colons or ``=``; a first line of titles (``id,name``) names
    the columns. Empty lines and comments (``#``) are skipped. Also read are CVAT's ``labelmap.txt``, labelme's
    ``labels.txt``, whose ``__ignore__`` is 255, and lists and mappings of JSON and YAML.

    Raises:
        UserError: the file is missing or of another form, or its ids, colours or names contradict one another.
    """
    data = read_bytes(path)
    try:
        if len(data) > _MOST_BYTES:
            raise ValueError
        text = data.decode("utf-8-sig")
    except ValueError:
        raise UserError(f"{path} is not a text file in UTF-8 of classes.") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if path.suffix.lower() == ".json" or re.match(r"\s*[\[{]", text):
        found = _from_data(_json(text, path), path)
    elif path.suffix.lower() in (".yaml", ".yml") or any(map(_YAML.match, lines)):
        found = _from_data(_yaml(text, path), path)
    else:
        # A colour is no comment.
        lines = [re.sub(r"\s+#\s.*", "", line) for line in lines if not re.match(r"#(?![0-9a-fA-F]{6}\b)", line)]
        found = list(_from_lines(lines, path))
    if not found:
        raise UserError(f"{path} names no classes.")
    if len(found) > MOST_CLASSES:
        raise UserError(f"{path} names {len(found)} classes; there may be {MOST_CLASSES}.")
    _require_consistent(found, path)
    return found


def _require_consistent(found: list[ClassLine], path: Path) -> None:
    if len({(line.id is None, line.colour is None) for line in found if not line.ignored}) > 1:
        raise UserError(f"{path} mixes lines of different forms; write all alike: {FORMS}.")
    name_of: dict[Any, str] = {}
    for each in found:
        value = each.colour if each.id is None else each.id
        if value is not None and name_of.setdefault(value, each.name) != each.name:
            raise UserError(f"{path} calls {value} both {name_of[value]!r} and {each.name!r}; choose one.")


def _from_lines(lines: list[str], path: Path) -> Iterator[ClassLine]:
    lines = lines[1:] if lines and lines[0].startswith("label:color") else lines
    if not lines:
        return
    for form in (_MARKED_ID, _MARKED_ID_BEHIND):
        if all(matches := [form.fullmatch(line) for line in lines]):
            lines = [f"{match['id']} {match['name']}" for match in matches if match]
    if all(re.fullmatch(r"[^:]+:(\d+,\d+,\d+)?:[^:]*:[^:]*", line) for line in lines):
        # CVAT's and datumaro's: label:color_rgb:parts:actions.
        for line in lines:
            name, colour = line.split(":")[:2]
            yield _line(name, None, colour or None, path)
        return
    titles = [_title(cell) for cell in _cells(lines[0])]
    if any(title in _NAMES for title in titles) and any(
        title in (*_IDS, *_COLOURS, *sum(_CHANNELS, ())) or (title in _NAMES and title != titles[0]) for title in titles
    ):
        yield from _from_table(titles, [_cells(line) for line in lines[1:]], path)
        return
    if len(titles) == 1 and titles[0] in ("name", "names", "class_name"):
        lines = lines[1:]
    trailing = [match for line in lines if (match := _NAME_ID.fullmatch(line)) and not _parts(line)[0]]
    # But `lane 1`, `lane 2` are names.
    if len(lines) == len(trailing) == len({match[1] for match in trailing}):
        yield from (_line(match[1], match[2], None, path) for match in trailing)
        return
    shifted = lines[0] == _IGNORE
    for number, line in enumerate(lines):
        before, name, after = _parts(line)
        numbers = [*before, *after]
        if _OTHER.search(name) or (len(lines) == 1 and "," in name) or len(numbers) not in (0, 1, 3, 4):
            raise UserError(f"{path}: {_shown(line)} is of a form that is not known; write {FORMS}.")
        given = numbers[0] if len(numbers) in (1, 4) else _labelme(number) if shifted and not numbers else None
        yield _line(name, given, numbers[-3:] if len(numbers) >= 3 else None, path)


def _labelme(number: int) -> str:
    """The id of the class in line ``number``: labelme counts from -1, ``__ignore__``, which 8 bits hold as 255."""
    return str((number - 1) % 256)


def _parts(line: str) -> tuple[list[str], str, list[str]]:
    """The numbers before the name, the name, and the colour after it; a hexadecimal colour counts as three numbers."""
    line = re.sub(r"#([0-9a-fA-F]{6})(?![0-9a-zA-Z])", lambda found: " ".join(map(str, bytes.fromhex(found[1]))), line)
    before, name, after = re.fullmatch(  # type: ignore[union-attr]
        r"((?:\d+(?:[\s,;:=]+|$))*)(.*?)((?:[\s,;:=]+\d+){3})?[\s,;]*", line, re.S
    ).groups()
    return re.findall(r"\d+", before), name.strip(), re.findall(r"\d+", after or "")


def _cells(line: str) -> list[str]:
    """The cells of a line of a table, separated by commas, semicolons, tabs or, where there are none, spaces."""
    separator = next((each for each in ",;\t" if each in line), " ")
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]


def _title(cell: str) -> str:
    return re.sub(r"\W+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cell)).strip("_").lower()


def _from_table(titles: list[str], rows: list[list[str]], path: Path) -> Iterator[ClassLine]:
    def column(names: tuple[str, ...]) -> int | None:
        return next((titles.index(name) for name in names if name in titles), None)

    name = column(_NAMES)
    assert name is not None
    # `class,name` and `label,name`: what is not the name is the id.
    identity = column((*_IDS, *(each for each in _NAMES if each != titles[name])))
    channels = [column(names) for names in _CHANNELS]
    colour = column(_COLOURS)
    for row in rows:
        if len(row) != len(titles):
            raise UserError(f"{path}: {_shown(','.join(row))} has {len(row)} cells, but the heading has {len(titles)}.")
        rgb: Any = [row[each] for each in channels if each is not None] or (None if colour is None else row[colour])
        yield _line(row[name], None if identity is None else row[identity], rgb, path)


def _from_data(data: Any, path: Path) -> list[ClassLine]:
    """The classes of a list or mapping, whose leaves are text."""
    if isinstance(data, dict) and (key := next((key for key in _KEYS if isinstance(data.get(key), dict | list)), None)):
        return _from_data(data[key], path)
    if isinstance(data, list):
        if all(isinstance(each, dict) for each in data):
            return [_entry(each.get("id"), each, path) for each in data]
        shifted = data[0] == _IGNORE
        return [_line(each, _labelme(number) if shifted else None, None, path) for number, each in enumerate(data)]
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no list or mapping of class names; write {FORMS}.")
    if all(isinstance(value, str) and re.fullmatch(r"-?\d+", value) for value in data.values()):
        # The other way round, as label2id.
        return [_entry(value, key, path) for key, value in data.items()]
    if all(isinstance(value, list) or re.fullmatch(r"#[0-9a-fA-F]{6}", str(value)) for value in data.values()):
        return [_line(key, None, value, path) for key, value in data.items()]
    return [_entry(key, value, path) for key, value in data.items()]


def _entry(identity: Any, value: Any, path: Path) -> ClassLine:
    if isinstance(value, dict):
        name = next((value[key] for key in _NAMES if key in value), None)
        return _line(name, identity, next((value[key] for key in _COLOURS if key in value), None), path)
    return _line(value, identity, None, path)


def _line(name: Any, identity: Any, colour: Any, path: Path) -> ClassLine:
    """A class of the texts found.

    Raises:
        UserError: there is no name, the id is not from 0 to 65535, or the colour is not three numbers from 0 to 255.
    """
    if not isinstance(name, str) or not name.strip() or not name.strip().isprintable():
        raise UserError(f"{path}: {_shown(name)} is no name of a class; write {FORMS}.")
    name = name.strip()
    if identity is not None and not (re.fullmatch(r"\d{1,5}", str(identity)) and int(identity) <= 65535):
        raise UserError(
            f"{path}: the class {_shown(name)} has the id {_shown(identity)}; ids are whole numbers from 0 to 65535."
        )
    rgb = None
    if colour is not None:
        texts = colour if isinstance(colour, list) else _parts(str(colour).strip("()[] ") + " ")[0]
        if len(texts) != 3 or not all(re.fullmatch(r"\d{1,3}", str(text)) and int(text) < 256 for text in texts):
            raise UserError(
                f"{path}: the class {_shown(name)} has the colour {_shown(colour)}; "
                "give three numbers from 0 to 255, or #RRGGBB."
            )
        rgb = (int(texts[0]), int(texts[1]), int(texts[2]))
    return ClassLine(name, None if identity is None else int(identity), rgb, name == _IGNORE)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _json(text: str, path: Path) -> Any:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(found)) < len(found):
            raise ValueError("a key is there twice")
        return dict(found)

    try:
        # Numbers stay text, so that none is too large.
        return json.loads(text, object_pairs_hook=pairs, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no sound JSON file: {str(error).rstrip('.')}.") from None


def _yaml(text: str, path: Path) -> Any:
    def plain(node: yaml.Node) -> Any:
        if isinstance(node, yaml.SequenceNode):
            return [plain(each) for each in node.value]
        if not isinstance(node, yaml.MappingNode):
            return node.value
        found = {str(plain(key)): plain(value) for key, value in node.value}
        if len(found) < len(node.value):
            raise ValueError("a key is there twice")
        return found

    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.BaseLoader)):
            raise ValueError("it refers to itself")
        node = yaml.compose(text, yaml.BaseLoader)
        return None if node is None else plain(node)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no sound YAML file: {' '.join(str(error).split()).rstrip('.')}.") from None
