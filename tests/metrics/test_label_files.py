"""Label maps of every kind that programs leave score alike, by names of their own; what does not fit is told."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cssformer.cli import main
from cssformer.data.image_io import write_image
from cssformer.metrics import Predictions, evaluate_predictions, open_truth
from cssformer.metrics.confusion import Scores
from cssformer.utils.errors import UserError

CLASSES = ("road", "tree", "sky")
RNG = np.random.default_rng(0)
TRUTH = {name: RNG.integers(0, 3, (20, 30)).astype(np.uint8) for name in ("a", "b_1", "c")}
TRUTH["b_1"][2:6, 3:9] = 255
SAID = {name: np.where(RNG.random((20, 30)) < 0.6, label % 255, 1).astype(np.uint8) for name, label in TRUTH.items()}
SAID["c"][:4] = 255


def by_hand() -> tuple[float, list[float]]:
    """mIoU and IoU, class by class and pixel by pixel."""
    iou = []
    for index in range(3):
        common = either = 0
        for name, label in TRUTH.items():
            for true, said in zip(label.ravel(), SAID[name].ravel(), strict=True):
                common += bool(true == said == index)
                either += bool(true != 255 and index in (true, said))
        iou.append(common / either)
    return float(np.mean(iou)), iou


def pngs(folder: Path, maps: dict[str, NDArray[np.uint8]], name: str = "{}.png") -> Path:
    folder.mkdir(parents=True)
    for each, label in maps.items():
        cv2.imwrite(str(folder / name.format(each)), label)
    return folder


def tiffs(folder: Path, maps: dict[str, NDArray[np.uint8]]) -> Path:
    folder.mkdir()
    for each, label in maps.items():
        Image.fromarray(label).save(folder / f"{each}.tif")
    return folder


def arrays(folder: Path, maps: dict[str, NDArray[np.uint8]]) -> Path:
    folder.mkdir()
    for each, label in maps.items():
        np.save(folder / f"{each}.npy", label.astype(np.int64))
    return folder


def archives(folder: Path, maps: dict[str, NDArray[np.uint8]]) -> Path:
    folder.mkdir()
    for each, label in maps.items():
        np.savez_compressed(folder / f"{each}.npz", label)
    return folder


def one_archive(folder: Path, maps: dict[str, NDArray[np.uint8]]) -> Path:
    np.savez(folder.with_suffix(".npz"), **maps)
    return folder.with_suffix(".npz")


def misnamed(folder: Path, maps: dict[str, NDArray[np.uint8]]) -> Path:
    """An archive that is called as an array, and arrays that are called as archives."""
    if maps is SAID:
        return one_archive(folder, maps).rename(folder.with_suffix(".npy"))
    for path in arrays(folder, maps).iterdir():
        path.rename(path.with_suffix(".npz"))
    return folder


CATEGORIES = [{"id": 30, "name": "sky"}, {"id": 7, "name": "road"}, {"id": 21, "name": "tree"}]


def listed(maps: dict[str, NDArray[np.uint8]]) -> dict:
    images = [
        {"id": number, "file_name": f"val/{name}.jpg", "height": label.shape[0], "width": label.shape[1]}
        for number, (name, label) in enumerate(maps.items())
    ]
    return {"images": images, "categories": CATEGORIES}


def panoptic(folder: Path, maps: dict[str, NDArray[np.uint8]]) -> Path:
    """Segment 256 * (number of the class + 1) + 3, red being the lowest byte; what is ignored is black."""
    annotations = []
    folder.mkdir()
    for number, (name, label) in enumerate(maps.items()):
        present = [int(index) for index in np.unique(label) if index != 255]
        green = np.where(label == 255, 0, label + 1).astype(np.uint8)
        colours = np.stack([np.where(label == 255, 0, 3), green, np.zeros_like(green)], -1).astype(np.uint8)
        Image.fromarray(colours).save(folder / f"{name}.png")
        ids = {each["name"]: each["id"] for each in CATEGORIES}
        segments = [{"id": 256 * (index + 1) + 3, "category_id": ids[CLASSES[index]]} for index in present]
        annotations.append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
    path = folder.with_suffix(".json")
    path.write_text(json.dumps({**listed(maps), "annotations": annotations}))
    return path


def runs(maps: dict[str, NDArray[np.uint8]]) -> list[dict]:
    """A run-length mask for each class of each picture, as detectors and COCO's stuff task write results."""
    coco = pytest.importorskip("pycocotools.mask")
    ids = {each["name"]: each["id"] for each in CATEGORIES}
    found = []
    for number, label in enumerate(maps.values()):
        for index, name in enumerate(CLASSES):
            mask = coco.encode(np.asfortranarray((label == index).astype(np.uint8)))
            mask["counts"] = mask["counts"].decode()
            found.append({"image_id": number, "category_id": ids[name], "segmentation": mask, "score": 0.5})
    return found


def run_lengths(folder: Path, maps: dict[str, NDArray[np.uint8]]) -> Path:
    path = folder.with_suffix(".json")
    path.write_text(json.dumps({**listed(maps), "annotations": runs(maps)}))
    return path


def results(folder: Path, maps: dict[str, NDArray[np.uint8]]) -> Path:
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(runs(maps)))
    return path


Written = Callable[[Path, dict[str, NDArray[np.uint8]]], Path]


FILES = (pngs, tiffs, arrays, archives, one_archive)


@pytest.mark.parametrize(
    ("said", "truth"),
    [
        *((said, pngs) for said in (*FILES, run_lengths)),
        (panoptic, one_archive),
        (results, panoptic),
        (misnamed, misnamed),
    ],
)
def test_every_kind_scores_alike(tmp_path: Path, truth: Written, said: Written) -> None:
    file = tmp_path / "scores.json"
    words = ["score", str(said(tmp_path / "said", SAID)), str(truth(tmp_path / "truth", TRUTH)), "--json", str(file)]
    assert main(words if truth is panoptic else [*words, "--classes", *CLASSES]) == 0
    miou, iou = by_hand()
    found = json.loads(file.read_text())
    assert found["miou"] == pytest.approx(miou, abs=1e-12) and found["pictures"] == 3
    for name, value in zip(CLASSES, iou, strict=True):
        assert found["classes"][name]["iou"] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("raw", [False, True])
def test_files_against_cocos_truth_hold_class_indices_or_the_ids_of_categories(tmp_path: Path, raw: bool) -> None:
    """Of run lengths what has none is the background, class and id 0."""
    truth = open_truth(run_lengths(tmp_path / "truth", TRUTH))
    assert truth.info.classes == ("background", "road", "tree", "sky")
    meant = {0: 7, 1: 21, 2: 30, 255: 0} if raw else {0: 1, 1: 2, 2: 3, 255: 0}
    maps = {name: np.vectorize(meant.get)(label).astype(np.uint8) for name, label in SAID.items()}
    scores = evaluate_predictions(Predictions(pngs(tmp_path / "said", maps), truth, raw), truth).scores
    expected = np.zeros((4, 4), np.int64)
    for name, label in TRUTH.items():
        np.add.at(expected, (label + np.uint8(1), SAID[name] + np.uint8(1)), 1)
    assert scores.iou == Scores.from_matrix(expected).iou


def test_masks_that_are_named_after_more(tmp_path: Path) -> None:
    """As in Cityscapes: folders by town, several kinds of masks beside each other, ids of a class file."""
    ids = np.array([7, 21, 23], np.uint8)
    raw = {name: np.where(label == 255, 0, ids[label % 255]).astype(np.uint8) for name, label in TRUTH.items()}
    said = {name: np.where(label == 255, 0, ids[label % 255]).astype(np.uint8) for name, label in SAID.items()}
    truth = pngs(tmp_path / "gt" / "town", raw, "town_{}_gtFine_labelIds.png").parent
    for name in raw:
        cv2.imwrite(str(truth / "town" / f"town_{name}_gtFine_color.png"), np.zeros((20, 30, 3), np.uint8))
    pngs(tmp_path / "said" / "town", said, "town_{}_leftImg8bit.png")
    (tmp_path / "classes.txt").write_text("7 road\n21 tree\n23 sky\n")
    words = [
        "score",
        str(tmp_path / "said"),
        str(truth),
        "--class_file",
        str(tmp_path / "classes.txt"),
        "--ignore",
        "0",
    ]
    file = tmp_path / "scores.json"
    assert main([*words, "--label_suffix", "_gtFine_labelIds.png", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["miou"] == pytest.approx(by_hand()[0], abs=1e-12)


def test_class_indices_read_as_ids_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where they are ids too, but ignored ones, pixels are left out and the score is another one."""
    ids = np.array([7, 21, 23, 255], np.uint8)
    raw, right = ({name: ids[label.clip(0, 3)] for name, label in maps.items()} for maps in (TRUTH, SAID))
    truth = pngs(tmp_path / "truth", raw)
    (tmp_path / "classes.txt").write_text("7 road\n21 tree\n23 sky\n")
    options = ["--class_file", str(tmp_path / "classes.txt"), "--ignore", "0", "1", "2"]
    for name, maps, notes in (("indices", SAID, 1), ("ids", right, 0)):
        said = str(pngs(tmp_path / name, maps))
        for words in (["score", said], ["compare", said, said]):
            assert main([*words, str(truth), *options]) == 0
            told = capsys.readouterr().err
            assert told.count("no value above 2, as if it held indices of the 3 classes") == notes * (len(words) - 1)


def test_masks_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder, said in (("first", SAID), ("second", TRUTH)):
        pngs(tmp_path / "truth" / folder, TRUTH)
        pngs(tmp_path / "said" / folder, said)
    truth = open_truth(tmp_path / "truth", classes=CLASSES)
    found = evaluate_predictions(Predictions(tmp_path / "said", truth), truth)
    assert found.names == tuple(f"{folder}/{name}" for folder in ("first", "second") for name in sorted(TRUTH))
    once = open_truth(tmp_path / "truth" / "first", classes=CLASSES)
    apart = [evaluate_predictions(Predictions(tmp_path / "said" / each, once), once) for each in ("first", "second")]
    np.testing.assert_array_equal(found.matrix, apart[0].matrix + apart[1].matrix)
    assert evaluate_predictions(Predictions(tmp_path / "truth", truth), truth).scores.pixel_accuracy == 1
    np.save(tmp_path / "truth" / "first" / "a.npy", TRUTH["a"])
    with pytest.raises(UserError, match=r"first/a\.npy and .*first/a\.png have one name.*or score each folder"):
        open_truth(tmp_path / "truth", classes=CLASSES)


def test_two_predictions_for_one_mask_are_told(tmp_path: Path) -> None:
    """As arrays of an older run beside the PNGs of a newer one, of one picture or of all."""
    truth = open_truth(pngs(tmp_path / "truth", TRUTH), classes=CLASSES)
    said = pngs(tmp_path / "said", SAID)
    for name in ("a", "b_1", "c"):
        np.save(said / f"{name}.npy", TRUTH[name])
        with pytest.raises(UserError, match=r"said/a\.npy and .*said/a\.png may both be the prediction for a"):
            Predictions(said, truth)


def test_the_truth_scored_by_itself_is_right(tmp_path: Path) -> None:
    truth = open_truth(pngs(tmp_path / "truth", TRUTH), classes=CLASSES)
    assert evaluate_predictions(Predictions(tmp_path / "truth", truth), truth).scores.pixel_accuracy == 1
    pngs(tmp_path / "said", {f"other{name}": map for name, map in SAID.items()})
    with pytest.raises(UserError, match="No file under .*said is named like one under .*truth, such as .*; rename"):
        Predictions(tmp_path / "said", truth)


def test_ids_that_share_a_name_are_one_class(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0 ground\n1 plant\n2 ground\n")
    truth = open_truth(pngs(tmp_path / "truth", TRUTH), class_file=tmp_path / "classes.txt")
    assert truth.info.classes == ("ground", "plant")
    scores = evaluate_predictions(Predictions(pngs(tmp_path / "said", SAID), truth), truth).scores
    told = [
        np.stack([label, SAID[name]])[:, (label != 255) & (SAID[name] != 255)] == 1 for name, label in TRUTH.items()
    ]
    right = sum((true == said).sum() for true, said in told)
    assert scores.pixel_accuracy == right / sum((label != 255).sum() for label in TRUTH.values())


def test_class_indices_are_not_scored_as_ids(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("1 ground\n2 plant\n")
    maps = {"a": np.arange(64, dtype=np.uint8).reshape(8, 8) % 2}
    said = pngs(tmp_path / "said" / "labels", maps)
    write_image(tmp_path / "said" / "legend.png", np.zeros((9, 9, 3), np.uint8), json.dumps({"raw": False}))
    pngs(tmp_path / "truth", {name: each + 1 for name, each in maps.items()})
    truth = open_truth(tmp_path / "truth", class_file=tmp_path / "classes.txt", ignore=["0"])
    with pytest.raises(UserError, match="was predicted without --raw, but the truth holds ids; predict with --raw"):
        Predictions(said, truth)
    # Where ids are indices there is no difference.
    truth = open_truth(pngs(tmp_path / "same", maps), classes=["ground", "plant"])
    assert evaluate_predictions(Predictions(said, truth), truth).scores.miou == 1


def test_a_report_without_pictures(tmp_path: Path) -> None:
    words = ["score", str(pngs(tmp_path / "said", SAID)), str(pngs(tmp_path / "truth", TRUTH)), "--classes", *CLASSES]
    assert main([*words, "--output", str(tmp_path / "report"), "--group_by", "^."]) == 0
    report = tmp_path / "report"
    assert {path.name for path in report.iterdir()} == {
        *("scores.json", "classes.csv", "confusion.png", "pictures.csv", "pictures.png", "worst.png")
    }
    told = json.loads((report / "scores.json").read_text())
    assert told["model"] == str(tmp_path / "said") and told["data"] == str(tmp_path / "truth") and told["groups"] == 3


@pytest.mark.parametrize("place", ["", "report"])
def test_no_report_is_written_among_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    said, truth = pngs(tmp_path / "said", SAID), pngs(tmp_path / "truth", TRUTH)
    before = sorted(tmp_path.rglob("*"))
    for words in (["score", str(said)], ["compare", str(said), str(said)]):
        assert main([*words, str(truth), "--classes", *CLASSES, "--output", str(truth / place)]) == 2
        assert "holds the truth; give another output" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def changed(change: Callable[[dict[str, NDArray]], object]) -> Written:
    def write(folder: Path, maps: dict[str, NDArray[np.uint8]]) -> Path:
        ours = dict(maps)
        change(ours)
        return one_archive(folder, ours)

    return write


def pickled(folder: Path, maps: dict[str, NDArray[np.uint8]]) -> Path:
    np.save(folder.with_suffix(".npy"), np.array([{"a": 1}], object), allow_pickle=True)
    return folder.with_suffix(".npy")


def coloured(folder: Path, maps: dict[str, NDArray[np.uint8]]) -> Path:
    return pngs(folder, {name: np.stack([label, 2 * label, 3 * label], -1) for name, label in maps.items()})


def cut(folder: Path, maps: dict[str, NDArray[np.uint8]]) -> Path:
    path = one_archive(folder, maps)
    path.write_bytes(path.read_bytes()[:300])
    return path


def other_category(folder: Path, maps: dict[str, NDArray[np.uint8]]) -> Path:
    path = run_lengths(folder, maps)
    path.write_text(path.read_text().replace('"sky"', '"cloud"'))
    return path


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (changed(lambda maps: maps.pop("b_1")), "no prediction for 1 of 3 pictures: b_1 is missing"),
        (changed(lambda maps: maps.update(a=maps["a"].T)), "array a, is 20x30 but its picture is 30x20"),
        (changed(lambda maps: maps.update(a=maps["a"] + 1)), "array a, has the value 3, which is not an id"),
        (changed(lambda maps: maps.update(a=maps["a"].astype(int) - 1)), "array a, has the value -1"),
        (
            changed(lambda maps: maps.update(a=maps["a"] + np.uint64(2**63))),
            "array a, has the value 9223372036854775808",
        ),
        (changed(lambda maps: maps.update(a=maps["a"].astype(float))), "is float64 of the shape 20x30; give one class"),
        (changed(lambda maps: maps.update(a=np.stack([maps["a"]] * 3))), "is uint8 of the shape 3x20x30"),
        (pickled, "cannot be read as NumPy arrays: .*Python objects"),
        (cut, "cannot be read as NumPy arrays"),
        (coloured, "is a colour picture"),
        (other_category, "has the category 'cloud', but the classes are road, tree, sky"),
        (results, "is a list of results without images"),
        (lambda folder, maps: folder, "There is no file or folder"),
    ],
)
def test_what_does_not_fit_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], said: Written, told: str
) -> None:
    truth = pngs(tmp_path / "truth", TRUTH)
    words = ["score", str(said(tmp_path / "said", SAID)), str(truth), "--classes", *CLASSES]
    assert main([*words, "--output", str(tmp_path / "report")]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert re.search(told, sentence), sentence
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "does not tell its classes"),
        (
            {"classes": ["road", "tree"]},
            "png has the value 2, which is not an id of its classes \\(0, 1\\)",
        ),
        ({"classes": ["road"], "ignore": ["x"]}, "--ignore x is no id"),
        ({"classes": ["road"], "label_suffix": "_gt.png"}, "no label maps that end in _gt.png"),
    ],
)
def test_classes_that_do_not_fit_are_told(tmp_path: Path, given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        list(open_truth(pngs(tmp_path / "truth", TRUTH), **given))
