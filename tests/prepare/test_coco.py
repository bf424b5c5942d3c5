"""COCO's files, in the layouts of COCO, Roboflow and CVAT, become the labels that pycocotools' masks give."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from cssformer.cli import main
from cssformer.data import IGNORE, DatasetInfo, SegmentationFolder
from cssformer.prepare import archives
from cssformer.prepare.coco import read
from cssformer.prepare.export import prepare_export
from cssformer.utils.errors import UserError

SIZE = (40, 60)
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 90, "name": "sky, cloudy"}]


def polygon(rng: np.random.Generator) -> list[float]:
    angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
    x, y = rng.uniform(5, 55), rng.uniform(5, 35)
    radii = rng.uniform(3, 18, 7)
    return np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1).clip(0, (60, 40)).ravel().tolist()


def annotation(rng: np.random.Generator, number: int) -> dict:
    kind, mask = number % 4, rng.random(SIZE) < 0.1
    runs = coco.encode(np.asfortranarray(np.kron(mask[::4, ::4], np.ones((4, 4))).astype(np.uint8)))
    if kind == 0:
        segmentation = [polygon(rng), polygon(rng)]
    elif kind == 1:
        segmentation = [polygon(rng)]
    elif kind == 2:
        segmentation = {"size": runs["size"], "counts": runs["counts"].decode()}
    else:
        flat = coco.decode(runs).T.ravel()
        edges = np.flatnonzero(np.diff(flat, prepend=0))
        segmentation = {"size": list(SIZE), "counts": np.diff([0, *edges, flat.size]).tolist()}
    category = CATEGORIES[rng.integers(3)]["id"]
    return {"id": number, "category_id": category, "iscrowd": int(kind == 3), "segmentation": segmentation}


def content(split: int, count: int, name: str = "{:04}.png") -> dict:
    rng = np.random.default_rng(split)
    images = [{"id": 7 + k, "file_name": name.format(100 * split + k), "width": 60, "height": 40} for k in range(count)]
    annotations = [{**annotation(rng, 10 * k + n), "image_id": 7 + k} for k in range(count) for n in range(5)]
    return {"images": images, "categories": CATEGORIES, "annotations": annotations}


def write_pictures(folder: Path, found: dict) -> None:
    for each in found["images"]:
        path = folder / each["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), each["id"], np.uint8)).save(path)


def dump(path: Path, found: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))


def layout(root: Path, kind: str) -> dict[str, dict]:
    """Files as the tools lay them out; their contents by split."""
    contents = {"train": content(1, 4), "val": content(2, 2)}
    if kind == "cvat":
        contents = {"": content(1, 4, "sub/{:04}.png")}
        dump(root / "annotations/instances_default.json", contents[""])
        write_pictures(root / "images", contents[""])
    for split, found in contents.items():
        if kind == "coco":
            dump(root / f"annotations/instances_{split}2017.json", found)
            dump(root / f"annotations/captions_{split}2017.json", {**found, "annotations": []})
            dump(root / f"annotations/person_keypoints_{split}2017.json", found)
            write_pictures(root / f"{split}2017", found)
        elif kind == "roboflow":
            folder = root / {"train": "train", "val": "valid"}[split]
            dump(folder / "_annotations.coco.json", found)
            write_pictures(folder, found)
    return contents


def expected(found: dict, folder: Path) -> dict[str, np.ndarray]:
    """Name -> label by pycocotools: 0 without a mask, the smaller mask on top, categories in the order of their ids."""
    dump(folder / "reference.json", found)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(folder / "reference.json")
    labels = {}
    for image in reference.imgs.values():
        label = np.zeros(SIZE, int)
        masks = [(reference.annToMask(each) > 0, each) for each in reference.imgToAnns[image["id"]]]
        for mask, each in sorted(masks, key=lambda pair: -pair[0].sum()):
            label[mask] = 1 + sorted(reference.cats).index(each["category_id"])
        labels[Path(image["file_name"]).stem] = label
    return labels


def prepared(folder: Path) -> dict[str, np.ndarray]:
    return {
        sample.name: sample.label
        for split in ("train", "val")
        for sample in SegmentationFolder(folder, split)
        if sample.label is not None
    }


@pytest.mark.parametrize("kind", ["coco", "roboflow", "cvat"])
@pytest.mark.parametrize("archive", [False, True])
def test_labels_are_those_of_pycocotools(tmp_path, pack, kind, archive):
    contents = layout(tmp_path / "in", kind)
    source = tmp_path / "in"
    if archive:
        files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*.*")}
        source = pack(tmp_path / "in.zip", files)
    told = prepare_export(read, [source], tmp_path / "out")
    labels = {}
    for found in contents.values():
        labels |= expected(found, tmp_path)
    ours = {name.removeprefix("sub__"): label for name, label in prepared(tmp_path / "out").items()}
    assert ours.keys() == labels.keys()
    assert all((ours[name] == labels[name]).all() for name in labels)
    info = DatasetInfo.load(tmp_path / "out")
    assert info.classes == ("background", "car", "dog", "sky, cloudy")
    assert info.mapping == {"unlabeled pixels": 0, "car": 1, "dog": 2, "sky, cloudy": 3}
    assert "that of fewer pixels lies on top" in " ".join(told.notes)
    assert told.split == (
        "10% drawn for validation, picture by picture (there is only one folder)" if kind == "cvat" else "by the export"
    )


def test_classes_are_renamed_merged_ignored_and_left_out(tmp_path, capsys):
    contents = layout(tmp_path / "in", "coco")
    words = ["prepare", "coco", "--source", str(tmp_path / "in"), "--output"]
    assert main([*words, str(tmp_path / "a"), "--map", "dog,car=moving", "--ignore", "unlabeled"]) == 0
    printed = capsys.readouterr().out
    assert "moving (from dog, car)" in printed or "moving (from car, dog)" in printed
    labels = expected(contents["train"], tmp_path) | expected(contents["val"], tmp_path)
    table = np.array([IGNORE, 0, 0, 1])
    assert all((label == table[labels[name]]).all() for name, label in prepared(tmp_path / "a").items())
    assert main([*words, str(tmp_path / "b"), "--map", "sky, cloudy=", "--ignore", "car"]) == 0
    assert DatasetInfo.load(tmp_path / "b").classes == ("background", "dog")
    assert main([*words, str(tmp_path / "c"), "--map", "dog,cow=car"]) == 2
    assert (
        "'cow' in 'dog,cow=car' is no class of the export, which has car, dog, sky, cloudy" in capsys.readouterr().err
    )
    assert main([*words, str(tmp_path / "c"), "--map", "dog"]) == 2
    assert "'dog' is no rule of the map; give OLD=NEW" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "c"), "--ignore", "cow"]) == 2
    assert "'cow' cannot be ignored" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_classes_of_odd_names(tmp_path):
    """A class called unlabeled is not what has no shape, and a number is no id of pixels."""
    contents = layout(tmp_path / "in", "coco")
    for split in ("train", "val"):
        text = json.dumps(contents[split]).replace('"dog"', '"unlabeled"').replace('"car"', '"20261128"')
        (tmp_path / f"in/annotations/instances_{split}2017.json").write_text(text)
    prepare_export(read, [tmp_path / "in"], tmp_path / "out", unlabeled="ignore")
    assert DatasetInfo.load(tmp_path / "out").classes == ("20261128", "unlabeled", "sky, cloudy")
    labels = expected(contents["train"], tmp_path) | expected(contents["val"], tmp_path)
    table = np.array([IGNORE, 0, 1, 2])
    assert all((label == table[labels[name]]).all() for name, label in prepared(tmp_path / "out").items())


def test_annotation_files_may_be_larger_than_pictures(tmp_path, monkeypatch):
    layout(tmp_path / "in", "coco")
    monkeypatch.setattr(archives, "MOST_BYTES", 3000)
    assert (tmp_path / "in/annotations/instances_train2017.json").stat().st_size > 3000
    prepare_export(read, [tmp_path / "in"], tmp_path / "out")


def test_panoptic_pictures(tmp_path):
    rng = np.random.default_rng(0)
    truth = {}
    for split in ("train", "val"):
        found = {**content(1 if split == "train" else 2, 2), "annotations": []}
        write_pictures(tmp_path / f"in/{split}2017", found)
        for image in found["images"]:
            ids = np.array([0, 70_000 + image["id"], 3, 5_000_000])
            segments = np.kron(rng.integers(0, 4, (10, 15)), np.ones((4, 4), int))
            value = ids[segments]
            path = tmp_path / f"in/annotations/panoptic_{split}2017/{image['file_name']}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.stack([value % 256, value // 256 % 256, value // 65536], -1).astype(np.uint8)).save(path)
            info = [{"id": int(ids[k]), "category_id": (18, 3, 18)[k - 1]} for k in (1, 2, 3)]
            found["annotations"].append({"image_id": image["id"], "file_name": path.name, "segments_info": info})
            truth[path.stem] = np.array([IGNORE, 1, 0, 1])[segments]
        dump(tmp_path / f"in/annotations/panoptic_{split}2017.json", found)
    prepare_export(read, [tmp_path / "in"], tmp_path / "out")
    assert DatasetInfo.load(tmp_path / "out").classes == ("car", "dog", "sky, cloudy")
    labels = prepared(tmp_path / "out")
    assert labels.keys() == truth.keys() and all((labels[name] == truth[name]).all() for name in truth)
    found["annotations"][0]["segments_info"].pop()
    dump(tmp_path / "in/annotations/panoptic_val2017.json", found)
    with pytest.raises(UserError, match=r"0200.png has pixels of the segment 5000000, which .*json does not list"):
        prepare_export(read, [tmp_path / "in"], tmp_path / "broken")


def set_first(key: str, value: object, of: str = "annotations"):
    def change(found: dict) -> None:
        found[of][0][key] = value

    return change


BROKEN = {
    "two points": (set_first("segmentation", [[1, 2, 3, 4]]), "the image 7, cannot be drawn: its polygon has 2 points"),
    "odd": (set_first("segmentation", [[1, 2, 3, 4, 5, 6, 7]]), "7 coordinates, an odd number"),
    "not finite": (set_first("segmentation", [[1, 2, 3, 4, 5, float("nan")]]), "not finite"),
    "numbers alone": (set_first("segmentation", [1, 2, 3, 4, 5, 6]), "its coordinates are no numbers"),
    "a number": (set_first("segmentation", 1.5), "the image 7, cannot be understood"),
    "no outline": (set_first("segmentation", []), "it has a box at most, but no outline"),
    "too short": (set_first("segmentation", {"size": [40, 60], "counts": [5, 5]}), "cover 10 pixels, but"),
    "too long": (set_first("segmentation", {"size": [40, 60], "counts": [5, 5000]}), "cover 5005 pixels"),
    "cut off": (set_first("segmentation", {"size": [40, 60], "counts": "PPP"}), "damaged or cut off"),
    "other size": (set_first("segmentation", {"size": [60, 40], "counts": "PPP"}), "its mask is 40x60, but the"),
    "no counts": (set_first("segmentation", {"size": [40, 60]}), "has no 'counts'"),
    "no size": (set_first("segmentation", {"size": None, "counts": [2400]}), "cannot be understood"),
    "category": (set_first("category_id", 5), "has the category 5, which the file does not list"),
    "image": (set_first("image_id", 99), "has an annotation of the image 99, which it does not list"),
    "picture": (set_first("file_name", "none.png", "images"), "names the picture none.png, which is not there"),
    "climbing": (set_first("file_name", "../../secret.png", "images"), "names the picture ../../secret.png, which"),
    "no name": (lambda found: found["images"][0].pop("file_name"), "image 7 has no 'file_name'"),
    "picture's size": (set_first("width", 61, "images"), "0100.png is 60x40 but its annotation"),
    "picture's huge size": (set_first("width", 10**9, "images"), "its annotation"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_members_are_one_sentence_or_left_out(tmp_path, capsys, kind):
    layout(tmp_path / "in", "coco")
    Image.new("RGB", (60, 40)).save(tmp_path / "secret.png")
    change, sentence = BROKEN[kind]
    found = content(1, 4)
    change(found)
    dump(tmp_path / "in/annotations/instances_train2017.json", found)
    words = ["prepare", "coco", "--source", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and sentence in told and "instances_train2017.json" in told
    assert not (tmp_path / "out").exists()
    assert main([*words, "--skip_broken"]) == 0
    assert "1 broken one left out; the first: " in (printed := capsys.readouterr().out) and sentence in printed
    assert DatasetInfo.load(tmp_path / "out").counts == {"train": 4 if kind == "image" else 3, "val": 2}
    assert len(list((tmp_path / "out/train/images").iterdir())) == len(list((tmp_path / "out/train/labels").iterdir()))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"images": [', "is not whole JSON"),
        ("[" * 100_000, "is not whole JSON"),
        ('{"images": 5, "categories": [], "annotations": []}', "cannot be understood"),
        ('{"images": [], "categories": [], "annotations": []}', "has no annotated pictures"),
        ('{"categories": [], "annotations": []}', "instances.json has no 'images'"),
        ("{}", "has COCO's images, categories and annotations"),
    ],
)
def test_broken_files_are_one_sentence(tmp_path, capsys, text, sentence):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/instances.json").write_text(text)
    assert main(["prepare", "coco", "--source", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and sentence in told


def test_two_files_of_one_picture(tmp_path, capsys):
    layout(tmp_path / "in", "coco")
    dump(tmp_path / "in/annotations/stuff_train2017.json", content(1, 4))
    words = ["prepare", "coco", "--source", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    assert "both annotate train2017/0100.png; choose the files with --annotations" in capsys.readouterr().err
    assert main([*words, "--annotations", "stuff_train*", "instances_val*"]) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("stored", [False, True])
def test_shapes_on_turned_pictures(tmp_path, orientation, stored):
    """A box drawn on the upper left of the picture as shown, or as stored where the file's size says so."""
    found = content(1, 2)
    exif = Image.Exif()
    exif[0x112] = orientation
    write_pictures(tmp_path / "in", found)
    size = (60, 40) if orientation >= 5 and not stored else SIZE
    for image in found["images"]:
        image["height"], image["width"] = size
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "in" / image["file_name"], exif=exif)
    box = {"category_id": 3, "segmentation": [[0, 0, 10, 0, 10, 5, 0, 5]]}
    found["annotations"] = [{**box, "id": 1, "image_id": 7}, {**box, "id": 2, "image_id": 8}]
    dump(tmp_path / "in/a.json", found)
    prepare_export(read, [tmp_path / "in"], tmp_path / "out", masks_as="stored" if stored else "shown")
    label = np.zeros(size, int)
    label[:5, :10] = 1
    if stored:
        whole = Image.fromarray(label.astype(np.uint8))
        turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
        label = np.array(whole.transpose(turns[orientation]) if orientation in turns else whole)
    assert all((each == label).all() for each in prepared(tmp_path / "out").values())
