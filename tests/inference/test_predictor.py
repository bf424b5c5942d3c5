"""Predictor and predicted files with a tiny saved network."""

import io
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cssformer.data import IGNORE, SyntheticScenes
from cssformer.inference import Prediction, Predictor, predict, predict_files
from cssformer.inference.sources import find_sources
from cssformer.model import CSSFormer, Metadata
from cssformer.utils.atomic import atomic_write
from cssformer.utils.errors import UserError

CLASSES, COLOURS = ("sky", "tree", "road"), ((10, 20, 230), (20, 200, 30), (90, 90, 90))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    tiny = {"backbone": "test_resnet", "channels": 32, "heads": 4, "points": 2, "aux": False}
    model = CSSFormer(num_classes=3, **tiny)
    model.metadata = Metadata(CLASSES, COLOURS)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return Predictor.from_pretrained(model_folder, device="cpu")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three pictures, one of them in a sub-folder."""
    root = tmp_path / "pictures"
    for index, name in enumerate(("a.png", "b.v2.jpg", "deep/er/c.png")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(SyntheticScenes(3, (40, 50 + index))[index].image).save(path)
    (root / "notes.txt").write_text("no picture")
    return root


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_file_array_and_pil_give_what_the_model_says(predictor: Predictor, pictures: Path) -> None:
    array = np.asarray(Image.open(pictures / "a.png"))
    expected = predict(predictor.model, torch.tensor(array).permute(2, 0, 1), confidence=True)
    for image in (pictures / "a.png", str(pictures / "a.png"), array, Image.fromarray(array)):
        prediction = predictor(image)
        assert prediction.labels.dtype == np.int32 and prediction.confidence.dtype == np.float32
        np.testing.assert_array_equal(prediction.labels, expected.labels)
        np.testing.assert_array_equal(prediction.confidence, expected.confidence)
        np.testing.assert_array_equal(prediction.image, array)


def test_options_reach_the_inference(model_folder: Path, pictures: Path) -> None:
    array = np.asarray(Image.open(pictures / "a.png"))
    sliding = Predictor.from_pretrained(model_folder, "cpu", mode="slide", crop=32, flip=True)
    expected = predict(sliding.model, torch.tensor(array).permute(2, 0, 1), mode="slide", crop=32, flip=True)
    np.testing.assert_array_equal(sliding(array).labels, expected.labels)


@pytest.mark.parametrize("unused", [{"crop": (64, 64)}, {"stride": (32, 32)}])
def test_a_window_that_does_not_slide_is_told(model_folder: Path, unused: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(UserError, match=f"The {min(unused)} is that of the sliding window"):
        Predictor.from_pretrained(model_folder, "cpu", **unused)
    assert Predictor.from_pretrained(model_folder, "cpu", mode="slide", **unused).options.items() >= unused.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "slyde"}, "The mode is whole or slide, not 'slyde'"),
        ({"foo": 1}, "no option 'foo' of prediction; there are mode, crop,"),
        ({"scales": (0.0,)}, "scales must be"),
        ({"mode": "slide", "crop": 64, "stride": 65}, "gaps"),
    ],
)
def test_options_are_checked_where_they_are_given(model_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Predictor.from_pretrained(model_folder, "cpu", **options)


@pytest.mark.parametrize("model", [torch.nn.Linear(3, 3), "animals"], ids=str)
def test_what_is_no_network_of_ours_is_told(model: object) -> None:
    with pytest.raises(TypeError, match=r"takes a network such as CSSFormer, not .*(Linear|animals).*from_pretrained"):
        Predictor(model)


def test_a_device_that_computes_nothing_is_refused_and_leaves_the_network(model_folder: Path) -> None:
    network = CSSFormer.from_pretrained(model_folder)
    with pytest.raises(UserError, match="'meta' computes nothing"):
        Predictor(network, "meta")
    assert not any(value.is_meta for value in network.state_dict().values())


def test_a_network_in_training_stays_so_and_is_predicted_with_as_if_it_were_not(
    predictor: Predictor, model_folder: Path, pictures: Path
) -> None:
    model = CSSFormer.from_pretrained(model_folder).train()
    model.backbone.eval()
    found = Predictor(model, "cpu")(pictures / "a.png")
    assert (found.labels == predictor(pictures / "a.png").labels).all()
    assert model.training and model.head.training and not model.backbone.training


def test_a_list_of_pictures_gives_a_list(predictor: Predictor, pictures: Path) -> None:
    """Files and arrays, of different sizes."""
    paths = [pictures / "a.png", pictures / "deep/er/c.png"]
    images = [paths[0], np.asarray(Image.open(paths[1]))]
    predictions = predictor(images, confidence=False)
    assert [each.confidence for each in predictions] == [None, None]
    for prediction, path in zip(predictions, paths, strict=True):
        np.testing.assert_array_equal(prediction.labels, predictor(path).labels)
    assert predictor([]) == []


def test_a_photograph_is_turned_upright(predictor: Predictor, tmp_path: Path) -> None:
    stored = Image.fromarray(SyntheticScenes(1, (40, 64))[0].image)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "phone.jpg", exif=exif)
    assert predictor(tmp_path / "phone.jpg").labels.shape == (64, 40)


def test_prediction_by_hand() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    prediction = Prediction(image, np.array([[2, 2], [0, 2]]), np.ones((2, 2), np.float32), CLASSES, COLOURS)
    assert prediction.shares == {"road": 0.75, "sky": 0.25}
    assert prediction.overlay(1.0).shape == image.shape
    plain = Prediction(np.full((9, 9, 3), 100, np.uint8), np.full((9, 9), 1), np.ones((9, 9)), CLASSES, COLOURS)
    assert np.unique(plain.overlay(0.5).reshape(-1, 3), axis=0).tolist() == [[60, 150, 65]]
    assert plain.overlay(0.0).tolist() == plain.image.tolist()
    assert (prediction.legend() == COLOURS[2]).all(-1).any()
    assert not (prediction.legend() == COLOURS[1]).all(-1).any()


def test_supervision_draws_each_class() -> None:
    supervision = pytest.importorskip("supervision")
    labels = np.array([[2, 2, 2], [0, 2, 2]], np.int32)
    confidence = np.array([[1.0, 0.5, 0.5], [0.25, 0.5, 0.5]], np.float32)
    prediction = Prediction(np.zeros((2, 3, 3), np.uint8), labels, confidence, CLASSES, COLOURS)
    found = prediction.to_supervision()
    assert found.class_id.tolist() == [2, 0]
    assert found["class_name"].tolist() == ["road", "sky"]
    assert found.area.tolist() == [5, 1]
    np.testing.assert_allclose(found.confidence, [0.6, 0.25])
    assert found.xyxy.tolist() == [[0, 0, 2, 1], [0, 1, 0, 1]]
    palette = supervision.ColorPalette([supervision.Color(*colour) for colour in COLOURS])
    drawn = supervision.MaskAnnotator(palette, 1.0).annotate(prediction.image.copy(), found)
    np.testing.assert_array_equal(drawn[..., ::-1], np.array(COLOURS)[labels])
    assert replace(prediction, confidence=None).to_supervision().confidence is None


def test_fiftyone_keeps_its_0_for_the_background() -> None:
    image, labels = np.zeros((1, 3, 3), np.uint8), np.array([[0, 2, 1]], np.int32)
    prediction = Prediction(image, labels, None, CLASSES, COLOURS)
    behind = replace(prediction, classes=("background", "tree", "road"))
    assert prediction.mask_targets == {1: "sky", 2: "tree", 3: "road"}
    assert behind.mask_targets == {0: "background", 1: "tree", 2: "road"}
    pytest.importorskip("fiftyone")
    assert prediction.to_fiftyone().mask.tolist() == [[1, 3, 2]]
    assert behind.to_fiftyone().mask.tolist() == [[0, 2, 1]]
    assert behind.to_fiftyone().mask.dtype == np.uint8


def test_index_png_keeps_classes_and_colours(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (30, 40)).astype(np.int32)
    image = np.zeros((30, 40, 3), np.uint8)
    Prediction(image, labels, np.ones((30, 40), np.float32), CLASSES, COLOURS).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), labels)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.array(COLOURS)[labels])
    assert (tmp_path / "labels.png").read_bytes()[24] == 8


def test_more_than_255_classes_take_16_bits(tmp_path: Path) -> None:
    labels = np.arange(600, dtype=np.int32).reshape(20, 30)
    names, colours = tuple(map(str, range(600))), ((1, 2, 3),) * 600
    image = np.zeros((20, 30, 3), np.uint8)
    Prediction(image, labels, np.ones((20, 30), np.float32), names, colours).save(tmp_path / "labels.png")
    read = cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, labels)


def test_probabilities_of_every_class_are_written(
    model_folder: Path, pictures: Path, tmp_path: Path, predictor: Predictor
) -> None:
    predict_files(str(model_folder), [pictures / "a.png"], tmp_path / "out", probabilities=True, device="cpu")
    written = np.load(tmp_path / "out/probabilities/a.npy")
    assert written.dtype == np.float16
    picture = torch.from_numpy(np.array(Image.open(pictures / "a.png"))).permute(2, 0, 1)
    with torch.no_grad():
        logits = predictor.network(picture[None].float() / 255)
    np.testing.assert_allclose(written, logits[0].softmax(0), atol=2e-3)
    chosen = np.take_along_axis(written, predictor(pictures / "a.png").labels[None], axis=0)
    np.testing.assert_array_equal(chosen[0], written.max(axis=0))


def test_probabilities_that_do_not_fit_on_the_disk_are_told_as_such(
    model_folder: Path, tmp_path: Path, no_file_above: Callable[[int], AbstractContextManager[None]]
) -> None:
    """By the system's number, by which a full disk ends the command; NumPy tells none."""
    Image.fromarray(SyntheticScenes(1, (200, 200))[0].image).save(tmp_path / "a.png")
    with no_file_above(200_000), pytest.raises(UserError, match=r"Cannot write .*probabilities/a\.npy: File too large"):
        predict_files(str(model_folder), [tmp_path / "a.png"], tmp_path / "out", probabilities=True, device="cpu")
    assert files_below(tmp_path / "out") == ["legend.png"]


def test_probabilities_are_0_without_data() -> None:
    labels = np.array([[[0, IGNORE]], [[1, 1]]], np.int32)
    image, certain = np.zeros((1, 2, 3), np.uint8), np.array([[[0.7, 0.6]], [[0.3, 0.4]]], np.float32)
    prediction = Prediction(image, labels[0], None, ("a", "b"), ((0, 0, 0), (1, 1, 1)), labels, certain)
    np.testing.assert_array_equal(prediction.probabilities, np.float32([[[0.7, 0]], [[0.3, 0]]]))


def test_a_model_without_names_gets_some() -> None:
    predictor = Predictor(CSSFormer("test_resnet", 4, channels=32, heads=4, points=2), "cpu")
    assert predictor.classes[3] == "class 3"
    assert len(set(predictor.colours)) == 4


def test_folder_keeps_its_layout(model_folder: Path, pictures: Path, tmp_path: Path, predictor: Predictor) -> None:
    output = tmp_path / "out"
    result = predict_files(str(model_folder), [pictures], output, overlay=True, confidence=True, device="cpu")
    assert files_below(output) == [
        "confidence/a.png",
        "confidence/b.v2.png",
        "confidence/deep/er/c.png",
        "labels/a.png",
        "labels/b.v2.png",
        "labels/deep/er/c.png",
        "legend.png",
        "overlay/a.jpg",
        "overlay/b.v2.jpg",
        "overlay/deep/er/c.jpg",
    ]
    prediction = predictor(pictures / "deep/er/c.png")
    np.testing.assert_array_equal(np.asarray(Image.open(output / "labels/deep/er/c.png")), prediction.labels)
    confidence = np.asarray(Image.open(output / "confidence/deep/er/c.png"))
    np.testing.assert_allclose(confidence / 255, prediction.confidence, atol=0.5 / 255 + 1e-6)
    assert (result["pictures"], result["videos"]) == (3, 0)
    assert sum(result["shares"].values()) == pytest.approx(1)


def test_only_labels_unless_asked(model_folder: Path, pictures: Path, tmp_path: Path) -> None:
    predict_files(str(model_folder), [pictures / "a.png", pictures / "b.v2.jpg"], tmp_path / "out", device="cpu")
    assert files_below(tmp_path / "out") == ["labels/a.png", "labels/b.v2.png", "legend.png"]


def test_output_inside_the_folder_is_not_predicted_again(model_folder: Path, pictures: Path) -> None:
    for _ in range(2):
        result = predict_files(str(model_folder), [pictures], pictures / "out", overlay=True, device="cpu")
    assert result["pictures"] == 3


def test_what_is_there_is_skipped(model_folder: Path, pictures: Path, tmp_path: Path) -> None:
    output, options = tmp_path / "out", {"overlay": True, "skip_existing": True, "device": "cpu"}
    first = predict_files(str(model_folder), [pictures], output, **options)
    (output / "labels/a.png").unlink()
    (output / "overlay/b.v2.jpg").write_bytes(b"")  # as a power cut leaves files
    before = (output / "labels/deep/er/c.png").stat().st_mtime_ns
    again = predict_files(str(model_folder), [pictures], output, **options)
    assert [(found["pictures"], found["skipped"]) for found in (first, again)] == [(3, 0), (2, 1)]
    assert (output / "labels/a.png").exists() and (output / "overlay/b.v2.jpg").stat().st_size
    assert (output / "labels/deep/er/c.png").stat().st_mtime_ns == before
    last = predict_files(str(model_folder), [pictures], output, **options)
    assert (last["pictures"], last["skipped"], set(last["shares"].values())) == (0, 3, {0})
    with pytest.raises(UserError, match="leave out either save or skip_existing"):
        predict_files(str(model_folder), [pictures], output, save=["coco"], **options)


def test_predictions_of_two_models_are_not_mixed(
    model_folder: Path, pictures: Path, tmp_path: Path, predictor: Predictor
) -> None:
    output = tmp_path / "out"
    predict_files(str(model_folder), [pictures / "a.png"], output, device="cpu")
    # The same model goes on.
    predict_files(str(shutil.copytree(model_folder, tmp_path / "copy")), [pictures], output, overlay=True, device="cpu")
    written = {name: (output / name).read_bytes() for name in files_below(output)}
    other = CSSFormer.from_pretrained(model_folder)
    other.head.classify.bias.data[0] += 0.001
    other.save_pretrained(tmp_path / "other")
    other.metadata = replace(other.metadata, raw_ids=(1, 2, 3))
    other.save_pretrained(tmp_path / "copy")
    for model, options in (
        (tmp_path / "other", {}),
        (model_folder, {"flip": True}),
        (tmp_path / "copy", {"raw": True}),
    ):
        with pytest.raises(
            UserError, match=r"out holds predictions of another model or of other options, as its legend"
        ):
            predict_files(str(model), [pictures], output, device="cpu", **options)
    assert written == {name: (output / name).read_bytes() for name in files_below(output)}
    (output / "legend.png").write_bytes(b"of somebody else")
    with pytest.raises(UserError, match="holds predictions of another model"):
        predict_files(str(model_folder), [pictures], output, device="cpu")


def test_video(model_folder: Path, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "drive.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 12, (64, 48))
    for index in range(5):
        writer.write(np.full((48, 64, 3), 40 * index, np.uint8))
    writer.release()
    result = predict_files(str(model_folder), [tmp_path / "drive.mp4"], tmp_path / "out", device="cpu", save=["yolo"])
    assert set(files_below(tmp_path / "out")) - {"yolo/data.yaml"} == {"legend.png", "overlay/drive.mp4"}
    assert result["notes"] == ["Annotations are written of pictures alone, so the videos have none."]
    video = cv2.VideoCapture(str(tmp_path / "out/overlay/drive.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(12)
    assert video.read()[1].shape == (48, 64, 3)
    assert result["videos"] == 1 and result["files"][0]["frames"] == 5
    # Not 0 % of all classes.
    assert sum(result["shares"].values()) == pytest.approx(1)
    assert result["files"][0]["shares"] == {name: share for name, share in result["shares"].items() if share}


def write_video(path: Path, frames: int) -> bytes:
    """Noise, so that a half of the file is a half of the frames."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12, (64, 48))
    for frame in np.random.default_rng(0).integers(0, 256, (frames, 48, 64, 3), np.uint8):
        writer.write(frame)
    writer.release()
    return path.read_bytes()


def test_a_truncated_video_is_told(model_folder: Path, tmp_path: Path) -> None:
    data = write_video(tmp_path / "cut.avi", 40)
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    result = predict_files(str(model_folder), [tmp_path / "cut.avi"], tmp_path / "out", device="cpu")
    frames = result["files"][0]["frames"]
    assert 10 < frames < 25
    assert result["failed"] == {str(tmp_path / "cut.avi"): f"{tmp_path / 'cut.avi'} ends after {frames} of 40 frames."}
    assert cv2.VideoCapture(str(tmp_path / "out/overlay/cut.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == frames


def test_a_video_that_fails_leaves_nothing_behind(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a file nor an open one: on some systems those cannot be removed."""
    write_video(tmp_path / "a.avi", 4)
    opened: list[Any] = []

    def kept(kind: Callable[..., Any], *arguments: Any) -> Any:
        opened.append(kind(*arguments))
        return opened[-1]

    monkeypatch.setattr(cv2, "VideoCapture", partial(kept, cv2.VideoCapture))
    writer = partial(kept, cv2.VideoWriter)
    writer.fourcc = cv2.VideoWriter.fourcc  # type: ignore[attr-defined]
    monkeypatch.setattr(cv2, "VideoWriter", writer)

    def fail(*arguments: Any, **options: Any) -> Prediction:
        raise MemoryError

    monkeypatch.setattr(Predictor, "__call__", fail)
    with pytest.raises(MemoryError):
        predict_files(str(model_folder), [tmp_path / "a.avi"], tmp_path / "out", device="cpu")
    assert len(opened) == 2 and not any(each.isOpened() for each in opened)
    assert files_below(tmp_path / "out") == []


def test_a_row_for_each_file(model_folder: Path, pictures: Path, tmp_path: Path, predictor: Predictor) -> None:
    result = predict_files(str(model_folder), [pictures], tmp_path / "out", device="cpu")
    assert [row["input"] for row in result["files"]] == [
        str(pictures / name) for name in ("a.png", "b.v2.jpg", "deep/er/c.png")
    ]
    assert result["files"][2]["labels"] == str(tmp_path / "out/labels/deep/er/c.png")
    assert result["files"][0]["shares"] == predictor(pictures / "a.png").shares
    mean = {name: np.mean([row["shares"].get(name, 0) for row in result["files"]]) for name in CLASSES}
    assert result["shares"] == pytest.approx(mean)


def test_hidden_files_are_left_out_and_suffixes_are_read_in_any_case(
    model_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    picture = Image.open(pictures / "a.png")
    for name in ("._a.png", ".ipynb_checkpoints/a-checkpoint.png", "d.JFIF", "e.GIF", "f.ppm"):
        (pictures / name).parent.mkdir(exist_ok=True)
        picture.save(pictures / name, {"d.JFIF": "JPEG"}.get(name))
    result = predict_files(str(model_folder), [pictures], tmp_path / "out", device="cpu")
    names = ["a.png", "b.v2.jpg", "d.JFIF", "deep/er/c.png", "e.GIF", "f.ppm"]
    assert [row["input"] for row in result["files"]] == [str(pictures / name) for name in names]
    assert result["left_out"] == {".txt": 1} and result["failed"] == {}


def test_masks_of_prepared_data_are_no_pictures_however_deep(
    model_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    data = tmp_path / "my" / "data" / "mine"
    for kind in ("images", "labels"):
        (data / "val" / kind).mkdir(parents=True)
        shutil.copy(pictures / "a.png", data / "val" / kind)
    (data / "dataset.yaml").touch()
    done = predict_files(str(model_folder), [tmp_path / "my"], tmp_path / "out", device="cpu")
    assert [row["input"] for row in done["files"]] == [str(data / "val/images/a.png")]


def test_heic_is_told_by_its_name(model_folder: Path, tmp_path: Path) -> None:
    """Also of a file that is called .jpg, as some programs leave it."""
    photo = tmp_path / "phone" / "a.HEIC"
    photo.parent.mkdir()
    photo.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    with pytest.raises(UserError, match=r"holds no pictures or videos .*; it has \.heic"):
        predict_files(str(model_folder), [photo.parent], tmp_path / "out", device="cpu")
    with pytest.raises(UserError, match=r"a\.jpg is HEIC, .* save it as JPEG"):
        predict_files(str(model_folder), [photo.rename(tmp_path / "a.jpg")], tmp_path / "out", device="cpu")


def test_linked_folders_are_entered_but_not_in_circles(model_folder: Path, pictures: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (pictures / "a.png").rename(elsewhere / "a.png")
    (pictures / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(pictures)
    result = predict_files(str(model_folder), [pictures], tmp_path / "out", device="cpu")
    assert [row["input"] for row in result["files"]] == [
        str(pictures / name) for name in ("b.v2.jpg", "deep/er/c.png", "linked/a.png")
    ]


def test_a_link_to_itself_stops_no_other_file(model_folder: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "self").symlink_to("self")
    (pictures / "round.png").symlink_to("round.png")
    done = predict_files(str(model_folder), [pictures], tmp_path / "out", device="cpu")
    assert done["pictures"] == 3 and list(done["failed"]) == [str(pictures / "round.png")]


def test_long_names(model_folder: Path, pictures: Path, tmp_path: Path) -> None:
    """The longest that a file system takes, and one that is too long with a suffix: told, and the job goes on."""
    for name in ("m" * 251 + ".png", "路" * 83 + "ab.png", "n" * 255):
        Image.open(pictures / "a.png").save(pictures / name, "PNG")
    inputs = [pictures / ("n" * 255), pictures]
    result = predict_files(str(model_folder), inputs, tmp_path / "out", overlay=True, confidence=True, device="cpu")
    assert result["pictures"] == 5
    assert (tmp_path / "out/labels" / ("m" * 251 + ".png")).is_file()
    assert (tmp_path / "out/labels" / ("路" * 83 + "ab.png")).is_file()
    assert list(result["failed"]) == [str(inputs[0])] and "name too long" in result["failed"][str(inputs[0])]


def atomic_failure(fail: Callable[[], None], path: Path, *arguments: object) -> None:
    with atomic_write(path):
        fail()


def test_a_full_disk_ends_the_job(
    model_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"Cannot write .*legend\.png: No space left on device"):
        predict_files(str(model_folder), [pictures], tmp_path / "out", device="cpu")
    monkeypatch.undo()
    monkeypatch.setattr("cssformer.inference.prediction.write_label", partial(atomic_failure, full))
    with pytest.raises(UserError, match=r"Cannot write .*a\.png: No space left on device"):
        predict_files(str(model_folder), [pictures], tmp_path / "out", device="cpu")
    monkeypatch.undo()
    # The legend tells whose labels they are, so the same command goes on.
    result = predict_files(str(model_folder), [pictures], tmp_path / "out", skip_existing=True, device="cpu")
    assert result["pictures"] == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused(model_folder: Path, tmp_path: Path) -> None:
    for name in ("a.png", "a.mp4"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="give an ordinary file"):
            predict_files(str(model_folder), [tmp_path / name], tmp_path / "out", device="cpu")


def test_the_background_stays_clear() -> None:
    image = np.full((6, 9, 3), 100, np.uint8)
    labels = np.repeat([[0, 1, 2]], 6, axis=0).repeat(3, axis=1)
    prediction = Prediction(image, labels, None, ("background", "cat", "dog"), COLOURS)
    overlay = prediction.overlay()
    assert overlay[0, 1].tolist() == [100, 100, 100] and overlay[0, 4].tolist() == [60, 150, 65]
    assert prediction.overlay(clear=()).tolist()[0][1] == [55, 60, 165]
    assert prediction.overlay(clear=("cat",)).tolist()[0][4] == [100, 100, 100]


def test_an_unknown_class_to_leave_clear(model_folder: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no class 'cat' to leave clear; it has sky, tree, road"):
        predict_files(str(model_folder), [pictures], tmp_path / "out", clear=["cat"], device="cpu")


def test_the_output_may_hold_the_pictures(model_folder: Path, pictures: Path) -> None:
    for output in (pictures.parent, pictures.parent, pictures, pictures):
        result = predict_files(str(model_folder), [pictures], output, overlay=True, device="cpu")
        assert result["pictures"] == 3


@pytest.mark.parametrize(("kind", "options"), [("labels", {}), ("overlay", {}), ("labelme", {"save": ["labelme"]})])
def test_folders_of_the_users_own_are_not_written_into(
    model_folder: Path, pictures: Path, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    (tmp_path / "mine" / kind).mkdir(parents=True)
    with pytest.raises(UserError, match=f"mine/{kind} is there already, and no legend.png"):
        predict_files(str(model_folder), [pictures], tmp_path / "mine", device="cpu", **options)
    assert files_below(tmp_path / "mine") == []


def test_a_file_that_is_given_twice_is_predicted_once(model_folder: Path, pictures: Path, tmp_path: Path) -> None:
    picture = next(pictures.glob("*.png"))
    done = predict_files(str(model_folder), [picture, picture], tmp_path / "out", device="cpu", save=["coco"])
    assert done["pictures"] == len(json.loads((tmp_path / "out" / "coco.json").read_text())["images"]) == 1


def test_labels_of_prepared_data_are_not_overwritten(model_folder: Path, pictures: Path) -> None:
    split = pictures.rename(pictures.parent / "val")
    (split.parent / "dataset.yaml").write_text("")
    for output in (split, split / "labels"):
        with pytest.raises(UserError, match="lies in prepared data"):
            predict_files(str(model_folder), [split / "a.png"], output, device="cpu")
    assert not (split / "labels").exists()


def test_labels_of_prepared_data_are_not_predicted(model_folder: Path, prepared: Path, tmp_path: Path) -> None:
    """Neither of the whole folder nor of a split, but where the labels themselves are named."""
    for number, (given, count) in enumerate({prepared: 6, prepared / "val": 2, prepared / "val/labels": 2}.items()):
        done = predict_files(str(model_folder), [given], tmp_path / f"out{number}", device="cpu")
        assert done["pictures"] == count
        kind = "labels" if given.name == "labels" else "images"
        assert {Path(row["input"]).parent.name for row in done["files"]} == {kind}


def test_an_output_that_is_a_file_is_refused_before_the_model_is_read(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"Cannot write .*out\.png"):
        predict_files(str(tmp_path / "no model"), [pictures], tmp_path / "out.png", device="cpu")
    assert (tmp_path / "out.png").read_bytes() == b"mine"


def test_a_picture_that_the_network_refuses_stops_no_other(
    model_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Predictor.__call__
    first = Image.open(pictures / "a.png").convert("RGB")

    def refuse(self: Predictor, image: Any, *given: Any) -> Any:
        if np.array_equal(image.pixels, np.asarray(first)):
            raise UserError("The backbone takes no such picture.")
        return look(self, image, *given)

    monkeypatch.setattr(Predictor, "__call__", refuse)
    result = predict_files(str(model_folder), [pictures], tmp_path / "out", device="cpu")
    assert result["failed"] == {str(pictures / "a.png"): f"{pictures / 'a.png'}: The backbone takes no such picture."}
    assert result["pictures"] == 2 and (tmp_path / "out/legend.png").exists()


def test_a_pattern_stands_for_what_it_matches(model_folder: Path, pictures: Path, tmp_path: Path) -> None:
    result = predict_files(str(model_folder), [pictures / "**/*.png"], tmp_path / "out", device="cpu")
    assert [row["input"] for row in result["files"]] == [str(pictures / "a.png"), str(pictures / "deep/er/c.png")]
    with pytest.raises(UserError, match=r"There is no file or folder .*\*\.bmp"):
        predict_files(str(model_folder), [pictures / "*.bmp"], tmp_path / "out", device="cpu")


@pytest.mark.parametrize("name", ["broken.jpg", "broken.png", "broken.mp4", "empty.png"])
def test_a_damaged_file_is_named_and_stops_no_other(
    name: str, model_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    whole = io.BytesIO()
    Image.fromarray(SyntheticScenes(1, (64, 64))[0].image).save(whole, "PNG" if name.endswith("png") else "JPEG")
    contents = {"empty.png": b"", "broken.mp4": b"no video"}
    (pictures / name).write_bytes(contents.get(name, whole.getvalue()[:1500]))
    with pytest.raises(UserError, match=name):
        predict_files(str(model_folder), [pictures / name], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    result = predict_files(str(model_folder), [pictures], tmp_path / "out", overlay=True, device="cpu")
    assert list(result["failed"]) == [str(pictures / name)] and name in result["failed"][str(pictures / name)]
    assert (result["pictures"], result["videos"]) == (3, 0)
    assert sum(result["shares"].values()) == pytest.approx(1)
    assert files_below(tmp_path / "out") == [
        *("labels/a.png", "labels/b.v2.png", "labels/deep/er/c.png", "legend.png"),
        *("overlay/a.jpg", "overlay/b.v2.jpg", "overlay/deep/er/c.jpg"),
    ]


def test_where_nothing_can_be_read_nothing_is_written(model_folder: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(b"words")
    with pytest.raises(UserError, match=r"a\.png cannot be read .* Nor can 2 other files\."):
        predict_files(str(model_folder), [tmp_path / "pictures"], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_labels_are_the_same_without_confidence(predictor: Predictor, pictures: Path) -> None:
    with_it, without = predictor(pictures / "a.png"), predictor(pictures / "a.png", confidence=False)
    assert without.confidence is None
    np.testing.assert_array_equal(with_it.labels, without.labels)
    assert without.runner_up is None and without.margin is None and without.entropy is None


def test_all_classes_ranked_are_all_probabilities(predictor: Predictor, pictures: Path) -> None:
    found = predictor(pictures / "a.png", top_k=3, entropy=True)
    assert found.top_probabilities is not None and found.confidence is not None and found.entropy is not None
    np.testing.assert_allclose(found.top_probabilities.sum(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(found.labels, predictor(pictures / "a.png").labels)
    best, second, _ = found.top_probabilities
    np.testing.assert_array_equal(found.margin, best - second)
    assert found.runner_up is not None and (found.runner_up != found.labels).all()
    assert ((found.entropy > 0) & (found.entropy <= np.log(3) + 1e-6)).all()


def test_overlay_by_blocks_of_rows_is_one_picture() -> None:
    """More than a block high, with a border where two blocks meet; against the definition, all at once."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (160, 2)), np.ones((7, 1024))).astype(np.int32)
    image = rng.integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    ours = Prediction(image, labels, None, CLASSES, COLOURS).overlay(0.5)
    expected = np.rint((image + np.array(COLOURS)[labels]) / 2).astype(np.uint8)
    border = np.zeros(labels.shape, bool)
    border[:, 1:] = labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    expected[border] = expected[border] // 2 + 127
    np.testing.assert_array_equal(ours, expected)


def test_mistakes_are_told_in_a_sentence(model_folder: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "file").write_text("")
    for model, inputs, output, message in (
        (model_folder, [tmp_path / "missing.png"], tmp_path / "out", "no file or folder .*missing.png"),
        (model_folder, [tmp_path / "none"], tmp_path / "out", "none holds no pictures"),
        (tmp_path / "none", [pictures / "a.png"], tmp_path / "out", "is no model"),
        (model_folder, [pictures / "a.png"], tmp_path / "file", "Cannot write .*file"),
    ):
        with pytest.raises(UserError, match=message):
            predict_files(str(model), inputs, output, device="cpu")
    with pytest.raises(UserError, match="device 'nonsense'"):
        Predictor.from_pretrained(model_folder, "nonsense")


def test_a_class_called_as_a_column_of_the_table_is_told(pictures: Path, tmp_path: Path) -> None:
    model = CSSFormer("test_resnet", num_classes=2, channels=16, pretrained=False, cia=False, fusion=False)
    model.metadata = Metadata(("sky", "pixels"))
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="has a column 'pixels' of its own"):
        predict_files(str(tmp_path / "model"), [pictures], tmp_path / "out", device="cpu", table=tmp_path / "a.csv")
    assert not (tmp_path / "out").exists() and not (tmp_path / "a.csv").exists()


def test_files_of_equal_names_keep_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from `find`: below the folder that all share; names that differ stand alone."""
    monkeypatch.chdir(tmp_path)
    one, two, deep = (Path(name) for name in ("photos/a/1.jpg", "photos/b/1.v2.jpg", "photos/b/c/1.jpg"))
    for path in (one, two, deep):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def places(*inputs: str | Path) -> list[str]:
        return [str(source.place) for source in find_sources([Path(each) for each in inputs], tmp_path / "out")[0]]

    assert places(one, two) == ["1", "1.v2"]
    assert places(one, two, deep, one) == places("photos/**/*.jpg") == ["a/1", "b/1.v2", "b/c/1"]
    assert places("photos/a", tmp_path / "photos" / "b" / "c") == ["a/1", "b/c/1"]
    for suffix in (".png", ".mp4"):
        deep.with_suffix(suffix).touch()
    assert places("photos/**/*.*") == ["a/1", "b/1.v2", "b/c/1.jpg", "b/c/1", "b/c/1.png"]
    # The suffix is enough within a folder, however deep it lies.
    assert places("photos/b") == ["1.v2", "c/1.jpg", "c/1", "c/1.png"]
    with pytest.raises(UserError, match=r"1\.jpg and .*1\.jpg would both be written as 1.jpg; predict them into two f"):
        places(deep, tmp_path / deep)


def test_arrays_must_be_rgb_bytes(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="RGB uint8"):
        predictor(np.zeros((40, 40), np.uint8))
    with pytest.raises(ValueError, match="RGB uint8"):
        predictor(np.zeros((40, 40, 3), np.float32))


def test_labels_in_the_ids_of_the_users_own_masks(model_folder: Path, pictures: Path, tmp_path: Path) -> None:
    """Indices 0, 1, 2 are written as 7, 12 and 40, with the colours of their classes."""
    network = CSSFormer.from_pretrained(model_folder)
    network.metadata = replace(network.metadata, raw_ids=(7, 40, 12))
    network.save_pretrained(tmp_path / "model")
    predict_files(str(tmp_path / "model"), [pictures], tmp_path / "out", raw=True, device="cpu")
    labels = Predictor(network, "cpu")(pictures / "a.png").labels
    with Image.open(tmp_path / "out/labels/a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.array((7, 40, 12))[labels])
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.array(COLOURS)[labels])


def test_ids_above_254_take_16_bits(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2]], np.int32)
    Prediction(np.zeros((1, 3, 3), np.uint8), labels, None, CLASSES, COLOURS).save(tmp_path / "a.png", (1, 300, 65000))
    assert cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED).tolist() == [[1, 300, 65000]]


def test_a_model_without_the_users_ids_says_so(model_folder: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not know the ids"):
        predict_files(str(model_folder), [pictures], tmp_path / "out", raw=True, device="cpu")


@pytest.mark.parametrize("crop", [(64,), (64, 64, 64), "64", (64.0, 64), [None, 64]])
def test_a_window_that_is_none_is_told(crop: object) -> None:
    with pytest.raises(UserError, match="A crop or stride is a number of pixels, or height and width, not"):
        predict(CSSFormer("test_resnet", 3, channels=8, heads=2, points=1), torch.zeros(1, 3, 64, 64), crop=crop)


@pytest.mark.parametrize("image", [None, 3, torch.zeros(3, 64, 64), np.zeros((0, 64, 3), np.uint8), np.zeros((64, 64))])
def test_what_is_no_picture_is_told(image: object) -> None:
    with pytest.raises(ValueError, match="an image must be"):
        Predictor(CSSFormer("test_resnet", 3, channels=8, heads=2, points=1), "cpu")(image)
