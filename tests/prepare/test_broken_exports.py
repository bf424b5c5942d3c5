"""Exports with a broken member: one sentence with file and place and nothing written, or the picture left out."""

import re
import shutil
from pathlib import Path

import pytest

from cssformer.cli import main
from cssformer.data import DatasetInfo

EXPORTS = Path(__file__).parent / "exports"
COMMANDS = {"label_studio": "label-studio", "label_studio_png": "label-studio"}

CVAT, LABELME = ("cvat", "train.xml"), ("labelme", "train/a.json")
STUDIO, YOLO = ("label_studio", "project.json"), ("yolo", "labels/train/a.txt")
POINTS = r'"points": \[\s*\['

# Export, file, what is replaced by what, and what is said; the file's first match is replaced.
ONE_PICTURE = {
    "yolo two points": (*YOLO, r"^0 .*", "0 0.1 0.1 0.2 0.2 ", "polygon has 2 points|is a box"),
    "yolo box": (*YOLO, r"^0 .*", "0 0.5 0.5 0.2 0.2", "line 1, cannot be understood: it is a box"),
    "yolo odd": (*YOLO, r"^0 .*", "0 0.5 0.5 0.2 0.2 0.1 0.1 0.2", "odd number"),
    "yolo class": (*YOLO, r"^0 ", "9 ", "line 1, has the class 9, which data.yaml does not name"),
    "yolo nan": (*YOLO, r"^0 \S+", "0 nan", "not finite"),
    "yolo word": (*YOLO, r"^0 \S+", "0 here", "line 1, cannot be understood"),
    "yolo pixels": (*YOLO, r"^0 \S+", "0 47.5", "far outside the picture of 48x36"),
    "voc colour": ("voc", "labelmap.txt", "tree:::", "tree:1,2,3::", "has the colour"),
    "voc no mask": ("voc", "ImageSets/Segmentation/train.txt", "a", "x", "train.txt names x, which has no mask"),
    "labelme two points": (*LABELME, r'"points": \[(\s*\[[^]]*\],?){8}', '"points": [[1, 2], [3, 4]', "has 2 points"),
    "labelme nan": (*LABELME, rf"{POINTS}\s*[\d.]+", '"points": [[NaN', "shape 1 .* not finite"),
    "labelme far": (*LABELME, rf"{POINTS}\s*[\d.]+", '"points": [[1e30', "far outside"),
    "labelme three": (*LABELME, POINTS, '"points": [[5, ', "shape 1 .* cannot be understood"),
    "labelme kind": (*LABELME, '"circle"', '"blob"', "the shape_type 'blob' is not known"),
    "labelme size": (*LABELME, '"imageWidth": 48', '"imageWidth": 49', "a.png is 48x36 but its annotation"),
    "labelme picture": (*LABELME, '"imagePath": "a.png"', '"imagePath": "../../../etc/a.jpg"', "which is not there"),
    "labelme no picture": (*LABELME, '"imagePath": "a.png"', '"imagePath": null', "which is not there"),
    "labelme mask": (*LABELME, r'"mask": "iVBOR', '"mask": "!', "base64 of a picture is damaged"),
    "labelme mask's box": (
        *LABELME,
        r'"points": (\[\s*\[\s*\d+,\s*)',
        r'"points": \g<1>1',
        "not the size of its box|odd",
    ),
    "labelme embedded": (
        "labelme",
        "train/b.json",
        '"imageData": "iVBOR',
        '"imageData": "iVBxx',
        "cannot be read as a picture",
    ),
    "labelme cut off": (*LABELME, r'"shape_type": "circle"(?s:.*)', "", "is not whole JSON"),
    "labelme no shapes": (*LABELME, '"shapes"', '"shape"', "has no 'shapes'"),
    "labelme no label": (*LABELME, '"label"', '"lable"', "has no 'label'"),
    "cvat two points": (
        *CVAT,
        r'points="[^;]*;([^;]*);[^"]*"',
        r'points="1,1;\1"',
        "image 0, shape 1 .polygon car. .* 2 points",
    ),
    "cvat odd": (*CVAT, 'points="', 'points="5;', "odd number"),
    "cvat number": (*CVAT, 'points="', 'points="x,', "cannot be understood"),
    "cvat label": (
        *CVAT,
        '<polygon label="car"',
        '<polygon label="cow"',
        "has the label 'cow', which the file does not",
    ),
    "cvat mask": (*CVAT, 'rle="', 'rle="5, ', "its run lengths cover"),
    "cvat mask's size": (*CVAT, r'height="\d+" z_order', 'height="99999999999" z_order', "is not within|99999999999"),
    "cvat mask's place": (*CVAT, r'left="\d+"', 'left="40"', "is not within the picture of 48x36"),
    "cvat size": (*CVAT, 'width="48"', 'width="47"', "a.png is 48x36 but its annotation"),
    "cvat picture": (*CVAT, 'name="a.png"', 'name="../../a.jpg"', "names the picture ../../a.jpg, which is not there"),
    "cvat no width": (*CVAT, 'width="48"', "", "image 0 has no 'width'"),
    "studio no data": (*STUDIO, '"data"', '"date"', "project.json, task 1 has no 'data'"),
    "studio odd": (*STUDIO, r'"points": \[\[', '"points": [[5, ', "region polygon0 .* cannot be understood"),
    "studio points": (*STUDIO, r'"points": \[(\[[^]]*\], ){7}', '"points": [', "polygon has 1 points"),
    "studio labels": (*STUDIO, r'"polygonlabels": \["car"\]', '"polygonlabels": []', "has 0 labels; give it one"),
    "studio brush": (
        *STUDIO,
        r'"rle": \[0, 0, 27, 0, ([^]]{300})[^]]*\]',
        r'"rle": [0, 0, 27, 0, \1]',
        "brush mask is cut off",
    ),
    "studio size": (*STUDIO, r'"original_width": 48', '"original_width": 47', "pictures of 2 sizes"),
    "studio picture": (*STUDIO, "0123abc1-a.png", "0123abc9-none.png", "none.png, which is not there"),
    "studio no result": (
        *STUDIO,
        '"was_cancelled": false, "result"',
        '"was_cancelled": false, "res"',
        "has no 'result'",
    ),
}

WHOLE_EXPORT = {
    "yolo yaml": ("yolo", "data.yaml", "names:", "names: [", "is not YAML"),
    "yolo names": ("yolo", "data.yaml", "names:", "nomes:", "has 0 YAML files with names"),
    "yolo folder": (
        "yolo",
        "data.yaml",
        "images/val",
        "images/none",
        "names the folder images/none, which is not there",
    ),
    "voc labelmap": ("voc", "labelmap.txt", "tree:::", "tree", "line 'tree', cannot be understood"),
    "voc colour of two": ("voc", "labelmap.txt", "tree:::", "tree:128,0,0::", "its colour is that of car"),
    "voc colour above 255": ("voc", "labelmap.txt", "tree:::", "tree:256,0,0::", "line 'tree:256,0,0::', cannot be"),
    "voc two lists": ("voc", "ImageSets/Segmentation/val.txt", "c", "c\na", "val.txt both name a; leave it in one"),
    "cvat colour": (*CVAT, "<name>car</name>", "<name>car</name><color>#xx0000</color>", "label car cannot"),
    "cvat cut off": (*CVAT, r"</image>(?s:.*)", "", "is not whole XML"),
    "cvat video": (*CVAT, "</annotations>", "<track/></annotations>", "is of a video"),
    "cvat bomb": (
        *CVAT,
        r"<annotations>",
        '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotations>',
        "has a document type",
    ),
    "studio id": ("label_studio_png", "result.json", r'"id": 11', '"id": {}', "task {} cannot be understood"),
    "studio cut off": (*STUDIO, r'"polygon3"(?s:.*)', "", "is not whole JSON"),
}


def broken(folder: Path, kind: str, file: str, old: str, new: str) -> list[str]:
    """The words of the command on a copy with the change."""
    shutil.copytree(EXPORTS / kind, folder / "in")
    path = folder / "in" / file
    text, count = re.subn(old, new, path.read_text(), count=1, flags=re.MULTILINE)
    assert count == 1
    path.write_text(text)
    command = ["prepare", COMMANDS.get(kind, kind), "--source", str(folder / "in"), "--output", str(folder / "out")]
    return [*command, "--val_share", "0.3"]


@pytest.mark.parametrize("case", ONE_PICTURE)
def test_a_broken_picture(tmp_path, capsys, case):
    kind, file, old, new, sentence = ONE_PICTURE[case]
    words = broken(tmp_path, kind, file, old, new)
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and re.search(sentence, told) and str(tmp_path / "in") in told, told
    assert not (tmp_path / "out").exists()
    if case == "voc colour":
        return
    assert main([*words, "--skip_broken"]) == 0
    printed = capsys.readouterr().out
    assert "1 broken one left out; the first: " in printed and re.search(sentence, printed)
    counts = DatasetInfo.load(tmp_path / "out").counts
    assert sum(counts.values()) == 2
    for split, count in counts.items():
        assert [len(list((tmp_path / "out" / split / part).iterdir())) for part in ("images", "labels")] == [count] * 2


@pytest.mark.parametrize("kind", ["coco", "panoptic", "yolo", "voc", "labelme", "cvat", "label_studio"])
def test_a_picture_that_is_not_there(tmp_path, capsys, kind):
    shutil.copytree(EXPORTS / kind, tmp_path / "in")
    command = "coco" if kind == "panoptic" else COMMANDS.get(kind, kind)
    words = ["prepare", command, "--source", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    masks = ("Segmentation", "annotations")
    (path,) = (each for each in (tmp_path / "in").rglob("*a.png") if not any(word in str(each) for word in masks))
    path.unlink()
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "not there" in told and not (tmp_path / "out").exists()
    assert main([*words, "--skip_broken", "--val_share", "0.5"]) == 0
    assert "1 broken one left out; the first: " in capsys.readouterr().out


@pytest.mark.parametrize("case", WHOLE_EXPORT)
def test_a_broken_export(tmp_path, capsys, case):
    kind, file, old, new, sentence = WHOLE_EXPORT[case]
    words = broken(tmp_path, kind, file, old, new)
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and sentence in told, told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc", "labelme", "cvat", "label-studio"])
def test_another_folder_than_an_export(tmp_path, capsys, kind):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("words")
    assert main(["prepare", kind, "--source", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and ("The source has" in told or "of the source" in told)
