"""What each annotation format has of its own, by labels computed by hand."""

import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cssformer.cli import main
from cssformer.data import IGNORE, DatasetInfo, SegmentationFolder
from cssformer.data.formats import turned
from cssformer.prepare.export import prepare_export
from cssformer.prepare.label_studio import decode_brush
from cssformer.prepare.pascal_context import colour

SIZE = (20, 30)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], (9, 9, 9)).save(path)


def labels(folder: Path) -> dict[str, np.ndarray]:
    return {sample.name: sample.label for split in ("train", "val") for sample in SegmentationFolder(folder, split)}


def prepared(kind: str, folder: Path, **options) -> tuple[dict[str, np.ndarray], list[str], str]:
    """The labels of the folder's export, the classes, and the notes."""
    told = prepare_export(
        importlib.import_module(f"cssformer.prepare.{kind}").read, [folder], folder / "out", **options
    )
    return labels(folder / "out"), list(told.info.classes), " ".join(told.notes)


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    inside = np.zeros(SIZE, bool)
    inside[top:bottom, left:right] = True
    return inside


def circle(x: float, y: float, across: float, down: float) -> np.ndarray:
    rows, columns = np.indices(SIZE) + 0.5
    return ((columns - x) / across) ** 2 + ((rows - y) / down) ** 2 <= 1


def cvat(folder: Path, shapes: str, name: str = "images/{}.png") -> None:
    images = ""
    for number, key in enumerate("ab"):
        picture(folder / name.format(key))
        images += f'<image id="{number}" name="{key}.png" width="30" height="20">{shapes}</image>'
    listed = "".join(
        f"<label><name>{each}</name><color>#0{n}0000</color></label>" for n, each in enumerate(("car", "tree"))
    )
    meta = f"<meta><task><labels>{listed}</labels></task></meta>"
    (folder / "annotations.xml").write_text(f"<annotations><version>1.1</version>{meta}{images}</annotations>")


def test_files_of_another_form_are_told(tmp_path: Path) -> None:
    cvat(tmp_path / "cvat", '<box label="car" xtl="0" ytl="0" xbr="5" ybr="5"/>')
    (tmp_path / "cvat/odd.xml").write_text("<annotation/>")
    assert "1 XML file without CVAT's annotations left out" in prepared("cvat", tmp_path / "cvat")[2]
    images = [{"id": number, "file_name": f"{number}.png", "height": 20, "width": 30} for number in range(3)]
    shape = {"segmentation": [[0, 0, 5, 0, 5, 5]], "category_id": 1}
    for number in range(3):
        picture(tmp_path / "coco" / f"{number}.png")
    content = {"images": images[:2], "categories": [{"id": 1, "name": "car"}]}
    content["annotations"] = [{"id": number, "image_id": number, **shape} for number in range(2)]
    (tmp_path / "coco/a.json").write_text(json.dumps(content))
    del content["categories"]
    (tmp_path / "coco/b.json").write_text(json.dumps({**content, "images": images[2:]}))
    told = prepared("coco", tmp_path / "coco")[2]
    assert "1 JSON file without COCO's categories or annotations left out" in told and "b.json the first" in told


def test_cvat_shapes_and_their_order(tmp_path):
    cvat(
        tmp_path,
        '<box label="car" xtl="2" ytl="2" xbr="12" ybr="8" z_order="1"><attribute name="x">1</attribute></box>'
        '<ellipse label="tree" cx="12" cy="8" rx="6" ry="4" z_order="0"/>'
        '<box label="tree" xtl="18" ytl="6" xbr="28" ybr="12" rotation="90.0" z_order="0"/>'
        '<mask label="car" rle="3, 2, 1" left="20" top="17" width="3" height="2" z_order="2"/>'
        '<polyline label="car" points="1,1;2,2" z_order="0"/><tag label="car"/>',
    )
    found, classes, notes = prepared("cvat", tmp_path)
    expected = np.zeros(SIZE, int)
    expected[circle(12, 8, 6, 4)] = 2
    expected[box(20, 4, 26, 14)] = 2
    expected[box(2, 2, 12, 8)] = 1
    expected[18, 20:22] = 1
    assert classes == ["background", "car", "tree"] and (found["a"] == expected).all()
    assert "1 shape of the kind polyline" not in notes and "2 shapes of the kind polyline, which has no area" in notes
    assert DatasetInfo.load(tmp_path / "out").colours[1:] == ((0, 0, 0), (1, 0, 0))


def test_cvat_subsets_with_pictures_of_one_name(tmp_path):
    cvat(tmp_path, '<box label="car" xtl="0" ytl="0" xbr="5" ybr="5"/>')
    for subset in ("Train", "Validation"):
        for key in "ab":
            picture(tmp_path / f"images/{subset}/{key}.png")
    for key in "ab":
        (tmp_path / f"images/{key}.png").unlink()
    text = (tmp_path / "annotations.xml").read_text()
    images = re.findall("<image .*?</image>", text)
    both = "".join(each.replace(" name=", f' subset="{s}" name=') for s in ("Train", "Validation") for each in images)
    (tmp_path / "annotations.xml").write_text(text.replace("".join(images), both))
    prepared("cvat", tmp_path)
    assert DatasetInfo.load(tmp_path / "out").counts == {"train": 2, "val": 2}


def test_cvat_ellipses_turn_clockwise(tmp_path):
    cvat(tmp_path, '<ellipse label="tree" cx="15" cy="10" rx="8" ry="2" rotation="45" z_order="0"/>')
    found, *_ = prepared("cvat", tmp_path)
    assert found["a"][14, 19] == 2 and found["a"][5, 19] == 0


def labelme(folder: Path, shapes: list[dict], **more) -> None:
    for key in "ab":
        picture(folder / f"{key}.png")
        content = {"imagePath": f"{key}.png", "imageData": None, "imageHeight": 20, "imageWidth": 30, "shapes": shapes}
        (folder / f"{key}.json").write_text(json.dumps(content | more))


def shape(label: str, kind: str, *points: tuple[float, float]) -> dict:
    return {"label": label, "shape_type": kind, "points": points, "flags": {}}


def test_labelme_shapes_and_their_order(tmp_path):
    labelme(
        tmp_path,
        [
            shape("tree", "line", (4, 10), (16, 10)),
            shape("car", "oriented_rectangle", (14, 2), (20, 2), (20, 8), (14, 8)),
            shape("__ignore__", "circle", (20, 10), (23, 14)),
            shape("tree", "points", (1, 1), (2, 2)),
            {"label": "car", "points": [(0, 18), (5, 18), (5, 20), (0, 20)]},
        ],
    )
    found, classes, notes = prepared("labelme", tmp_path, unlabeled="background")
    rows, columns = np.indices(SIZE) + 0.5
    along = np.clip(columns, 4, 16)
    expected = np.where((columns - along) ** 2 + (rows - 10) ** 2 <= 25, 2, 0)
    expected[box(14, 2, 20, 8)] = 1
    expected[circle(20, 10, 5, 5)] = IGNORE
    expected[18:, :5] = 1
    assert classes == ["background", "car", "tree"] and (found["a"] == expected).all()
    assert "2 points left out" in notes and "the last one drawn lies on top" in notes


def test_pictures_of_trains_are_no_split(tmp_path):
    labelme(tmp_path, [shape("car", "rectangle", (0, 0), (3, 3))])
    for key, name in zip("ab", ("train-1", "my_test"), strict=True):
        (tmp_path / f"{key}.json").rename(tmp_path / f"{name}.json")
    assert set(prepared("labelme", tmp_path)[0]) == {"train-1", "my_test"}


def test_classes_may_be_those_of_other_data(tmp_path, capsys):
    """What a network drew and a person corrected need not hold every class of that network."""
    labelme(tmp_path, [shape("car", "rectangle", (0, 0), (3, 3)), shape("tree", "rectangle", (5, 5), (9, 9))])
    order = ["background", "tree", "bird", "car"]
    words = ["prepare", "labelme", "--source", str(tmp_path), "--output", str(tmp_path / "out"), "--order"]
    assert main([*words, *order[:3]]) == 2
    assert "The order lacks car; add every class" in capsys.readouterr().err
    assert main([*words, *order]) == 0
    assert "class 2  bird (not in these labels)\nclass 3  car (from car)" in capsys.readouterr().out
    expected = 3 * box(0, 0, 3, 3) + 1 * box(5, 5, 9, 9)
    assert all((label == expected).all() for label in labels(tmp_path / "out").values())
    assert list(DatasetInfo.load(tmp_path / "out").classes) == order


def test_labelme_lines_have_a_width(tmp_path, capsys):
    labelme(tmp_path, [shape("tree", "line", (0, 10), (30, 10))])
    words = ["prepare", "labelme", "--source", str(tmp_path), "--output", str(tmp_path / "out"), "--line_width"]
    assert main([*words, "4"]) == 0
    assert (labels(tmp_path / "out")["a"] == box(0, 8, 30, 12)).all()
    assert main([*words[:-2], str(tmp_path / "out2"), "--line_width", "0"]) == 2
    assert "line_width must be above 0" in capsys.readouterr().err


def test_labelme_pictures_in_another_folder(tmp_path):
    labelme(tmp_path / "json", [shape("car", "rectangle", (0, 0), (3, 3))], imagePath="..\\pictures\\x.jpg")
    picture(tmp_path / "pictures/x.jpg")
    (tmp_path / "json/b.json").unlink()
    picture(tmp_path / "pictures/y.jpg")
    content = json.loads((tmp_path / "json/a.json").read_text()) | {"imagePath": "/home/me/pictures/y.jpg"}
    (tmp_path / "json/b.json").write_text(json.dumps(content))
    found, *_ = prepared("labelme", tmp_path)
    assert set(found) == {"json__a", "json__b"} and (found["json__a"] == box(0, 0, 3, 3)).all()


def studio(folder: Path, results: list[dict], image: str = "/data/upload/1/0123abcd-{}.png") -> None:
    size = {"original_width": 30, "original_height": 20}
    tasks = []
    for number, key in enumerate("ab"):
        picture(folder / f"pictures/{key}.png")
        done = {"was_cancelled": False, "result": [size | each for each in results]}
        other = {"was_cancelled": False, "result": []}
        annotations = [{"was_cancelled": True, "result": "broken"}, done, other]
        if number:
            annotations[1:] = [{**other, "ground_truth": False}, {**done, "ground_truth": True}]
        tasks.append({"id": number, "data": {"text": "a.b", "image": image.format(key)}, "annotations": annotations})
    tasks.append({"id": 9, "data": {"image": "none.png"}, "annotations": []})
    (folder / "export.json").write_text(json.dumps(tasks))


@pytest.mark.parametrize(
    "image",
    [
        "/data/upload/1/0123abcd-{}.png",
        "/data/local-files/?d=some/pictures/{}.png",
        "s3://bucket/pictures/{}.png",
        "https://a.b/c/{}.png?token=1.2/3",
        "{}.png",
    ],
)
def test_label_studio_shapes_and_pictures(tmp_path, image):
    upper = {"x": 10, "y": 10, "width": 40, "height": 30, "rotation": 0}
    round_one = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 20, "rotation": 0}
    turned = {"x": 90, "y": 75, "width": 20, "height": 30, "rotation": 90.0}
    studio(
        tmp_path,
        [
            {"type": "rectanglelabels", "id": "1", "value": {**upper, "rectanglelabels": ["car"]}},
            {"type": "ellipse", "id": "2", "value": round_one},
            {"type": "labels", "id": "2", "value": {**round_one, "labels": ["tree"]}},
            {"type": "rectanglelabels", "id": "3", "value": {**turned, "rectanglelabels": ["car"]}},
            {"type": "choices", "id": "4", "value": {"choices": ["good"]}},
            {"type": "keypointlabels", "id": "5", "value": {"x": 1, "y": 1, "keypointlabels": ["car"]}},
        ],
        image,
    )
    found, classes, notes = prepared("label_studio", tmp_path)
    expected = np.zeros(SIZE, int)
    expected[circle(15, 10, 6, 4)] = 2
    expected[box(3, 2, 15, 8)] = 1
    # The box's upper left corner (27, 15) stays in place while it turns clockwise by a quarter.
    expected[15:20, 21:27] = 1
    assert classes == ["background", "car", "tree"]
    assert (circle(15, 10, 6, 4).sum(), box(3, 2, 15, 8).sum()) == (80, 72)
    assert (found["a"] == expected).all() and (found["b"] == expected).all()
    assert "2 tasks with several annotations the one marked" in notes and "1 task without annotation left out" in notes


def test_label_studio_brushes_of_any_parameters():
    """The bits of lengths and values are told by the file: here one run of 5 zeros, then 3 values of their own."""
    bits = f"{8:032b}" + f"{2 - 1:05b}" + "".join(f"{count - 1:04b}" for count in (3, 4, 8, 16))
    bits += "1" + "00" + f"{5 - 1:03b}" + "00"
    bits += "0" + "01" + f"{3 - 1:04b}" + "01" + "00" + "10"
    data = [int(bits[place : place + 8].ljust(8, "0"), 2) for place in range(0, len(bits), 8)]
    assert decode_brush(data, (1, 2)).tolist() == [[False, True]]


def yolo(folder: Path, yaml: str) -> None:
    for split, key in (("train", "a"), ("train", "b"), ("val", "c")):
        picture(folder / f"images/{split}/{key}.png")
        path = folder / f"labels/{split}/{key}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1 0 0 0.5 0 0.5 0.5 0 0.5\n\n0 0.0 0.0 0.2 0.0 0.2 0.2 0.0 0.2\n")
    (folder / "labels/train/b.txt").unlink()
    (folder / "data.yaml").write_text(yaml)


@pytest.mark.parametrize(
    "yaml",
    [
        "train: ../images/train\nval: images/val\ntest: ../test/images\nnames: [car, tree]\nnc: 2",
        "path: /home/me/mine\ntrain: ../images/train\nval: [images/val]\nnames: {1: tree, 0: car}",
        "train: train.txt\nval: /home/me/mine/images/val/\nnames:\n- car\n- tree",
    ],
)
def test_yolo_lists_and_folders(tmp_path, yaml):
    yolo(tmp_path, yaml)
    (tmp_path / "train.txt").write_text("data/images/train/a.png\n./images/train/b.png\n")
    found, classes, notes = prepared("yolo", tmp_path)
    expected = np.where(box(0, 0, 15, 10), 2, 0)
    expected[box(0, 0, 6, 4)] = 1
    assert classes == ["background", "car", "tree"] and set(found) == {"a", "b", "c"}
    assert (found["a"] == expected).all() and (found["c"] == expected).all() and not found["b"].any()
    assert "1 picture without a shape, images/train/b.png the first" in notes


def test_yolo_of_label_studio(tmp_path):
    yolo(tmp_path, "")
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("car\ntree\n")
    found, classes, _ = prepared("yolo", tmp_path)
    assert classes == ["background", "car", "tree"] and {name.rpartition("_")[2] for name in found} == {"a", "b", "c"}


def test_yolo_of_label_studio_without_its_pictures(tmp_path, capsys):
    yolo(tmp_path / "in", "")
    (tmp_path / "in/data.yaml").unlink()
    (tmp_path / "in/classes.txt").write_text("car\ntree\n")
    for path in (tmp_path / "in").glob("*/*/*"):
        path.rename(path.parents[1] / path.name)
    (tmp_path / "in/images").rename(tmp_path / "uploaded")
    words = ["prepare", "yolo", "--output", str(tmp_path / "out"), "--val_share", "0.5", "--source"]
    assert main([*words, str(tmp_path / "in"), str(tmp_path / "uploaded")]) == 0
    counts = DatasetInfo.load(tmp_path / "out").counts
    # A picture that no file of labels names is none of the project.
    assert counts == {"train": 1, "val": 1}
    (tmp_path / "uploaded/a.png").unlink()
    shutil.rmtree(tmp_path / "out")
    assert main([*words, str(tmp_path / "in"), str(tmp_path / "uploaded")]) == 2
    assert "labels/a.txt names the picture a, which is not there" in capsys.readouterr().err


def test_yolo_of_cvat_without_its_pictures(tmp_path, capsys):
    """Lists name pictures of two splits, two of which have one name, that lie in another source."""
    yolo(tmp_path / "in", "train: train.txt\nval: val.txt\nnames: [car, tree]")
    (tmp_path / "in/labels/val/c.txt").rename(tmp_path / "in/labels/val/a.txt")
    (tmp_path / "in/labels/val/a.txt").write_text("0 0 0 1 0 1 1 0 1\n")
    (tmp_path / "in/images/val/c.png").rename(tmp_path / "in/images/val/a.png")
    (tmp_path / "in/train.txt").write_text("data/images/train/a.png\ndata/images/train/b.png\n")
    (tmp_path / "in/val.txt").write_text("data/images/val/a.png\n")
    (tmp_path / "in/images").rename(tmp_path / "pictures")
    words = ["prepare", "yolo", "--source", str(tmp_path / "in"), str(tmp_path / "pictures")]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    info = DatasetInfo.load(tmp_path / "out")
    assert info.counts == {"train": 2, "val": 1} and info.classes == ("background", "car", "tree")
    expected = np.where(box(0, 0, 15, 10), 2, 0)
    expected[box(0, 0, 6, 4)] = 1
    train, val = (SegmentationFolder(tmp_path / "out", split) for split in ("train", "val"))
    assert (train[0].label == expected).all() and not train[1].label.any() and (val[0].label == 1).all()
    (tmp_path / "in/labels/train/more").mkdir()
    (tmp_path / "in/labels/train/more/a.txt").write_text("0 0 0 1 0 1 1 0 1\n")
    assert main([*words, "--output", str(tmp_path / "other")]) == 2
    assert "may both be the label of" in capsys.readouterr().err


def test_exports_without_any_shape(tmp_path, capsys):
    yolo(tmp_path, "train: images/train\nval: images/val\nnames: [car, tree]")
    for path in tmp_path.glob("labels/*/*.txt"):
        path.write_text("\n")
    assert main(["prepare", "yolo", "--source", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert f"No picture of {tmp_path} has a shape; export polygons or masks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_macos_adds_to_archives(tmp_path, pack):
    labelme(tmp_path / "in", [shape("car", "rectangle", (0, 0), (3, 3))])
    files = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    source = pack(tmp_path / "in.zip", files | {f"__MACOSX/._{name}": b"\0\5\x16\7" for name in files})
    assert main(["prepare", "labelme", "--source", str(source), "--output", str(tmp_path / "out")]) == 0
    assert set(labels(tmp_path / "out")) == {"a", "b"}


def test_pictures_in_the_export_and_elsewhere(tmp_path):
    cvat(tmp_path / "in", '<box label="car" xtl="0" ytl="0" xbr="5" ybr="5"/>')
    for key in "ab":
        picture(tmp_path / f"more/{key}.png")
    words = ["prepare", "cvat", "--source", str(tmp_path / "in"), str(tmp_path / "more"), "--output"]
    assert main([*words, str(tmp_path / "out")]) == 0
    assert "/in/images/a.png" in (tmp_path / "out/sources.sha256").read_text()


def voc(folder: Path, values: np.ndarray, lists: dict[str, str], labelmap: str | None) -> None:
    for key in "abc":
        picture(folder / f"JPEGImages/{key}.jpg")
        path = folder / f"SegmentationClass/{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(path)
    for name, text in lists.items():
        path = folder / f"ImageSets/Segmentation/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if labelmap:
        (folder / "labelmap.txt").write_text(labelmap)


def test_voc_colours_of_its_own(tmp_path):
    values = np.array([(0, 0, 0), colour(11), colour(20), (224, 224, 192)])
    index = np.arange(600).reshape(SIZE) % 4
    voc(tmp_path, values[index], {"train": "a\nb", "val": "c\n", "trainval": "a\nb\nc"}, None)
    found, classes, _ = prepared("voc", tmp_path)
    assert (len(classes), classes[11], classes[20]) == (21, "diningtable", "tvmonitor")
    assert all((label == np.array([0, 11, 20, IGNORE])[index]).all() for label in found.values())


def test_voc_of_cvat(tmp_path):
    text = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nmy: car:9,8,7::\n"
    index = np.arange(600).reshape(SIZE) % 2
    voc(tmp_path, np.array([(0, 0, 0), (9, 8, 7)])[index], {"default": "a\nb\nc"}, text)
    found, classes, _ = prepared("voc", tmp_path, map=["my: car=vehicle"])
    assert classes == ["background", "vehicle"] and all((label == index).all() for label in found.values())
    assert re.search(r'"my: car": 1', (tmp_path / "out/dataset.yaml").read_text())


def test_voc_names_with_dots(tmp_path):
    index = np.arange(600).reshape(SIZE) % 2
    voc(tmp_path, np.array([(0, 0, 0), (128, 0, 0)])[index], {}, "background:0,0,0::\ncar:128,0,0::\n")
    for path in tmp_path.glob("*/*.*g"):
        path.rename(path.with_stem(f"clip.{path.stem}"))
    assert set(prepared("voc", tmp_path)[0]) == {"clip.a", "clip.b", "clip.c"}


def test_voc_masks_of_one_name(tmp_path, capsys):
    for part in ("1", "2"):
        voc(tmp_path / part, np.zeros((*SIZE, 3)), {}, None)
    words = ["prepare", "voc", "--source", str(tmp_path / "1"), str(tmp_path / "2"), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    assert "2/SegmentationClass/a.png have one name" in capsys.readouterr().err


def test_cvat_pictures_of_tests_are_no_split(tmp_path):
    cvat(tmp_path, '<box label="car" xtl="0" ytl="0" xbr="5" ybr="5"/>')
    (tmp_path / "images/a.png").rename(tmp_path / "images/test 1.png")
    path = tmp_path / "annotations.xml"
    path.write_text(path.read_text().replace("a.png", "test 1.png"))
    assert set(prepared("cvat", tmp_path)[0]) == {"test 1", "b"}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("masks_as", ["shown", "stored"])
def test_shares_of_turned_pictures(tmp_path, orientation, masks_as):
    """YOLO tells no size: its shares are those of the picture as shown, or, if so told, as stored."""
    exif = Image.Exif()
    exif[0x112] = orientation
    for split in ("train", "val"):
        (tmp_path / f"images/{split}").mkdir(parents=True)
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"images/{split}/{split}.jpg", exif=exif)
        (tmp_path / f"labels/{split}").mkdir(parents=True)
        (tmp_path / f"labels/{split}/{split}.txt").write_text("0 0 0 0.5 0 0.5 0.2 0 0.2")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [car]")
    found, *_ = prepared("yolo", tmp_path, masks_as=masks_as)
    height, width = SIZE if masks_as == "stored" or orientation < 5 else SIZE[::-1]
    drawn = np.zeros((height, width), int)
    drawn[: height // 5, : width // 2] = 1
    expected = turned(drawn, orientation) if masks_as == "stored" else drawn
    assert (found["train"] == expected).all() and (found["val"] == expected).all()


def test_parts_that_are_missing(tmp_path, capsys):
    index = np.arange(600).reshape(SIZE) % 2
    voc(tmp_path / "voc", np.array([(0, 0, 0), (128, 0, 0)])[index], {"train": "a\nb", "val": "c"}, None)
    (tmp_path / "voc/JPEGImages/a.jpg").unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "voc/JPEGImages/b.jpg")
    words = ["prepare", "voc", "--source", str(tmp_path / "voc"), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    assert "SegmentationClass/a.png names the picture a, which is not there" in capsys.readouterr().err
    picture(tmp_path / "more/a.jpg")
    assert main([*words[:4], str(tmp_path / "more"), *words[4:]]) == 2
    assert "b.png is 30x20, but its picture is 9x9" in capsys.readouterr().err
    assert main([*words[:4], str(tmp_path / "more"), *words[4:], "--skip_broken"]) == 0
    assert set(labels(tmp_path / "out")) == {"a", "c"}


def test_label_studios_export_of_brushes_names_no_pictures(tmp_path, capsys):
    """``task-ID-annotation-ID-by-WHO-TAG-LABEL-N.png``, as label-studio-sdk 2.1.2 writes it."""
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "task-3-annotation-5-by-1-tag-car-0.png")
    assert main(["prepare", "label-studio", "--source", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "names no pictures; export the project as JSON" in capsys.readouterr().err


def test_label_studios_brushes_of_tasks_without_annotations(tmp_path, capsys):
    """The first annotation counts; labels have dashes; a task that is not listed and another size are told."""
    tasks = [{"id": number, "data": {"photo": f"/data/upload/1/{number}.png"}} for number in (3, 4)]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    for number in (3, 4):
        picture(tmp_path / f"pictures/{number}.png")
    painted = np.zeros(SIZE, np.uint8)
    painted[2:4, 5:9] = 7
    Image.fromarray(painted).save(tmp_path / "task-3-annotation-9-by-a@b.c-brush-sky-clear-0.png")
    Image.fromarray(painted.T[:20, :20]).save(tmp_path / "task-3-annotation-10-by-1-brush-car-0.png")
    Image.fromarray(painted[::-1]).save(tmp_path / "task-4-annotation-11-by--brush-sky-clear-0.png")
    found, classes, notes = prepared("label_studio", tmp_path)
    assert classes == ["background", "sky-clear"] and "1 task with several annotations" in notes
    assert np.array_equal(found["3"], painted > 0) and np.array_equal(found["4"], painted[::-1] > 0)
    shutil.rmtree(tmp_path / "out")
    words = ["prepare", "label-studio", "--source", str(tmp_path), "--output", str(tmp_path / "again")]
    strange = tmp_path / "task-5-annotation-12-by-1-brush-car-0.png"
    Image.fromarray(painted).save(strange)
    assert main(words) == 2
    assert f"{strange} is of Label Studio's export of brushes, which" in (told := capsys.readouterr().err)
    assert "no JSON file lists its task." in told
    strange.rename(tmp_path / "task-4-annotation-2-by-1-brush-car-0.png")
    Image.fromarray(painted.T).save(tmp_path / "task-4-annotation-2-by-1-brush-car-0.png")
    assert main(words) == 2
    assert "is 20x30, but its picture is 30x20." in capsys.readouterr().err


def test_one_picture_annotated_twice(tmp_path, capsys):
    value = {"x": 5, "y": 5, "radiusX": 2, "radiusY": 2, "ellipselabels": ["a"]}
    studio(tmp_path, [{"type": "ellipselabels", "id": "2", "value": value}])
    tasks = json.loads((tmp_path / "export.json").read_text())
    (tmp_path / "export.json").write_text(json.dumps([*tasks, tasks[0] | {"id": 7}]))
    assert main(["prepare", "label-studio", "--source", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "task 0 and" in (told := capsys.readouterr().err) and "task 7 both annotate pictures/a.png" in told
