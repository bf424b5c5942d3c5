"""Write the exports beside this file with the tools' own packages, and the labels that the tools' own decoders give.

Run in an environment of its own with ``datumaro==1.13.12 labelme==6.3.1 label-studio-sdk==2.1.2 pycocotools==2.0.11
supervision==0.31.2 datasets==5.2.0``. ``expected/TOOL/NAME.png`` holds 0 where nothing was drawn, else 1 and the place
of the class in ``CLASSES``.
"""

import base64
import contextlib
import io
import json
import shutil
from pathlib import Path

import datasets
import datumaro as dm
import numpy as np
import supervision as sv
from datumaro.components.annotation import AnnotationType, CompiledMask
from label_studio_sdk.converter import Converter, brush
from labelme._label_file import read_label_file, write_label_file
from labelme.utils.shape import shapes_to_label
from PIL import Image
from pycocotools.coco import COCO

HERE = Path(__file__).parent
CLASSES = ("car", "tree", "sky")
WIDTH, HEIGHT = 48, 36
NAMES = {"a": "train", "b": "train", "c": "val"}


def polygon(rng: np.random.Generator) -> np.ndarray:
    """A star (n, 2) of corners x, y within the picture.

    No corner is at an odd tenth, where pycocotools' rounding hangs on the last bit: datumaro keeps corners as float32.
    """
    angles = np.sort(rng.uniform(0, 2 * np.pi, 8))
    centre, radii = rng.uniform((12, 10), (36, 26)), rng.uniform(4, 16, (8, 1))
    points = centre + radii * np.stack([np.cos(angles), np.sin(angles)], 1)
    points = points.clip(0, (WIDTH, HEIGHT)).round(2)
    return np.where(np.isclose(points * 10 % 2, 1), points + 0.03, points).round(2)


def blob(rng: np.random.Generator) -> np.ndarray:
    small = rng.random((HEIGHT // 4, WIDTH // 4)) < 0.2
    return np.kron(small, np.ones((4, 4), bool))


SCENES = {
    name: {
        "picture": np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) // 64 * 64,
        "polygons": [(polygon(rng), index % 3, 5 - index) for index in range(4)],
        "mask": (blob(rng), 1, 9),
        "box": ((3.0, 20.0, 15.0, 9.0), 2, 0),
    }
    for number, name in enumerate(NAMES)
    for rng in [np.random.default_rng(100 + number)]
}


def save(folder: str, name: str, label: np.ndarray) -> None:
    path = HERE / "expected" / folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label.astype(np.uint8)).save(path)


def save_picture(path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(SCENES[name]["picture"]).save(path)


def dataset(box: bool) -> dm.Dataset:
    items = []
    for name, subset in NAMES.items():
        scene = SCENES[name]
        drawn = [dm.Polygon(points.ravel().tolist(), label=c, z_order=z) for points, c, z in scene["polygons"]]
        mask, c, z = scene["mask"]
        drawn.append(dm.Mask(mask, label=c, z_order=z))
        if box:
            drawn.append(dm.Bbox(*scene["box"][0], label=scene["box"][1], z_order=scene["box"][2]))
        for number, each in enumerate(drawn, 1):
            each.id, each.group = number, number
        media = dm.Image.from_numpy(scene["picture"][..., ::-1].copy())
        items.append(dm.DatasetItem(name, subset=subset, media=media, annotations=drawn))
    return dm.Dataset.from_iterable(items, categories=list(CLASSES), media_type=dm.Image)


def compiled(found: dm.Dataset, folder: str, names: dict[int, int]) -> None:
    """Labels as datumaro compiles them for its own masks: by z_order, then as they come."""
    found = found.transform("boxes_to_masks").transform("polygons_to_masks")
    for item in found:
        masks = [each for each in item.annotations if each.type == AnnotationType.mask]
        label = CompiledMask.from_instance_masks(
            masks, instance_labels=[names[each.label] for each in masks]
        ).class_mask
        save(folder, item.id, label)


def by_datumaro() -> None:
    dataset(False).export(str(HERE / "coco"), "coco_instances", save_media=True, image_ext=".png")
    for path in (HERE / "coco/annotations").glob("*.json"):
        with contextlib.redirect_stdout(io.StringIO()):
            found = COCO(path)
        for image in found.imgs.values():
            label = np.zeros((HEIGHT, WIDTH), int)
            masks = [(found.annToMask(each) > 0, each["category_id"]) for each in found.imgToAnns[image["id"]]]
            for mask, category in sorted(masks, key=lambda pair: -pair[0].sum()):
                label[mask] = 1 + CLASSES.index(found.cats[category]["name"])
            save("coco", Path(image["file_name"]).stem, label)

    dataset(False).export(str(HERE / "panoptic"), "coco_panoptic", save_media=True, image_ext=".png")
    dataset(True).export(str(HERE / "cvat"), "cvat", save_media=True, image_ext=".png")
    dataset(False).export(
        str(HERE / "voc"),
        "voc_segmentation",
        save_media=True,
        image_ext=".png",
        label_map="source",
        apply_colormap=True,
    )
    for folder, kind in (("panoptic", "coco_panoptic"), ("cvat", "cvat"), ("voc", "voc_segmentation")):
        found = dm.Dataset.import_from(str(HERE / folder), kind)
        names = enumerate(label.name for label in found.categories()[AnnotationType.label].items)
        compiled(found, folder, {index: 1 + CLASSES.index(name) if name in CLASSES else 0 for index, name in names})


def by_supervision() -> None:
    for split in ("train", "val"):
        images, annotations = {}, {}
        for name in (name for name, own in NAMES.items() if own == split):
            save_picture(HERE / f"yolo/images/{split}/{name}.png", name)
            path = str(HERE / f"yolo/images/{split}/{name}.png")
            polygons = SCENES[name]["polygons"]
            masks = np.array([sv.polygon_to_mask(points.astype(int), (WIDTH, HEIGHT)) for points, *_ in polygons])
            images[path] = np.array(Image.open(path))
            annotations[path] = sv.Detections(
                sv.mask_to_xyxy(masks),
                masks.astype(bool),
                class_id=np.array([c for _, c, _ in SCENES[name]["polygons"]]),
            )
        made = sv.DetectionDataset(list(CLASSES), images, annotations)
        made.as_yolo(annotations_directory_path=str(HERE / f"yolo/labels/{split}"))
        names = "\n".join(f"  {number}: {name}" for number, name in enumerate(CLASSES))
        yaml = HERE / "yolo/data.yaml"
        yaml.write_text(f"path: ../datasets/mine\ntrain: images/train\nval: images/val\nnames:\n{names}\n")
        read = sv.DetectionDataset.from_yolo(
            str(HERE / f"yolo/images/{split}"), str(HERE / f"yolo/labels/{split}"), str(yaml), force_masks=True
        )
        for path, _, found in read:
            label = np.zeros((HEIGHT, WIDTH), int)
            for index in np.argsort(-found.mask.sum((1, 2)), kind="stable"):
                label[found.mask[index]] = 1 + found.class_id[index]
            save("yolo", Path(path).stem, label)


def by_labelme() -> None:
    for name, split in NAMES.items():
        scene, folder = SCENES[name], HERE / "labelme" / split
        save_picture(folder / f"{name}.png", name)
        data = (folder / f"{name}.png").read_bytes()
        shapes = [
            {"label": CLASSES[c], "points": points.tolist(), "shape_type": "polygon"}
            for points, c, _ in scene["polygons"]
        ]
        (x, y, width, height), c, _ = scene["box"]
        shapes.append({"label": CLASSES[c], "points": [[x + width, y], [x, y + height]], "shape_type": "rectangle"})
        shapes.append({"label": "car", "points": [[30.0, 12.0], [34.0, 15.0]], "shape_type": "circle"})
        mask, c, _ = scene["mask"]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, bottom, left, right = (int(each) for each in (rows[0], rows[-1], columns[0], columns[-1]))
        png = io.BytesIO()
        Image.fromarray(mask[top : bottom + 1, left : right + 1]).save(png, "PNG")
        points = [[left, top], [right, bottom]]
        coded = base64.b64encode(png.getvalue()).decode()
        shapes.append({"label": CLASSES[c], "points": points, "shape_type": "mask", "mask": coded})
        whole = [{"group_id": None, "description": "", "flags": {}, "mask": None, **each} for each in shapes]
        whole.append({**whole[0], "points": [[1.0, 1.0]], "shape_type": "point"})
        path = folder / f"{name}.json"
        write_label_file(
            str(path),
            shapes=whole,
            image_path=f"{name}.png",
            image_height=HEIGHT,
            image_width=WIDTH,
            image_data=data if name == "b" else None,
            flags={"reviewed": True},
        )
        found = [each for each in read_label_file(str(path)).shapes if each["shape_type"] != "point"]
        label, _ = shapes_to_label((HEIGHT, WIDTH), found, {name: 1 + index for index, name in enumerate(CLASSES)})
        save("labelme", name, label)
        if name == "b":
            (folder / f"{name}.png").unlink()


def by_label_studio() -> None:
    tasks = []
    for number, name in enumerate(NAMES, 1):
        upload = f"0123abc{number}-{name}.png"
        save_picture(HERE / f"label_studio/upload/{upload}", name)
        size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        results = [
            {
                **size,
                "id": f"polygon{index}",
                "type": "polygonlabels",
                "from_name": "polygon",
                "to_name": "image",
                "value": {
                    "points": (points * 100 / (WIDTH, HEIGHT)).tolist(),
                    "closed": True,
                    "polygonlabels": [CLASSES[c]],
                },
            }
            for index, (points, c, _) in enumerate(SCENES[name]["polygons"])
        ]
        mask, c, _ = SCENES[name]["mask"]
        value = {"format": "rle", "rle": brush.mask2rle(mask.astype(np.uint8) * 255), "brushlabels": [CLASSES[c]]}
        from_brush = {"type": "brushlabels", "from_name": "brush", "to_name": "image", "id": "brush", "value": value}
        results.append({**size, **from_brush})
        cancelled = {"id": 10 * number, "was_cancelled": True, "result": []}
        annotations = [cancelled, {"id": 10 * number + 1, "was_cancelled": False, "result": results}]
        tasks.append({"id": number, "data": {"image": f"/data/upload/1/{upload}"}, "annotations": annotations})
    (HERE / "label_studio/project.json").write_text(json.dumps(tasks))
    labels = "".join(f'<Label value="{name}"/>' for name in CLASSES)
    config = '<View><Image name="image" value="$image"/>'
    config += f'<PolygonLabels name="polygon" toName="image">{labels}</PolygonLabels>'
    config += f'<BrushLabels name="brush" toName="image">{labels}</BrushLabels></View>'
    work = HERE / "work"
    only_polygons = [
        {**task, "annotations": [{**each, "result": each["result"][:-1]} for each in task["annotations"]]}
        for task in tasks
    ]
    work.mkdir()
    (work / "in.json").write_text(json.dumps(only_polygons))
    converter = Converter(config, str(HERE / "label_studio"), upload_dir=str(HERE / "label_studio/upload"))
    converter.convert_to_coco(str(work / "in.json"), str(work / "coco"), is_dir=False)
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO(work / "coco/result.json")
    for image in found.imgs.values():
        name = Path(image["file_name"]).stem[-1]
        masks = [
            (found.annToMask(each) > 0, 1 + CLASSES.index(found.cats[each["category_id"]]["name"]))
            for each in found.imgToAnns[image["id"]]
        ]
        task = tasks["abc".index(name)]
        coded = task["annotations"][1]["result"][-1]["value"]
        pixels = brush.decode_rle(coded["rle"]).reshape(HEIGHT, WIDTH, 4)[..., 3] > 0
        masks.append((pixels, 1 + CLASSES.index(coded["brushlabels"][0])))
        label = np.zeros((HEIGHT, WIDTH), int)
        for mask, index in sorted(masks, key=lambda pair: -pair[0].sum()):
            label[mask] = index
        save("label_studio", name, label)
    shutil.rmtree(work)


def by_label_studio_brushes() -> None:
    """Its export of brushes as PNG, and as JSON-MIN, which names the pictures of the tasks."""
    folder, tasks = HERE / "label_studio_png", []
    for number, name in enumerate(NAMES, 11):
        save_picture(folder / f"upload/0123abc{number}-{name}.png", name)
        mask, _, _ = SCENES[name]["mask"]
        results, label = [], np.zeros((HEIGHT, WIDTH), int)
        # The second is the smaller one, which lies on top.
        for index, pixels in enumerate((mask, np.roll(mask, 3, 1) & (mask.cumsum(0) > 2))):
            value = {"format": "rle", "rle": brush.mask2rle(pixels.astype(np.uint8) * 255)}
            value["brushlabels"] = [CLASSES[index]]
            own = {"type": "brushlabels", "from_name": "brush", "to_name": "image", "id": str(index), "value": value}
            results.append({"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, **own})
            label[pixels] = 1 + index
        path = f"/data/upload/1/0123abc{number}-{name}.png"
        annotation = {"id": 70 + number, "completed_by": {"email": "ann-b@mail.org"}, "result": results}
        tasks.append({"id": number, "data": {"image": path}, "annotations": [annotation]})
        save("label_studio_png", name, label)
    labels = "".join(f'<Label value="{name}"/>' for name in CLASSES)
    config = '<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">'
    (work := HERE / "work").mkdir()
    (work / "tasks.json").write_text(json.dumps(tasks))
    converter = Converter(f"{config}{labels}</BrushLabels></View>", str(work))
    converter.convert(str(work / "tasks.json"), str(folder), "BRUSH_TO_PNG", is_dir=False)
    converter.convert(str(work / "tasks.json"), str(folder), "JSON_MIN", is_dir=False)
    shutil.rmtree(work)


def by_datasets() -> None:
    """Both forms of a data set on disk: the parquet files of the hub, and ``save_to_disk``."""
    splits = {}
    for split, own in (("train", "train"), ("validation", "val")):
        names = [name for name in NAMES if NAMES[name] == own]
        labels = []
        for name in names:
            label = np.full((HEIGHT, WIDTH), 255, np.uint8)
            for index in range(len(CLASSES)):
                label[np.roll(SCENES[name]["mask"][0], 5 * index, 1)] = index
            labels.append(Image.fromarray(label))
            save("hf", name, np.where(label == 255, 0, label + 1))
        columns = {"image": [Image.fromarray(SCENES[name]["picture"]) for name in names], "label": labels}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
        splits[split] = datasets.Dataset.from_dict(columns, features)
        path = HERE / f"hf/data/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        splits[split].to_parquet(str(path))
    datasets.DatasetDict(splits).save_to_disk(str(HERE / "hf_disk"))


if __name__ == "__main__":
    for path in HERE.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    by_datumaro()
    by_supervision()
    by_labelme()
    by_label_studio()
    by_label_studio_brushes()
    by_datasets()
