"""Label Studio's JSON: polygons, rectangles, ellipses and brush masks, in per cent of the picture.

The export has no pictures: give their folder too. They are found by what the task calls them:
``/data/upload/1/ab12cd34-a.jpg`` also as ``a.jpg``, ``/data/local-files/?d=folder/a.jpg`` and addresses by their ends.
Of several annotations of a picture the one marked as ground truth counts, else the first that is not cancelled.

The export of brushes as PNG, ``task-ID-annotation-ID-by-WHO-TAG-LABEL-N.png``, names no pictures: they are those of the
project's JSON or JSON-MIN, whose tasks may be without annotations.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from cssformer.data.image_io import decode_mask
from cssformer.prepare.annotated import Annotated, Export, Pictures, read_json, within
from cssformer.prepare.archives import Member
from cssformer.prepare.cvat import turned_box
from cssformer.prepare.shapes import Bitmap, Ellipse, Polygons, Region, Shape, Size
from cssformer.prepare.writer import Faults
from cssformer.utils.console import counted
from cssformer.utils.errors import UserError

_AREAS = {f"{kind}{labels}" for kind in ("polygon", "rectangle", "ellipse", "brush") for labels in ("", "labels")}
# Labels may hold dashes, the names of annotators none.
_BRUSHES = re.compile(r"(?:^|/)task-(\d+)-annotation-(\d+)-by-[^-]*-[^-]+-(.+)-\d+\.(png|npy)$")
# What Label Studio puts before the names of uploaded files.
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")


def read(members: Sequence[Member], faults: Faults) -> Export:
    """Find the pictures of Label Studio's tasks and their shapes.

    Raises:
        UserError: no file is of Label Studio's form, or one is broken.
    """
    pictures, painted = Pictures(members), _painted(members)
    found, sources, labels = [], [], set[str]()
    several = without = 0
    for member, tasks in _tasks(members, bool(painted)):
        sources.append(member)
        for number, task in enumerate(tasks):
            place = f"{member}, task {task.get('id', number) if isinstance(task, dict) else number}"
            with faults.caught(), within(place):
                brushes = painted.pop(task.get("id"), {})
                if brushes and not task.get("annotations"):
                    several += len(brushes) > 1
                    layers = brushes[min(brushes)]
                    sources += [brush for _, brush in layers]
                    names, size, shapes = [name for name, _ in layers], None, partial(_brushes, layers)
                elif "annotations" not in task and "predictions" in task:
                    raise UserError(f"{place} has predictions alone; accept them in Label Studio and export that.")
                else:
                    given = [each for each in task["annotations"] if not each.get("was_cancelled")]
                    several += len(given) > 1
                    without += not given
                    if not given:
                        continue
                    drawn, size = _drawn(next((each for each in given if each.get("ground_truth")), given[0]))
                    names, shapes = [name for name, _ in drawn], partial(_shapes, drawn, place)
                picture = _picture(task["data"], member, pictures)
                labels.update(names)
                found.append(Annotated(picture, picture.name, place, size, shapes, None))
    for annotations in painted.values():
        ((_, brush), *_), *_ = annotations.values()
        reason = "no JSON file lists its task" if sources else "export the project as JSON, which holds the brushes too"
        with faults.caught():
            raise UserError(f"{brush} is of Label Studio's export of brushes, which names no pictures; {reason}.")
    if not sources:
        raise UserError("No JSON file of the source is a list of Label Studio's tasks; export the project as JSON.")
    notes = []
    if several:
        each = f"Of each of {counted(several, 'task')} with several annotations"
        notes.append(f"{each} the one marked as ground truth counts, else the first not cancelled.")
    if without:
        notes.append(f"{counted(without, 'task')} without annotation left out.")
    # By name, because the export knows no order and more tasks must not change it.
    return Export(found, sorted(labels), sources, notes=notes)


def _tasks(members: Sequence[Member], painted: bool) -> Iterable[tuple[Member, list[Any]]]:
    """The files that are lists of tasks, and these; where brushes are files of their own, JSON-MIN is one too."""
    for member in members:
        tasks = read_json(member) if member.name.lower().endswith(".json") else None
        if not isinstance(tasks, list):
            continue
        known = [task for task in tasks if isinstance(task, dict)]
        if any("data" in task for task in known):
            yield member, tasks
        elif painted and any("id" in task for task in known):
            # JSON-MIN has the data beside the id.
            yield member, [{"id": task.get("id"), "data": task, "annotations": []} for task in known]


def _drawn(annotation: dict[str, Any]) -> tuple[list[tuple[str, dict[str, Any]]], Size | None]:
    """The regions of an annotation with their labels, and the size of the picture, if there are any."""
    results = [each for each in annotation["result"] if each.get("type") in (*_AREAS, "labels")]
    results = [each for each in results if {"rle", "points", "x"} & each["value"].keys()]
    sizes = {(int(each["original_height"]), int(each["original_width"])) for each in results}
    if len(sizes) > 1:
        raise ValueError(f"its regions are of pictures of {len(sizes)} sizes")
    return list(_labelled(results)), next(iter(sizes), None)


def _painted(members: Sequence[Member]) -> dict[int, dict[int, list[tuple[str, Member]]]]:
    """The brushes of each annotation of each task, and their labels, of the export as PNG."""
    found: dict[int, dict[int, list[tuple[str, Member]]]] = defaultdict(lambda: defaultdict(list))
    for member in members:
        if match := _BRUSHES.search(member.name):
            found[int(match[1])][int(match[2])].append((match[3], member))
    return found


def _brushes(painted: Sequence[tuple[str, Member]], size: Size) -> Iterable[Shape]:
    for name, member in painted:
        place = Path(str(member))
        pixels = decode_mask(member.read_bytes(), place).ids(place)
        if pixels.shape != size:
            raise UserError(f"{place} is {pixels.shape[1]}x{pixels.shape[0]}, but its picture is {size[1]}x{size[0]}.")
        yield Shape(name, Bitmap(pixels > 0), str(member))


def _picture(data: dict[str, Any], member: Member, pictures: Pictures) -> Member:
    """The picture of a task: the value that is called image, or the first that names a file."""
    keys = [key for key, value in data.items() if isinstance(value, str) and "." in value.rpartition("/")[2]]
    key = next((key for key in ("image", *keys) if key in data), None)
    if key is None:
        raise ValueError("its data name no picture")
    address = urlsplit(str(data[key]))
    name = parse_qs(address.query)["d"][0] if "d" in parse_qs(address.query) else unquote(address.path)
    folder, _, last = name.rpartition("/")
    try:
        return pictures.find(name, member)
    except UserError:
        if not _UPLOAD.match(last):
            raise
        return pictures.find(f"{folder}/{_UPLOAD.sub('', last)}", member)


def _labelled(results: list[dict[str, Any]]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Each region with its label; where shapes and labels are tags of their own, a region is there twice, once bare."""
    labels = [each["value"].get(each["type"]) or each["value"].get("labels") or [] for each in results]
    whole = {each.get("id") for each, names in zip(results, labels, strict=True) if names}
    for each, names in zip(results, labels, strict=True):
        if len(names) == 1:
            yield str(names[0]), each
        elif names or each.get("id") not in whole:
            raise ValueError(f"the region {each.get('id')} has {len(names)} labels; give it one")


def _shapes(drawn: list[tuple[str, dict[str, Any]]], place: str, size: Size) -> Iterable[Shape]:
    for name, each in drawn:
        where = f"{place}, region {each.get('id')} ({name}),"
        with within(where):
            yield Shape(name, _region(each["value"], size), where)


def _region(value: dict[str, Any], size: Size) -> Region:
    height, width = size
    if "rle" in value:
        return Bitmap(decode_brush(value["rle"], size))
    if "points" in value:
        return Polygons([[number for x, y in value["points"] for number in (x * width / 100, y * height / 100)]])
    x, y = value["x"] * width / 100, value["y"] * height / 100
    degrees = float(value.get("rotation") or 0)
    if "radiusX" in value:
        return Ellipse((x, y), (value["radiusX"] * width / 100, value["radiusY"] * height / 100), degrees)
    across, down = value["width"] * width / 100, value["height"] * height / 100
    # The corner that is upper left without the turn stays where it is.
    centred = np.reshape(turned_box(-across / 2, -down / 2, across / 2, down / 2, degrees), (-1, 2))
    return Polygons([(centred - centred[0] + (x, y)).ravel().tolist()])


def decode_brush(rle: Sequence[int], size: Size) -> NDArray[np.bool_]:
    """The pixels (H, W) of a brush mask, wherever its alpha is above 0.

    The bytes are those of thi.ng's rle-pack: 32 bits tell how many values there are, 4 for each pixel, 5 bits the bits
    of a value less one, four times 4 bits the bits of a length less one. Then come runs: a bit tells whether one value
    is repeated or values follow each other, 2 bits which of the four lengths tells how many less one.

    Raises:
        ValueError: there are too few or too many values.
    """
    bits = np.unpackbits(np.asarray(rle, np.uint8))
    text = (bits + ord("0")).tobytes().decode()
    place = 0

    def number(count: int) -> int:
        nonlocal place
        place += count
        if place > len(text):
            raise ValueError("its brush mask is cut off")
        return int(text[place - count : place], 2)

    total, word = number(32), number(5) + 1
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"its brush mask has {total} values, but the picture has 4 times {size[0] * size[1]}")
    lengths = [number(4) + 1 for _ in range(4)]
    values, at = np.zeros(total, bool), 0
    while at < total:
        repeated = number(1)
        end = at + 1 + number(lengths[number(2)])
        if end > total:
            raise ValueError("its brush mask has more values than pixels")
        if repeated:
            values[at:end] = number(word) > 0
        else:
            values[at:end] = [number(word) > 0 for _ in range(at, end)]
        at = end
    return values.reshape(*size, 4)[..., 3]
