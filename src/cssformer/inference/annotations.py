"""Predictions as labelling tools and other programs take them back.

COCO and Label Studio get a mask of run lengths for each class, exact to the pixel; the others get the outline of each
region. Where a tool's polygons know no holes, labelme and CVAT get a region with holes as a mask, YOLO cut in pieces.
"""

import base64
import json
import os
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.data.image_io import encode_png
from cssformer.data.rasters import in_pixels, on_earth
from cssformer.inference.prediction import Prediction
from cssformer.inference.regions import Region, regions, run_lengths
from cssformer.utils.atomic import atomic_text
from cssformer.utils.errors import UserError

_OF_ALL = {"coco": "coco.json", "label-studio": "label-studio.json", "cvat": "cvat.xml"}


class AnnotationFiles:
    """Files of annotations below a folder: one for each picture, or one for all of them, written at the end.

    Args:
        folder: where to write.
        formats: some of :data:`cssformer.inference.files.FORMATS`; ``coco.json``, ``label-studio.json`` (and
            ``label-studio.xml``, the labelling interface that it needs) and ``cvat.xml`` are of all pictures,
            ``labelme/NAME.json``, ``geojson/NAME.geojson`` and ``yolo/labels/NAME.txt`` (with ``yolo/data.yaml``) of
            one.
        classes: a name per class.
        colours: an RGB colour per class.
        without: names of classes that are left out.
        model: how predictions name what made them.
        tolerance, min_area: of outlines; see :func:`cssformer.inference.regions.regions`.

    Raises:
        UserError: a file of all pictures is there already.
    """

    def __init__(
        self,
        folder: Path,
        formats: Sequence[str],
        classes: Sequence[str],
        colours: Sequence[tuple[int, int, int]],
        without: Sequence[str],
        model: str,
        tolerance: float = 1.0,
        min_area: float = 0.0,
    ) -> None:
        for name in formats:
            if name in _OF_ALL and (folder / _OF_ALL[name]).exists():
                raise UserError(f"{folder / _OF_ALL[name]} is there already; give another output or remove it.")
        if min(tolerance, min_area) < 0:
            raise UserError("The tolerance and min_area of outlines cannot be below 0.")
        self.folder, self.formats, self.classes, self.colours = folder, formats, classes, colours
        self.without, self.model, self.tolerance, self.min_area = set(without), model, tolerance, min_area
        self.entries: dict[Path, dict[str, Any]] = {}
        """Place -> what each file of all pictures holds of the picture there, but for running numbers."""

    def add(self, prediction: Prediction, picture: Path, place: Path, placed: bool = False) -> None:
        """Write, or keep for the end, what was found in a picture.

        Args:
            prediction: of the picture.
            picture: its file.
            place: its path below the input, without suffix but where others differ in that alone.
            placed: the picture is a TIFF that tells its place on the Earth, which GeoJSON then gives.

        Raises:
            UserError: a file cannot be written.
        """
        name = (place.parent / picture.name).as_posix()
        entry: dict[str, Any] = {}
        if "coco" in self.formats:
            entry["coco"] = self._coco_image(prediction, name)
        if "label-studio" in self.formats:
            entry["label-studio"] = self._task(prediction, name)
        if {"geojson", "labelme", "cvat", "yolo"} & set(self.formats):
            self._add_outlines(prediction, picture, place, placed, name, entry)
        self.entries[place] = entry

    def _add_outlines(
        self, prediction: Prediction, picture: Path, place: Path, placed: bool, name: str, entry: dict[str, Any]
    ) -> None:
        if prediction.multilabel:
            found, numbers = prediction.polygons(self.tolerance, self.min_area), np.zeros(0, np.int32)
        else:
            look = (prediction.confidence, self.tolerance, self.min_area)
            found, numbers = regions(prediction.labels, self.classes, *look)
        found = [each for each in found if each.name not in self.without]
        if "geojson" in self.formats:
            where = on_earth(picture) if placed else in_pixels
            features = [_feature(each, where) for each in found]
            self._write(f"geojson/{place}.geojson", json.dumps({"type": "FeatureCollection", "features": features}))
        if "labelme" in self.formats:
            self._write_labelme(found, numbers, picture, place)
        if "cvat" in self.formats:
            entry["cvat"] = _cvat_image(found, numbers, name)
        if "yolo" in self.formats:
            size = np.array(prediction.labels.shape[::-1])
            lines = [
                " ".join([str(each.index), *(f"{share:.9g}" for share in (piece / size).ravel())])
                for each in found
                for piece in each.pieces()
            ]
            self._write(f"yolo/labels/{place}.txt", "".join(f"{line}\n" for line in lines))

    def close(self) -> None:
        """Write the files of all pictures; raises UserError where one cannot be written."""
        if "coco" in self.formats:
            self._write(_OF_ALL["coco"], json.dumps(self._coco()))
        if "label-studio" in self.formats:
            self._write(_OF_ALL["label-studio"], json.dumps([each["label-studio"] for each in self.entries.values()]))
            self._write("label-studio.xml", self._interface())
        if "cvat" in self.formats:
            root = self._cvat_head()
            for number, each in enumerate(self.entries.values()):
                root.append(ElementTree.Element("image", {"id": str(number), **each["cvat"].attrib}))
                root[-1].extend(each["cvat"])
            ElementTree.indent(root)
            self._write(_OF_ALL["cvat"], ElementTree.tostring(root, "unicode") + "\n")
        if "yolo" in self.formats:
            # JSON is YAML, and knows how to quote.
            names = "".join(f"  {index}: {json.dumps(name)}\n" for index, name in enumerate(self.classes))
            self._write("yolo/data.yaml", f"names:\n{names}")

    def _write(self, name: str, text: str) -> None:
        atomic_text(self.folder / name, text)

    def _present(self, prediction: Prediction) -> list[tuple[int, str, float | None]]:
        """Each class that occurs, with its mean confidence."""
        if prediction.multilabel:
            names = set(prediction.shares) - self.without
            return [(index, name, None) for index, name in enumerate(self.classes) if name in names]
        known = prediction.labels >= 0
        pixels = np.bincount(prediction.labels[known], minlength=len(self.classes))
        sums = None
        if prediction.confidence is not None:
            sums = np.bincount(prediction.labels[known], prediction.confidence[known], len(self.classes))
        return [
            (index, name, None if sums is None else float(sums[index] / pixels[index]))
            for index, name in enumerate(self.classes)
            if pixels[index] and name not in self.without
        ]

    def _coco(self) -> dict[str, list[Any]]:
        images, annotations, ids = [], [], count(1)
        for number, each in enumerate(self.entries.values(), 1):
            image, of_image = each["coco"]
            images.append({"id": number, **image})
            annotations += [{"id": next(ids), "image_id": number, **annotation} for annotation in of_image]
        named = enumerate(self.classes, 1)
        categories = [{"id": index, "name": name} for index, name in named if name not in self.without]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _coco_image(self, prediction: Prediction, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The picture and its annotations, without ids."""
        height, width = prediction.labels.shape
        annotations = []
        for index, _, score in self._present(prediction):
            mask = prediction.mask(index)
            annotation = {
                "category_id": index + 1,
                "segmentation": run_lengths(mask),
                "area": int(mask.sum()),
                "bbox": list(cv2.boundingRect(mask.astype(np.uint8))),
                "iscrowd": 0,
            }
            annotations.append(annotation | ({} if score is None else {"score": round(score, 4)}))
        return {"file_name": name, "width": width, "height": height}, annotations

    def _task(self, prediction: Prediction, name: str) -> dict[str, Any]:
        height, width = prediction.labels.shape
        results, scores = [], []
        for index, label, score in self._present(prediction):
            rle = encode_brush(prediction.mask(index))
            results.append(
                {
                    "id": f"class{index}",
                    "type": "brushlabels",
                    "from_name": "label",
                    "to_name": "image",
                    "original_width": width,
                    "original_height": height,
                    "image_rotation": 0,
                    "value": {"format": "rle", "rle": rle, "brushlabels": [label]},
                }
                | ({} if score is None else {"score": score})
            )
            scores += [] if score is None else [score]
        prediction_of: dict[str, Any] = {"model_version": self.model, "result": results}
        prediction_of |= {"score": float(np.mean(scores))} if scores else {}
        return {"data": {"image": f"/data/local-files/?d={name}"}, "predictions": [prediction_of]}

    def _interface(self) -> str:
        view = ElementTree.Element("View")
        ElementTree.SubElement(view, "Image", name="image", value="$image")
        brush = ElementTree.SubElement(view, "BrushLabels", name="label", toName="image")
        for name, rgb in zip(self.classes, self.colours, strict=True):
            if name not in self.without:
                ElementTree.SubElement(brush, "Label", value=name, background=_hex(rgb))
        ElementTree.indent(view)
        return ElementTree.tostring(view, "unicode") + "\n"

    def _write_labelme(self, found: list[Region], numbers: NDArray[np.int32], picture: Path, place: Path) -> None:
        path = self.folder / "labelme" / f"{place}.json"
        shapes = []
        for each in found:
            shape: dict[str, Any] = {"shape_type": "polygon", "points": each.exterior.tolist()}
            if each.holes:
                mask, left, top = _cropped(numbers == each.number)
                coded = base64.b64encode(encode_png(mask.astype(np.uint8) * 255)).decode()
                points = [[left, top], [left + mask.shape[1] - 1, top + mask.shape[0] - 1]]
                shape = {"shape_type": "mask", "points": points, "mask": coded}
            shapes.append({"label": each.name, "group_id": None, "description": "", "flags": {}, **shape})
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": Path(os.path.relpath(picture.resolve(), path.resolve().parent)).as_posix(),
            "imageData": None,
            "imageHeight": numbers.shape[0],
            "imageWidth": numbers.shape[1],
        }
        self._write(f"labelme/{place}.json", json.dumps(content, indent=1))

    def _cvat_head(self) -> ElementTree.Element:
        root = ElementTree.Element("annotations")
        ElementTree.SubElement(root, "version").text = "1.1"
        meta = ElementTree.SubElement(root, "meta")
        labels = ElementTree.SubElement(ElementTree.SubElement(meta, "task"), "labels")
        for name, rgb in zip(self.classes, self.colours, strict=True):
            if name not in self.without:
                label = ElementTree.SubElement(labels, "label")
                ElementTree.SubElement(label, "name").text = name
                ElementTree.SubElement(label, "color").text = _hex(rgb)
        return root


def _cvat_image(found: list[Region], numbers: NDArray[np.int32], name: str) -> ElementTree.Element:
    height, width = map(str, numbers.shape)
    image = ElementTree.Element("image", name=name, width=width, height=height)
    for order, each in enumerate(found):
        shared = {"label": each.name, "source": "auto", "occluded": "0", "z_order": str(order)}
        if not each.holes:
            points = ";".join(f"{x:.2f},{y:.2f}" for x, y in each.exterior)
            ElementTree.SubElement(image, "polygon", {**shared, "points": points})
            continue
        mask, left, top = _cropped(numbers == each.number)
        flat = mask.ravel()
        edges = np.flatnonzero(np.diff(flat, prepend=False))
        rle = ", ".join(map(str, np.diff(edges, prepend=0, append=flat.size)))
        box = {"left": str(left), "top": str(top), "width": str(mask.shape[1]), "height": str(mask.shape[0])}
        ElementTree.SubElement(image, "mask", {**shared, "rle": rle, **box})
    return image


def _feature(region: Region, where: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> dict[str, Any]:
    corners = [where(ring).tolist() for ring in (region.exterior, *region.holes)]
    rings = [[*ring, ring[0]] for ring in corners]
    properties = {"class": region.name, "index": region.index, "area": region.area, "score": region.score}
    return {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": rings}}


def _cropped(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int, int]:
    """The box of a mask's pixels, and its left and top."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return mask[top : top + height, left : left + width], left, top


def _hex(colour: tuple[int, int, int]) -> str:
    return "#" + bytes(colour).hex()


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """A mask (H, W) as Label Studio's brush: bytes of thi.ng's rle-pack, four equal values for each pixel.

    See :func:`cssformer.prepare.label_studio.decode_brush`, which reads it.
    """
    values = mask.ravel()
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    bits = [f"{4 * values.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in (3, 4, 8, 16))]
    for start, length in zip(np.append(0, edges), np.diff(edges, prepend=0, append=values.size), strict=True):
        value = "11111111" if values[start] else "00000000"
        # A run of up to 65536 values: repeated, the last of the four sizes, length less one, value.
        for done in range(0, 4 * int(length), 65536):
            bits.append(f"111{min(65536, 4 * int(length) - done) - 1:016b}{value}")
    text = "".join(bits)
    text = text.ljust(-(-len(text) // 8) * 8, "0")
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0")).tolist()
