"""Exports that the tools' own packages wrote become, pixel by pixel, the labels that the tools' own decoders give."""

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from cssformer.data import IGNORE, DatasetInfo, SegmentationFolder
from cssformer.prepare.annotated import Export
from cssformer.prepare.archives import open_source
from cssformer.prepare.export import prepare_export
from cssformer.prepare.shapes import Ellipse, Polygons
from cssformer.prepare.writer import Faults

EXPORTS = Path(__file__).parent / "exports"
SIZE = (36, 48)
CLASSES = ("car", "tree", "sky")
# Of each: the format, and whether an outline may differ, because the tool's decoder draws outlines half a pixel wide.
KINDS = {
    "coco": ("coco", False),
    "panoptic": ("coco", False),
    "cvat": ("cvat", False),
    "voc": ("voc", False),
    "label_studio": ("label_studio", False),
    "label_studio_png": ("label_studio", False),
    "yolo": ("yolo", True),
    "labelme": ("labelme", True),
}


def expected(kind: str) -> dict[str, np.ndarray]:
    """Name -> label: 0 without a shape, else 1 and the place in CLASSES."""
    return {path.stem: np.array(Image.open(path)) for path in (EXPORTS / "expected" / kind).iterdir()}


def prepared(folder: Path) -> dict[str, np.ndarray]:
    """Name -> label in the numbers of ``expected``."""
    classes = DatasetInfo.load(folder).classes
    table = np.array([CLASSES.index(name) + 1 if name in CLASSES else 0 for name in classes])
    samples = [sample for split in ("train", "val") for sample in SegmentationFolder(folder, split)]
    return {
        sample.name.rpartition("-")[2]: np.where(sample.label == IGNORE, 0, table[np.maximum(sample.label, 0)])
        for sample in samples
    }


def near_outlines(export: Export) -> dict[str, np.ndarray]:
    """Pixels whose centre is within 1.5 pixels of a polygon's outline or a circle's."""
    down, across = np.indices(SIZE) + 0.5
    centres = shapely.points(across.ravel(), down.ravel())
    near = {}
    for picture in export.pictures:
        away = np.full(SIZE, np.inf)
        for shape in picture.shapes(SIZE):
            if isinstance(shape.region, Polygons):
                rings = [shapely.LinearRing(np.reshape(part, (-1, 2))) for part in shape.region.parts]
                away = np.minimum(away, shapely.distance(shapely.MultiLineString(rings), centres).reshape(SIZE))
            elif isinstance(shape.region, Ellipse):
                x, y = shape.region.centre
                away = np.minimum(away, abs(np.hypot(across - x, down - y) - shape.region.radii[0]))
        near[Path(picture.path).stem] = away <= 1.5
    return near


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("archive", [False, True])
def test_labels_are_those_of_the_tool(tmp_path, kind, archive):
    module, outlines = KINDS[kind]
    source = EXPORTS / kind
    if archive:
        source = Path(shutil.make_archive(str(tmp_path / "export"), "zip", source))
    read = importlib.import_module(f"cssformer.prepare.{module}").read
    prepare_export(read, [source], tmp_path / "out", val_share=0.3)
    ours, theirs = prepared(tmp_path / "out"), expected(kind)
    assert ours.keys() == theirs.keys() == {"a", "b", "c"}
    with open_source(source) as members:
        near = near_outlines(read(members, Faults())) if outlines else {}
    for name, label in theirs.items():
        differs = ours[name] != label
        assert not (differs & ~near[name] if outlines else differs).any(), name
    if not kind.startswith("label_studio"):
        assert DatasetInfo.load(tmp_path / "out").counts == {"train": 2, "val": 1}
