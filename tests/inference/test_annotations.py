"""Label -> annotations -> label: exact for masks and for outlines without a tolerance, within it for others."""

import importlib
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from cssformer.cli import main
from cssformer.data import DatasetInfo, SegmentationFolder
from cssformer.inference import Prediction, predict_files
from cssformer.inference.annotations import AnnotationFiles, encode_brush
from cssformer.inference.regions import regions
from cssformer.model import CSSFormer
from cssformer.prepare.export import prepare_export
from cssformer.prepare.label_studio import decode_brush
from cssformer.prepare.shapes import Polygons, Shape, draw
from cssformer.utils.errors import UserError

CLASSES = ("background", "car", "tree")
COLOURS = ((0, 0, 0), (200, 0, 0), (0, 200, 0))
ROWS, COLUMNS = 21, 17


def label_map(seed: int, cell: int = 1) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 3, (-(-ROWS // cell), -(-COLUMNS // cell)))
    return np.kron(small, np.ones((cell, cell), int))[:ROWS, :COLUMNS].astype(np.int32)


def blobs(seed: int) -> np.ndarray:
    """Large round regions, some with holes."""
    rows, columns = np.indices((60, 80)) + 0.5
    rng = np.random.default_rng(seed)
    labels = np.zeros((60, 80), np.int32)
    for radius in (25, 20, 14, 9, 5):
        x, y = rng.uniform((25, 25), (55, 35))
        labels[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = rng.integers(0, 3)
    return labels


def ring() -> np.ndarray:
    labels = np.zeros((9, 12), np.int32)
    labels[1:8, 2:11] = 1
    labels[3:6, 4:7] = 2
    labels[8, 11] = 1
    return labels


def prediction(labels: np.ndarray) -> Prediction:
    picture = np.repeat(labels[..., None] * 60, 3, -1).astype(np.uint8)
    confidence = np.linspace(0.3, 1, labels.size, dtype=np.float32).reshape(labels.shape)
    return Prediction(picture, labels, confidence, CLASSES, COLOURS)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_outlines_without_tolerance_are_the_label_map(seed, cell):
    labels = label_map(seed, cell)
    found, numbers = regions(labels, CLASSES, tolerance=0)
    pieces = [Shape(each.name, Polygons([piece.ravel().tolist()]), "") for each in found for piece in each.pieces()]
    drawn = draw(pieces, {name: index for index, name in enumerate(CLASSES)}, labels.shape, 9, "first")
    assert (drawn == labels).all()
    assert (draw(pieces, dict.fromkeys(CLASSES, 1), labels.shape, 0, "first") == 1).all()
    assert [each.area for each in found] == sorted((each.area for each in found), reverse=True)
    for each in found:
        assert each.area == (numbers == each.number).sum()
        assert set(labels[numbers == each.number]) == {each.index}


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.floats(0.3, 3))
@example(18, 3.0)
def test_outlines_are_moved_no_further_than_the_tolerance(seed, tolerance):
    labels = blobs(seed)
    exact, _ = regions(labels, CLASSES, tolerance=0)
    found, _ = regions(labels, CLASSES, tolerance=tolerance)
    rows, columns = np.indices(labels.shape) + 0.5
    for before, after in zip(exact, found, strict=True):
        rings = [before.exterior, *before.holes], [after.exterior, *after.holes]
        outline = shapely.MultiLineString([shapely.LinearRing(ring) for ring in rings[0]])
        whole, simple = (shapely.Polygon(own[0], own[1:]) for own in rings)
        differs = shapely.contains_xy(whole, columns, rows) != shapely.contains_xy(simple, columns, rows)
        away = shapely.distance(outline, shapely.points(columns, rows))
        assert away[differs].max(initial=0) <= tolerance + 1e-9
        for ring, simpler in zip(*rings, strict=True):
            between = shapely.LinearRing(ring), shapely.LinearRing(simpler)
            assert shapely.hausdorff_distance(*between, densify=0.2) <= tolerance + 1e-9
        assert simple.is_valid
        assert sum(map(len, rings[1])) <= sum(map(len, rings[0]))
        # Corners of the simpler outline are among those of the exact one.
        assert {tuple(point) for ring in rings[1] for point in ring} <= {tuple(p) for ring in rings[0] for p in ring}


def test_regions_of_a_ring():
    labels = ring()
    found = prediction(labels).polygons(tolerance=0)
    assert [(each.name, each.area, len(each.holes)) for each in found] == [
        ("car", 54, 1), ("background", 44, 1), ("tree", 9, 0), ("car", 1, 0),
    ]  # fmt: skip
    assert {tuple(point) for point in found[2].exterior} == {(4, 3), (7, 3), (7, 6), (4, 6)}
    assert len(prediction(labels).polygons(min_area=9)) == 3
    confidence = prediction(labels).confidence
    assert found[2].score == pytest.approx(confidence[3:6, 4:7].mean())


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_run_lengths_and_brushes_are_exact(seed, cell):
    labels = label_map(seed, cell)
    for name, runs in prediction(labels).rle().items():
        assert (coco.decode(runs) == (labels == CLASSES.index(name))).all()
    assert (decode_brush(encode_brush(labels == 1), labels.shape) == (labels == 1)).all()


def test_brushes_of_long_runs():
    mask = np.zeros((300, 400), bool)
    mask[100:] = True
    assert (decode_brush(encode_brush(mask), mask.shape) == mask).all()


def saved(folder: Path, labels: dict[str, np.ndarray], formats: list[str], tolerance: float = 0.0) -> None:
    files = AnnotationFiles(folder / "out", formats, CLASSES, COLOURS, ["background"], "mine", tolerance)
    for name, label in labels.items():
        path = folder / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        made = prediction(label)
        Image.fromarray(made.image).save(path)
        files.add(made, path, Path(name))
    files.close()


def prepared(kind: str, folder: Path, sources: list[Path]) -> dict[str, np.ndarray]:
    """The labels of a prepared folder, in the order of CLASSES."""
    read = importlib.import_module(f"cssformer.prepare.{kind}").read
    prepare_export(read, sources, folder, val_share=0.3)
    table = np.array([CLASSES.index(name) for name in DatasetInfo.load(folder).classes])
    samples = [sample for split in ("train", "val") for sample in SegmentationFolder(folder, split)]
    return {sample.name.rpartition("__")[2]: table[sample.label] for sample in samples}


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
@pytest.mark.parametrize("name", ["coco", "label-studio", "labelme", "cvat", "yolo"])
def test_round_trip(tmp_path, name, tolerance):
    labels = {"a": blobs(1), "b": ring(), "c": label_map(3, 2) if tolerance == 0 else blobs(3)}
    saved(tmp_path, labels, [name], tolerance)
    out = tmp_path / "out"
    if name == "label-studio":
        # As Label Studio exports what it imported, once it is accepted.
        tasks = json.loads((out / "label-studio.json").read_text())
        assert {task["predictions"][0]["model_version"] for task in tasks} == {"mine"}
        accepted = [{"data": each["data"], "annotations": each["predictions"]} for each in tasks]
        (out / "label-studio.json").write_text(json.dumps(accepted))
    if name == "yolo":
        content = (out / "yolo/data.yaml").read_text()
        (out / "yolo/data.yaml").write_text(f"train: images\n{content}")
        (tmp_path / "pictures").rename(out / "yolo/images")
    sources = [out] if name == "yolo" else [out, tmp_path / "pictures"]
    if name == "labelme":
        # labelme's pictures lie where the file says, from there.
        (tmp_path / "pictures").rename(out / "pictures")
        sources = [out]
    read = prepared(name.replace("-", "_"), tmp_path / "prepared", sources)
    assert read.keys() == labels.keys()
    exact = tolerance == 0 or name in ("coco", "label-studio")
    for key, label in labels.items():
        differs = read[key] != label
        assert not differs.any() if exact else differs.mean() < 0.03


@pytest.mark.parametrize("source", ["out", "out/coco.json"])
def test_what_predict_draws_is_not_the_picture(tmp_path, source):
    saved(tmp_path, {"a": blobs(1), "b": blobs(2), "c": blobs(3)}, ["coco"])
    (tmp_path / "out/legend.png").write_bytes((tmp_path / "pictures/a.png").read_bytes())
    for folder in ("labels", "overlay", "confidence"):
        (tmp_path / "out" / folder).mkdir()
        for path in (tmp_path / "pictures").iterdir():
            Image.new("RGB", (64, 48)).save(tmp_path / "out" / folder / path.name)
    prepared("coco", tmp_path / "again", [tmp_path / source, tmp_path / "pictures"])
    written = {path.name: path.read_bytes() for path in (tmp_path / "again").glob("*/images/*")}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}


def test_predictions_that_are_no_annotations_yet(tmp_path):
    saved(tmp_path, {"a": blobs(1)}, ["label-studio", "yolo"])
    with pytest.raises(UserError, match="predictions alone; accept them"):
        prepared("label_studio", tmp_path / "again", [tmp_path / "out/label-studio.json", tmp_path / "pictures"])
    with pytest.raises(UserError, match="names no pictures; put them into images"):
        prepared("yolo", tmp_path / "again", [tmp_path / "out/yolo", tmp_path / "pictures"])


def test_coco_and_its_reader(tmp_path):
    saved(tmp_path, {"a": blobs(1), "sub/b": blobs(2)}, ["coco"])
    content = json.loads((tmp_path / "out/coco.json").read_text())
    assert [each["file_name"] for each in content["images"]] == ["a.png", "sub/b.png"]
    assert content["categories"] == [{"id": 2, "name": "car"}, {"id": 3, "name": "tree"}]
    for each in content["annotations"]:
        label = {1: blobs(1), 2: blobs(2)}[each["image_id"]]
        mask = label == each["category_id"] - 1
        assert (coco.decode(each["segmentation"]) == mask).all()
        assert each["area"] == mask.sum() and each["bbox"] == coco.toBbox(each["segmentation"]).tolist()
        assert each["score"] == pytest.approx(prediction(label).confidence[mask].mean(), abs=1e-4)


def test_geojson_has_holes(tmp_path):
    labels = ring()
    saved(tmp_path, {"a": labels}, ["geojson"])
    features = json.loads((tmp_path / "out/geojson/a.geojson").read_text())["features"]
    rows, columns = np.indices(labels.shape) + 0.5
    label = np.zeros(labels.shape, int)
    for each in features:
        inside = shapely.contains_xy(shapely.geometry.shape(each["geometry"]), columns, rows)
        label[inside] = each["properties"]["index"]
    assert (label == labels).all() and any(len(each["geometry"]["coordinates"]) > 1 for each in features)


def test_the_interface_of_label_studio(tmp_path):
    saved(tmp_path, {"a": blobs(1)}, ["label-studio"])
    view = ElementTree.parse(tmp_path / "out/label-studio.xml").getroot()
    assert [each.attrib for each in view.iter("Label")] == [
        {"value": "car", "background": "#c80000"},
        {"value": "tree", "background": "#00c800"},
    ]
    (task,) = json.loads((tmp_path / "out/label-studio.json").read_text())
    for result in task["predictions"][0]["result"]:
        assert view.find(f"BrushLabels[@name='{result['from_name']}'][@toName='{result['to_name']}']") is not None


def test_what_cannot_be_saved(tmp_path):
    # Before anything is looked at.
    with pytest.raises(
        UserError, match="cannot be saved as 'coco,yolo'; there are coco, geojson, .* as separate words"
    ):
        predict_files("no model", [tmp_path], tmp_path / "out", save=["coco,yolo"])
    with pytest.raises(UserError, match="cannot be below 0"):
        AnnotationFiles(tmp_path, ["coco"], CLASSES, COLOURS, [], "mine", -1)
    (tmp_path / "coco.json").write_text("{}")
    with pytest.raises(UserError, match="coco.json is there already"):
        AnnotationFiles(tmp_path, ["coco"], CLASSES, COLOURS, [], "mine")


def test_predict_saves_annotations(tmp_path, capsys):
    model = CSSFormer("test_resnet", num_classes=3, channels=16, pretrained=False, cia=False, fusion=False)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "in").mkdir()
    for name in "ab":
        picture = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"in/{name} 1.png")
    words = ["predict", str(tmp_path / "model"), str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--save"]
    every = ["coco", "geojson", "labelme", "label-studio", "cvat", "yolo"]
    assert main([*words, *every, "--tolerance", "0", "--device", "cpu"]) == 0
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    single = {"coco.json", "label-studio.json", "label-studio.xml", "cvat.xml", "yolo/data.yaml", "legend.png"}
    each = ("labels/{}.png", "geojson/{}.geojson", "labelme/{}.json", "yolo/labels/{}.txt")
    assert files == single | {form.format(name) for form in each for name in ("a 1", "b 1")}
    label = np.array(Image.open(tmp_path / "out/labels/a 1.png"))
    content = json.loads((tmp_path / "out/coco.json").read_text())
    first = [each for each in content["annotations"] if each["image_id"] == 1]
    assert {each["category_id"] - 1 for each in first} == set(np.unique(label))
    assert all((coco.decode(each["segmentation"]) == (label == each["category_id"] - 1)).all() for each in first)
    assert main([*words, "coco"]) == 2 and "is there already" in capsys.readouterr().err


def test_pictures_that_differ_in_their_suffix_alone(tmp_path, capsys):
    """Each of another width; each file that is written speaks of the picture that it is named for."""
    model = CSSFormer("test_resnet", num_classes=3, channels=16, pretrained=False, cia=False, fusion=False)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "in").mkdir()
    for name, size in (("a.jpg", (50, 40)), ("a.png", (60, 40)), ("b.png", (40, 40))):
        Image.new("RGB", size, (90, 20, 200)).save(tmp_path / "in" / name)
    words = ["predict", str(tmp_path / "model"), str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--overlay"]
    words += ["--device", "cpu", "--clear", "[]", "--save", "coco", "labelme", "label-studio", "cvat", "geojson"]
    assert main(words) == 0
    for stem, name, width in (("a.jpg", "a.jpg", 50), ("a.png", "a.png", 60), ("b", "b.png", 40)):
        for kind, suffix in (("labels", ".png"), ("overlay", ".jpg")):
            assert Image.open(tmp_path / "out" / kind / f"{stem}{suffix}").width == width
        shown = json.loads((tmp_path / f"out/labelme/{stem}.json").read_text())
        assert (shown["imagePath"], shown["imageWidth"]) == (f"../../in/{name}", width)
        assert (tmp_path / f"out/geojson/{stem}.geojson").is_file()
        (image,) = ElementTree.parse(tmp_path / "out/cvat.xml").findall(f"image[@name='{name}']")
        assert image.get("width") == str(width)
    content = json.loads((tmp_path / "out/coco.json").read_text())
    assert [(each["file_name"], each["width"]) for each in content["images"]] == [
        ("a.jpg", 50), ("a.png", 60), ("b.png", 40),
    ]  # fmt: skip
    tasks = json.loads((tmp_path / "out/label-studio.json").read_text())
    assert [task["data"]["image"].rpartition("=")[2] for task in tasks] == ["a.jpg", "a.png", "b.png"]
    assert main([*words[:4], str(tmp_path / "yolo"), "--save", "yolo"]) == 2
    assert "YOLO knows pictures by their names without suffix" in capsys.readouterr().err
    assert not (tmp_path / "yolo").exists()
