"""Class files of every form that people and programs write; what is none is refused, never taken for names."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cssformer.prepare.class_file import ClassLine, read_class_file
from cssformer.prepare.folder import Prepared, prepare_folder
from cssformer.utils.errors import UserError

ROAD, CAR, SKY = (128, 64, 128), (0, 0, 142), (70, 130, 180)
NAMES = ["road", "car", "sky"]
IDS = {"road": 0, "car": 1, "sky": 2}


def read(tmp_path: Path, text: str, name: str = "classes.txt") -> list[ClassLine]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_class_file(tmp_path / name)


IN_ORDER = {
    "lines": ("road\ncar\n\nsky\n", "txt"),
    "heading": ("name\nroad\ncar\nsky\n", "csv"),
    "JSON": ('[\n  "road",\n  "car",\n  "sky"\n]\n', "json"),
    "JSON in one line": ('["road", "car", "sky"]', "txt"),
    "YAML": ("names:\n- road\n- car\n- sky\n", "txt"),
    "YAML of YOLO": ("train: ../images\nnc: 3\nnames: ['road', 'car', 'sky']\n", "yaml"),
    "YAML list": ("- road\n- car\n- sky\n", "yml"),
}


@pytest.mark.parametrize("form", IN_ORDER)
def test_names_in_the_order_of_the_ids(tmp_path: Path, form: str) -> None:
    text, suffix = IN_ORDER[form]
    assert read(tmp_path, text, f"x.{suffix}") == [ClassLine(name, None, None) for name in NAMES]


WITH_IDS = {
    "ID NAME": "1 car\n0 road\n2 sky\n",
    "NAME ID": "road 0\ncar 1\nsky 2\n",
    "NAME ID by commas": "road,0\ncar,1\nsky,2\n",
    "with =": "0=road\n1=car\n2=sky\n",
    "with :": "0: road\n1: car\n2: sky\n",
    "arrows": "0 -> road\n1 -> car\n2 -> sky\n",
    "arrows behind": "road => 0\ncar => 1\nsky => 2\n",
    "dots": "0. road\n1. car\n2. sky\n",
    "brackets": "0) road\n1) car\n2) sky\n",
    "bars": "0|road\n1|car\n2|sky\n",
    "hyphens": "0 - road\n1 - car\n2 - sky\n",
    "hyphens behind": "road - 0\ncar - 1\nsky - 2\n",
    "comments": "# three\n0 road # asphalt\n1 car\n2 sky\n",
    "heading": "id,name\n0,road\n1,car\n2,sky\n",
    "heading shifted": "name,id\nroad,0\ncar,1\nsky,2\n",
    "heading of words": "class name\n0 road\n1 car\n2 sky\n",
    "Roboflow": "Pixel Value, Class\n0, road\n1, car\n2, sky\n",
    "more columns": "name;id;trainId;category\nroad;0;7;flat\ncar;1;9;vehicle\nsky;2;8;none\n",
    "JSON": '{\n  "0": "road",\n  "1": "car",\n  "2": "sky"\n}\n',
    "config.json": '{"id2label": {"0": "road", "1": "car", "2": "sky"}, "architectures": ["X"]}',
    "label2id": '{"label2id": {"road": 0, "car": 1, "sky": 2}}',
    "COCO": '{"categories": [{"id": 0, "name": "road"}, {"id": 1, "name": "car"}, {"id": 2, "name": "sky"}]}',
    "YAML": "names:\n  0: road\n  1: car\n  2: sky\n",
}


@pytest.mark.parametrize("form", WITH_IDS)
def test_names_with_ids(tmp_path: Path, form: str) -> None:
    found = read(tmp_path, WITH_IDS[form])
    assert {line.name: line.id for line in found} == IDS and all(line.colour is None for line in found)


WITH_COLOURS = {
    "R G B NAME": "128 64 128 road\n0 0 142 car\n70 130 180 sky\n",
    "NAME R G B": "road 128 64 128\ncar 0 0 142\nsky 70 130 180\n",
    "heading": "class_name,r,g,b\nroad,128,64,128\ncar,0,0,142\nsky,70,130,180\n",
    "heading by letters": "name,red,green,blue\nroad,128,64,128\ncar,0,0,142\nsky,70,130,180\n",
    "hexadecimal": "#804080 road\n#00008E car\n#4682b4 sky\n",
    "hexadecimal table": "name,hex\nroad,#804080\ncar,#00008e\nsky,#4682b4\n",
    "CVAT without #": "label:color_rgb:parts:actions\nroad:128,64,128::\ncar:0,0,142::\nsky:70,130,180::\n",
    "Supervisely": '{"classes": [{"title": "road", "color": "#804080"}, {"title": "car", "color": "#00008E"}, '
    '{"title": "sky", "color": "#4682B4"}], "tags": []}',
    "CVAT": "# label:color_rgb:parts:actions\nroad:128,64,128::\ncar:0,0,142::\nsky:70,130,180::\n",
    "JSON": '{"road": [128, 64, 128], "car": [0, 0, 142], "sky": [70, 130, 180]}',
    "JSON of hexadecimals": '{"road": "#804080", "car": "#00008e", "sky": "#4682b4"}',
}


@pytest.mark.parametrize("form", WITH_COLOURS)
def test_names_with_colours(tmp_path: Path, form: str) -> None:
    found = read(tmp_path, WITH_COLOURS[form])
    expected = zip(NAMES, (ROAD, CAR, SKY), strict=True)
    assert found == [ClassLine(name, None, colour) for name, colour in expected]


@pytest.mark.parametrize("text", ["3 #00008E car\n", 'id,name,color\n3,car,"(0, 0, 142)"\n', "3 0 0 142 car\n"])
def test_ids_and_colours(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == [ClassLine("car", 3, CAR)]


def test_a_prepared_folders_own_description(tmp_path: Path) -> None:
    text = (
        'ignore: 255\nclasses:\n  0: {name: "road", colour: [128, 64, 128]}\n  1: {name: "no", colour: [0, 0, 142]}\n'
    )
    assert read(tmp_path, text, "dataset.yaml") == [ClassLine("road", 0, ROAD), ClassLine("no", 1, CAR)]


def test_labelmes_ignored_class(tmp_path: Path) -> None:
    found = read(tmp_path, "__ignore__\n_background_\nroad\ncar\n")
    assert [(line.name, line.id, line.ignored) for line in found] == [
        *(("__ignore__", 255, True), ("_background_", 0, False), ("road", 1, False), ("car", 2, False))
    ]


def test_names_that_look_like_something_else(tmp_path: Path) -> None:
    for text in (
        "lane 1\nlane 2\n",
        "3-way junction\n2.5 ton truck\n",
        "zone-1\nlane-2\n",
        "road [wet]\nroad [dry]\n",
        "traffic light\nwall: brick\n",
        "no\nnull\n",
        "зима\n道路\n",
    ):
        assert [line.name for line in read(tmp_path, text)] == text.splitlines()


WRONG = {
    "JSON of another form": ('{"a": {"b": {"c": 1}}}', "is no name of a class|has the id"),
    "broken JSON": ("{\n", "no sound JSON"),
    "a key twice": ('{"0": "a", "0": "b"}', "twice"),
    "protobuf": ("item {\n  id: 1\n  name: 'cat'\n}\n", "form that is not known"),
    "XML": ("<labels>\n<label>cat</label>\n</labels>\n", "form that is not known"),
    "quoted": ('"road",\n"car",\n', "form that is not known"),
    "stars": ("* road\n* car\n", "form that is not known"),
    "ids with a fraction": ("1.0 road\n0.0 car\n", "form that is not known"),
    "hexadecimal numbers": ("0x804000 road\n0x00c81e car\n", "form that is not known"),
    "colours in parentheses": ("road (128, 64, 0)\ncar (0, 200, 30)\n", "form that is not known"),
    "all in one line": ("road, car, tree\n", "form that is not known"),
    "::": ("Cat::\nDog::\n", "form that is not known"),
    "an id of 20 digits": ("99999999999999999999 a\n", "ids are whole numbers from 0 to 65535"),
    "an id of 16 bits and more": ('{"65536": "a"}', "ids are whole numbers from 0 to 65535"),
    "a fraction": ('{"0.5": "a"}', "ids are whole numbers"),
    "a colour too large": ("300 0 0 a\n", "three numbers from 0 to 255"),
    "an infinite colour": ('{"a": [Infinity, 0, 0]}', "three numbers from 0 to 255"),
    "an infinite colour in YAML": ("a: [.inf, 0, 0]\n", "three numbers from 0 to 255"),
    "nested deep": ("[" * 5000 + "]" * 5000, "no sound JSON"),
    "nested deep YAML": ("a: " + "[" * 1000 + "]" * 1000, "no sound YAML"),
    "an endless YAML": ("a: &a [*a]\n", "refers to itself"),
    "too many": ("\n".join(f"c{number}" for number in range(65536)), "names 65536 classes"),
    "mixed": ("1 a\nb\n", "mixes"),
    "an id twice": ("0 a\n0 b\n1 c\n", "calls 0 both 'a' and 'b'"),
    "cells": ("id,name\n0,road\n1\n", "1 cells, but the heading has 2"),
    "nothing": ("# a comment\n\n", "names no classes"),
    "heading alone": ("id,name\n", "names no classes"),
    "empty YAML": ("names:\n", "is no name of a class"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, mistake: str) -> None:
    text, complaint = WRONG[mistake]
    with pytest.raises(UserError, match=complaint) as error:
        read(tmp_path, text)
    told = str(error.value)
    assert str(tmp_path / "classes.txt") in told and told.endswith(".") and told.isprintable() and len(told) < 400


def source(root: Path, ids: np.ndarray, colours: list[tuple[int, int, int]] | None = None) -> Path:
    for index in range(3):
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*ids.shape, 3), 10 * index, np.uint8)).save(root / f"images/{index}.png")
        mask = ids.astype(np.uint8) if colours is None else np.array(colours, np.uint8)[ids]
        Image.fromarray(mask).save(root / f"masks/{index}.png")
    return root


def prepared(tmp_path: Path, root: Path, text: str) -> Prepared:
    (tmp_path / "classes.txt").write_text(text)
    return prepare_folder([root], tmp_path / "out", class_file=tmp_path / "classes.txt")


def test_cvats_colours(tmp_path: Path) -> None:
    root = source(tmp_path / "in", np.array([[0, 1, 2, 2]]), [CAR, ROAD, SKY])
    info = prepared(tmp_path, root, WITH_COLOURS["CVAT"]).info
    assert info.classes == tuple(NAMES) and info.mapping["0 0 142"] == 1 and info.mapping["128 64 128"] == 0


def test_labelmes_ids(tmp_path: Path) -> None:
    root = source(tmp_path / "in", np.array([[0, 1, 2, 255]]))
    info = prepared(tmp_path, root, "__ignore__\n_background_\nroad\ncar\n").info
    assert info.classes == ("_background_", "road", "car")
    assert info.mapping == {"0": 0, "1": 1, "2": 2, "255": None}


def test_colours_of_a_class_file_with_ids_are_kept(tmp_path: Path) -> None:
    info = prepared(tmp_path, source(tmp_path / "in", np.array([[3, 7]])), "3 128 64 128 road\n7 #00008e car\n").info
    assert info.colours == (ROAD, CAR) and info.mapping == {"3": 0, "7": 1}


def test_more_names_than_ids_are_told(tmp_path: Path) -> None:
    root = source(tmp_path / "in", np.array([[0, 1]]))
    notes = prepared(tmp_path, root, "nothing\nroad\ncar\n").notes
    assert any("3 names in the order of the ids, but no mask holds an id above 1" in note for note in notes)


def test_names_that_differ_in_case_alone(tmp_path: Path) -> None:
    root = source(tmp_path / "in", np.array([[0, 1]]))
    with pytest.raises(UserError, match="'Road' and 'road' differ in case alone"):
        prepared(tmp_path, root, "Road\nroad\n")
    with pytest.raises(UserError, match="'Road' and 'road' differ in case alone"):
        prepare_folder([root], tmp_path / "out", classes=["Road", "road"])
    assert not (tmp_path / "out").exists()


def test_two_classes_of_one_colour_in_colour_masks(tmp_path: Path) -> None:
    root = source(tmp_path / "in", np.array([[0, 1]]), [ROAD, CAR])
    with pytest.raises(UserError, match="gives 'road' and 'car' one colour"):
        prepared(tmp_path, root, "0 128 64 128 road\n1 128 64 128 car\n")


def test_as_many_classes_as_16_bits_hold(tmp_path: Path) -> None:
    """Quadratic work would take minutes here."""
    root = source(tmp_path / "in", np.array([[0, 1]]))
    found = prepared(tmp_path, root, "\n".join(f"c{number}" for number in range(65535)))
    assert len(found.info.classes) == 65535 and found.info.ignore == 65535


def test_colours_that_are_not_in_the_masks_are_told(tmp_path: Path) -> None:
    found = prepared(tmp_path, source(tmp_path / "in", np.array([[0, 1]])), "128 64 128 road\n0 0 142 car\n")
    assert found.info.mapping == {"0": 0, "1": 1} and any("not in the masks" in note for note in found.notes)
