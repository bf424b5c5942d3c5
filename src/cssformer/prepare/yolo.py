"""YOLO's segmentation labels, as Ultralytics documents them: ``data.yaml`` and a text file for each picture.

``data.yaml`` has ``names``, a list or a mapping, and for ``train``, ``val`` and ``test`` folders or lists of pictures.
The labels of ``images/a.jpg`` are ``labels/a.txt``: a line for each polygon, the class's number and x y x y ... as
shares of width and height. A picture without a file of labels has no shape.

Label Studio writes ``classes.txt`` instead, a name a line, and no splits. Its pictures, and those of lists as CVAT
writes them, may be in another source.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cssformer.data.dataset import SPLITS
from cssformer.data.files import is_picture
from cssformer.prepare.annotated import Annotated, Export, Pictures, read_text, split_words, within
from cssformer.prepare.archives import Member
from cssformer.prepare.benchmark import full_name
from cssformer.prepare.shapes import Polygons, Shape, Size
from cssformer.prepare.writer import Faults
from cssformer.utils.errors import UserError
from cssformer.utils.text import parse_yaml


def read(members: Sequence[Member], faults: Faults) -> Export:
    """Find the pictures that ``data.yaml`` names and their polygons.

    Raises:
        UserError: there is no ``data.yaml``, or not one alone, or it or a list is broken; no picture has labels.
    """
    described = {member: parse_yaml(read_text(member), member) for member in members if _is_yaml(member.name)}
    described = {member: content for member, content in described.items() if "names" in content}
    names_alone = [member for member in members if member.name.rpartition("/")[2] == "classes.txt"]
    if not described and len(names_alone) == 1:
        described = {names_alone[0]: {"names": read_text(names_alone[0]).splitlines(), "": "images"}}
    if len(described) != 1:
        raise UserError(f"The source has {len(described)} YAML files with names of classes; give one data.yaml.")
    ((member, content),) = described.items()
    if not {*SPLITS, ""} & content.keys():
        raise UserError(f"{member} names no pictures; put them into images beside it and add the line 'train: images'.")
    with within(member):
        names = content["names"]
        numbered = names.items() if isinstance(names, dict) else enumerate(names)
        class_of = {int(key): str(name) for key, name in numbered}
    texts = _Texts(members, member)
    elsewhere = _pictures_elsewhere(member, members, faults) if "" in content else []
    found: dict[Member, Annotated] = {}
    sources = [member]
    for split in [""] if elsewhere else (*SPLITS, ""):
        for picture in elsewhere or _pictures(content.get(split), split, member, members, faults):
            labels = texts.of(picture, split)
            place = str(labels or picture)
            sources += [labels] if labels else []
            shapes = partial(_shapes, labels, class_of)
            other = found.setdefault(picture, Annotated(picture, picture.name, place, None, shapes, split or None))
            if other.split != (split or None):
                raise UserError(f"{picture} is in two splits, {other.split} and {split}; leave it in one.")
    lists = [each for split in SPLITS for each in _listed(content.get(split)) if str(each).endswith(".txt")]
    for labels in [] if elsewhere or lists else texts.without_picture(sources[1:]):
        with faults.caught():
            raise UserError(f"{labels} is the label of a picture that is not there; add it, or remove both.")
    if found and len(sources) == 1:
        raise UserError(f"No picture of {member} has labels; those of images/a.jpg are labels/a.txt.")
    return Export(list(found.values()), [class_of[key] for key in sorted(class_of)], sources)


class _Texts:
    """The files of labels, each found by its picture.

    Args:
        members: all files.
        description: that of the classes.
    """

    def __init__(self, members: Sequence[Member], description: Member) -> None:
        self._source = description.source
        self._texts = {(each.source, each.name): each for each in members if each.name.lower().endswith(".txt")}
        self._named: dict[str, list[Member]] = defaultdict(list)
        for each in self._texts.values():
            if each.source == self._source and "labels" in each.name.split("/"):
                self._named[Path(each.name).stem].append(each)

    def of(self, picture: Member, split: str) -> Member | None:
        """The labels where they belong, or, of a picture of another source, those that are called like it."""
        beside = [self._texts[key] for key in _label_names(picture) if key in self._texts]
        if beside or picture.source == self._source:
            return next(iter(beside), None)
        there = self._named[Path(picture.name).stem]
        if len(there) > 1:
            there = [each for each in there if split in split_words(each.name)]
        if len(there) > 1:
            raise UserError(f"{there[0]} and {there[1]} may both be the label of {picture}; leave one there.")
        return next(iter(there), None)

    def without_picture(self, labels: Sequence[Member]) -> list[Member]:
        """The files of polygons that stand among the ``labels`` of pictures."""
        known, folders = set(labels), {(each.source, posixpath.dirname(each.name)) for each in labels}
        polygon = re.compile(r"\s*\d+(\s+[\d.e+-]+){4,}\s*$")
        return [
            each
            for (source, name), each in self._texts.items()
            if each not in known
            and (source, posixpath.dirname(name)) in folders
            and polygon.match(read_text(each).partition("\n")[0])
        ]


def _is_yaml(name: str) -> bool:
    return name.lower().endswith((".yaml", ".yml"))


def _listed(entry: Any) -> list[Any]:
    """The folders and lists of a split."""
    return entry if isinstance(entry, list) else [entry] if entry else []


def _pictures(entry: Any, split: str, member: Member, members: Sequence[Member], faults: Faults) -> Iterator[Member]:
    """The pictures of a split: of folders and lists, one or several."""
    pictures = Pictures(members)
    for each in _listed(entry):
        parts = [part for part in str(each).replace("\\", "/").split("/") if part not in ("", ".", "..")]
        # Paths are often of another machine, or begin above the folder: their ends tell, but not images alone.
        ends = ["/".join(parts[number:]) for number in range(len(parts)) if number == 0 or parts[number:] != ["images"]]
        if str(each).endswith(".txt"):
            lists = [found for end in ends for found in members if full_name(found).endswith(f"/{end}")]
            if not lists:
                raise UserError(f"{member} names the list {each}, which is not there.")
            for line in filter(None, map(str.strip, read_text(lists[0]).splitlines())):
                with faults.caught():
                    yield pictures.find(line, lists[0])
            continue
        inside = ([found for found in members if f"/{end}/" in full_name(found)] for end in ends)
        there = next((found for found in inside if found), [])
        chosen = [found for found in there if is_picture(Path(found.name))]
        # Roboflow names a folder of test pictures whether there are any or not.
        if not chosen and split != "test":
            raise UserError(f"{member} names the folder {each}, which is not there or holds no pictures.")
        yield from chosen


def _pictures_elsewhere(member: Member, members: Sequence[Member], faults: Faults) -> list[Member]:
    """Of ``classes.txt`` without pictures beside it, those of other sources that labels are called like."""
    folder = member.name.rpartition("classes.txt")[0]
    own = [each for each in members if each.source == member.source]
    if any(each.name.startswith(f"{folder}images/") and is_picture(Path(each.name)) for each in own):
        return []
    pictures, found = Pictures(members), []
    for labels in own:
        if labels.name.startswith(f"{folder}labels/") and labels.name.endswith(".txt"):
            with faults.caught():
                found.append(pictures.find(Path(labels.name).stem, labels))
    return found


def _label_names(picture: Member) -> Iterable[tuple[Path, str]]:
    """Where the labels of a picture may stand: the last folder images is labels there, else beside it."""
    stem = posixpath.splitext(picture.name)[0] + ".txt"
    head, images, tail = f"/{stem}".rpartition("/images/")
    if images:
        yield picture.source, f"{head}/labels/{tail}".lstrip("/")
    yield picture.source, stem


def _shapes(labels: Member | None, class_of: dict[int, str], size: Size) -> Iterable[Shape]:
    for number, line in enumerate(read_text(labels).splitlines() if labels else (), 1):
        place = f"{labels}, line {number},"
        with within(place):
            words = line.split()
            if not words:
                continue
            if len(words) == 5:
                raise ValueError("it is a box, not a polygon; export segmentation labels")
            if float(words[0]) not in class_of:
                raise UserError(f"{place} has the class {words[0]}, which data.yaml does not name.")
            shares = [float(word) for word in words[1:]]
            points = [share * size[1 - index % 2] for index, share in enumerate(shares)]
            yield Shape(class_of[int(float(words[0]))], Polygons([points]), place)
