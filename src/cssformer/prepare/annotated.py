"""What annotation tools export, whatever the format: pictures with their shapes, and how their files are read."""

import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cssformer.data.files import Readable, is_picture
from cssformer.prepare.archives import Member
from cssformer.prepare.class_file import Colour
from cssformer.prepare.shapes import ClassMap, Overlap, Shape, Size
from cssformer.utils.errors import UserError

MOST_ANNOTATIONS = 4 << 30
"""Bytes of one annotation file; the largest official one, of COCO, has half a gigabyte."""
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
