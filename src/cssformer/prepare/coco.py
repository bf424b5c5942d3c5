"""COCO's JSON: instances and stuff (polygons, run lengths, crowds), and panoptic labels.

A file has ``images``, ``categories`` and ``annotations``. Pictures stand where COCO (``train2017/``), Roboflow (beside
the file, ``train/_annotations.coco.json``) or CVAT (``images/``) puts them. Panoptic files name a PNG for each picture,
whose colours are segments: red + 256 green + 65536 blue.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cssformer.data.files import Readable
from cssformer.data.image_io import decode_mask
from cssformer.prepare.annotated import Annotated, Export, Pictures, read_json, split_words, within
from cssformer.prepare.archives import Member, open_source
from cssformer.prepare.class_file import Colour
from cssformer.prepare.pairing import read_folders
from cssformer.prepare.shapes import Bitmap, Polygons, Region, Runs, Shape, Size, draw
from cssformer.prepare.writer import Faults, left_out
from cssformer.utils.errors import UserError

_PANOPTIC = re.compile(r"(?:^|/)[^/]*panoptic[^/]*/", re.I)
_NO_LABELS = ("captions_*", "image_info_*", "person_keypoints_*")


def read(members: Sequence[Member], faults: Faults, annotations: list[str] | None = None) -> Export:
    """Find the pictures of COCO's files and their shapes.

    Args:
        members: all files of the sources.
        faults: what becomes of broken pictures.
        annotations: Names of the JSON files to read, such as ``instances_*``; by default all but COCO's captions,
            keypoints and lists of test pictures.

    Raises:
        UserError: no file is of COCO's form, or one is broken; two files annotate one picture.
    """
    # Both may have the same name.
    panoptics = Pictures(member for member in members if _PANOPTIC.search(member.name))
    pictures = Pictures(member for member in members if not _PANOPTIC.search(member.name))
    classes: dict[str, Colour | None] = {}
    found: dict[Readable, Annotated] = {}
    sources, others, panoptic = [], list[Member](), False
    for member in members:
        name = member.name.rpartition("/")[2]
        wanted = any(fnmatch(name, pattern) for pattern in annotations or ["*.json"])
        if not wanted or (not annotations and any(fnmatch(name, pattern) for pattern in _NO_LABELS)):
            continue
        content = read_json(member, _compact)
        if not isinstance(content, dict) or not {"categories", "annotations"} <= content.keys():
            others.append(member)
            continue
        sources.append(member)
        with within(member):
            names = {each["id"]: str(each["name"]) for each in content["categories"]}
            for each in sorted(content["categories"], key=lambda each: each["id"]):
                classes.setdefault(str(each["name"]), _colour(each.get("color")))
            panoptic |= any("segments_info" in each for each in content["annotations"])
            for picture in _pictures(content, names, member, pictures, panoptics, faults):
                other = found.setdefault(picture.image, picture)
                if other is not picture:
                    raise UserError(
                        f"{other.place} and {picture.place} both annotate {picture.path}; choose the files with "
                        "--annotations."
                    )
    if not sources:
        raise UserError(
            "No JSON file of the source has COCO's images, categories and annotations; give the folder or archive "
            "with, say, annotations/instances_train.json."
        )
    colours = {name: colour for name, colour in classes.items() if colour is not None}
    unlabeled: Literal["background", "ignore"] = "ignore" if panoptic else "background"
    notes = left_out(others, "JSON file", "COCO's categories or annotations")
    return Export(list(found.values()), list(classes), sources, unlabeled=unlabeled, colours=colours, notes=notes)


def _compact(annotation: dict[str, Any]) -> dict[str, Any]:
    """With polygons as arrays, a quarter of the memory that lists take."""
    if isinstance(parts := annotation.get("segmentation"), list):
        with suppress(ValueError):
            annotation["segmentation"] = [np.asarray(part) for part in parts]
    return annotation


def _pictures(
    content: dict[str, Any],
    names: dict[Any, str],
    member: Member,
    pictures: Pictures,
    panoptics: Pictures,
    faults: Faults,
) -> Iterable[Annotated]:
    """The pictures of one file."""
    own_split = next(iter(split_words(member.name)), None)
    for image, place, shapes in _images(content, names, member, panoptics, faults):
        with faults.caught(), within(place):
            size = (int(image["height"]), int(image["width"])) if "height" in image else None
            picture = pictures.find(image["file_name"], member)
            split = own_split or read_folders(picture.name.split("/")[:-1])[1]
            yield Annotated(picture, picture.name, place, size, shapes, split)


def _images(
    content: dict[str, Any], names: dict[Any, str], member: Member, panoptics: Pictures, faults: Faults
) -> Iterable[tuple[dict[str, Any], str, Callable[[Size], Iterable[Shape]]]]:
    """The images of one file, each with its place for messages and its shapes."""
    drawn: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    images = {each["id"]: each for each in content["images"]}
    if len(images) < len(content["images"]):
        raise UserError(f"{member} gives two images one id.")
    for each in content["annotations"]:
        with faults.caught():
            if each["image_id"] not in images:
                raise UserError(f"{member} has an annotation of the image {each['image_id']}, which it does not list.")
            drawn[each["image_id"]].append(each)
    for key, image in images.items():

        def shapes(size: Size, annotations: list[dict[str, Any]] = drawn[key]) -> Iterable[Shape]:
            for each in annotations:
                number = f" {each['id']}" if "id" in each else ""
                place = f"{member}, the annotation{number} of the image {each['image_id']},"
                with within(place):
                    if "segments_info" in each:
                        yield from _segments(each, names, member, panoptics, size)
                    else:
                        yield Shape(_name(each, names, place), _region(each["segmentation"]), place)

        yield image, f"{member}, image {key}", shapes


@dataclass(frozen=True)
class LabelMaps:
    """The label maps of a COCO file, for which its pictures are not needed.

    Attributes:
        categories: name -> id, in the order of the ids.
        panoptic: whether pixels without a shape are none of the classes, instead of the background.
        maps: name of a picture -> its label map (H, W): 0, 1, 2, ... for the categories in order, their number where
            there is no shape; of shapes that overlap the smaller lies on top. Raises UserError.
        listed: ``images`` and ``categories``, for a file of results that has neither.
    """

    categories: dict[str, int]
    panoptic: bool
    maps: dict[str, Callable[[], NDArray[Any]]]
    listed: dict[str, Any]


def read_maps(path: Path, listed: dict[str, Any] | None = None) -> LabelMaps:
    """Find the label maps of one JSON file: annotations, panoptic labels, or a list of results.

    Panoptic PNGs stand in the folder named like the file, or else beside it.

    Args:
        path: the file.
        listed: the images and categories that a list of results is of, see :class:`LabelMaps`.

    Raises:
        UserError: it is not of COCO's form, two images have one name, or it is a list and ``listed`` is None.
    """
    member = Member(path.parent, path.name, path.stat().st_size, path.read_bytes)
    content = read_json(member)
    if isinstance(content, list):
        if listed is None:
            raise UserError(f"{path} is a list of results without images; score it against a COCO file that has them.")
        content = {**listed, "annotations": content}
    if not isinstance(content, dict) or not {"images", "categories", "annotations"} <= content.keys():
        raise UserError(f"{path} has not COCO's images, categories and annotations.")
    folder = path.with_suffix("")
    with ExitStack() as opened, within(path):
        files = opened.enter_context(open_source(folder if folder.is_dir() else path.parent))
        names = {each["id"]: str(each["name"]) for each in content["categories"]}
        categories = {names[key]: int(key) for key in sorted(names)}
        if len(categories) < len(content["categories"]):
            raise UserError(f"{path} gives two categories one id or name.")
        value_of = {name: value for value, name in enumerate(categories)}
        maps: dict[str, Callable[[], NDArray[Any]]] = {}
        for image, place, shapes in _images(content, names, member, Pictures(files), Faults()):
            name = Path(str(image["file_name"])).stem

            def labels(image: Any = image, place: str = place, shapes: Any = shapes) -> NDArray[Any]:
                with within(place):
                    size = int(image["height"]), int(image["width"])
                    return draw(shapes(size), value_of, size, len(value_of), "smaller")

            if maps.setdefault(name, labels) is not labels:
                raise UserError(f"{path} has two images of the name {name}.")
    panoptic = any("segments_info" in each for each in content["annotations"])
    return LabelMaps(categories, panoptic, maps, {key: content[key] for key in ("images", "categories")})


def _name(annotation: dict[str, Any], names: dict[Any, str], place: str) -> str:
    if annotation["category_id"] not in names:
        raise UserError(f"{place} has the category {annotation['category_id']}, which the file does not list.")
    return names[annotation["category_id"]]


def _region(segmentation: Any) -> Region:
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
        return Runs((height, width), segmentation["counts"])
    if not segmentation:
        raise ValueError("it has a box at most, but no outline")
    return Polygons(list(segmentation))


def _segments(
    annotation: dict[str, Any], names: dict[Any, str], member: Member, panoptics: Pictures, size: Size
) -> Iterable[Shape]:
    """The segments of a panoptic PNG; black is none."""
    file = panoptics.find(annotation["file_name"], member)
    colours = decode_mask(file.read_bytes(), shown := Path(str(file))).colours(shown)
    if colours.shape != size:
        raise ValueError(f"{file} is {colours.shape[1]}x{colours.shape[0]}, but the picture is {size[1]}x{size[0]}")
    rest = colours != 0
    for each in annotation["segments_info"]:
        number = int(each["id"])
        pixels = colours == ((number & 255) << 16 | (number >> 8 & 255) << 8 | number >> 16)
        rest &= ~pixels
        place = f"{file}, segment {number},"
        yield Shape(_name(each, names, place), Bitmap(pixels), place)
    if rest.any():
        colour = int(colours[rest][0])
        number = colour >> 16 | (colour >> 8 & 255) << 8 | (colour & 255) << 16
        raise UserError(f"{file} has pixels of the segment {number}, which {member} does not list.")


def _colour(value: Any) -> Colour | None:
    if not isinstance(value, list) or len(value) != 3:
        return None
    red, green, blue = (int(part) & 255 for part in value)
    return red, green, blue
