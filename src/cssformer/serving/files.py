"""Pictures, folders of pictures and videos, labelled and written out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from cssformer.data.pairing import PICTURES
from cssformer.errors import UserError
from cssformer.evaluation import drawing
from cssformer.evaluation.inference import Mode
from cssformer.files import replacing
from cssformer.serving.predictor import Prediction, Predictor

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
LABELS, OVERLAY, CONFIDENCE, LEGEND = "labels", "overlay", "confidence", "legend.png"


@dataclass(frozen=True)
class Source:
    """A file to predict, and its place below the output folder, without suffix."""

    path: Path
    place: Path

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def predict_files(
    model: str,
    inputs: Sequence[Path],
    output: Path,
    *,
    overlay: bool = False,
    confidence: bool = False,
    mode: Mode | None = None,
    crop: tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    short_side: int | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> dict[str, Any]:
    """Predict pictures, folders of pictures and videos, and write what was found.

    Below ``output`` a picture becomes ``labels/NAME.png`` (class indices with a palette), ``overlay/NAME.jpg`` and
    ``confidence/NAME.png`` (255 is certain); a video becomes ``overlay/NAME.mp4``; ``legend.png`` shows the colours.
    Folders are searched to the bottom and keep their layout.

    Args:
        model: A model folder or a model id of the Hugging Face hub.
        inputs: Pictures, videos, or folders of them.
        output: The folder to write into.
        overlay: Also write each picture under its classes' colours.
        confidence: Also write the probability of the class chosen, as grey values.
        mode: Whole pictures, or a window that slides over them; by default as the model was trained for.
        crop: Height and width of the sliding window.
        scales: Average over the picture at these sizes.
        flip: Average over the mirror image too.
        short_side: First resize so that the shorter side has this many pixels; by default as the model was trained for.
        device: Such as cuda or cpu; auto takes the best there is.
        console: Where progress goes if it is a terminal; standard error by default.

    Returns:
        For JSON: "output", "pictures" and "videos" (how many), "shares" (class name -> share of the pictures' pixels).

    Raises:
        UserError: an input or the model is missing or unreadable, two inputs have one name, or the output cannot be
            written. Files written before that are whole.
    """
    sources = _find(inputs, output)
    predictor = Predictor.from_pretrained(
        model, device, mode=mode, crop=crop, scales=scales, flip=flip, short_side=short_side
    )
    shares: dict[str, float] = dict.fromkeys(predictor.classes, 0.0)
    pictures = sum(not source.is_video for source in sources)
    console = console or Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        for source in progress.track(sources, description="predict"):
            if source.is_video:
                _predict_video(predictor, source, output, progress)
                continue
            prediction = predictor(source.path)
            _write(prediction, source.place, output, overlay, confidence)
            for name, share in prediction.shares.items():
                shares[name] += share / pictures
    _save(output / LEGEND, drawing.legend(list(zip(predictor.classes, predictor.colours, strict=True)), 900))
    return {"output": str(output), "pictures": pictures, "videos": len(sources) - pictures, "shares": shares}


def _find(inputs: Sequence[Path], output: Path) -> list[Source]:
    """All files to predict, in order, none of them written by an earlier prediction into the same output."""
    if (output.resolve().parent / "dataset.yaml").is_file():
        raise UserError(
            f"{output} is a split of prepared data, whose labels would be overwritten; give another output."
        )
    written = {output.resolve() / name for name in (LABELS, OVERLAY, CONFIDENCE, LEGEND)}
    sources: list[Source] = []
    for given in inputs:
        if given.is_dir():
            files = sorted(path for path in given.rglob("*") if path.suffix.lower() in PICTURES + VIDEOS)
            files = [path for path in files if path.is_file() and _is_outside(path.resolve(), written)]
            if not files:
                raise UserError(f"The folder {given} holds no pictures or videos ({' '.join(PICTURES + VIDEOS)}).")
            sources += [Source(path, path.relative_to(given).with_suffix("")) for path in files]
        elif given.is_file():
            sources.append(Source(given, Path(given.stem)))
        else:
            raise UserError(f"There is no file or folder {given}.")
    places: dict[tuple[Path, bool], Path] = {}
    for source in sources:
        other = places.setdefault((source.place, source.is_video), source.path)
        if other != source.path:
            raise UserError(
                f"{other} and {source.path} would both be written as {source.place}; predict them into two folders."
            )
    return sources


def _is_outside(path: Path, places: set[Path]) -> bool:
    return places.isdisjoint((path, *path.parents))


def _write(prediction: Prediction, place: Path, output: Path, overlay: bool, confidence: bool) -> None:
    prediction.save(_named(output / LABELS / place, ".png"))
    if overlay:
        _save(_named(output / OVERLAY / place, ".jpg"), prediction.overlay())
    if confidence:
        _save(_named(output / CONFIDENCE / place, ".png"), np.rint(prediction.confidence * 255).astype(np.uint8))


def _predict_video(predictor: Predictor, source: Source, output: Path, progress: Progress) -> None:
    """Write the video under its classes' colours. MP4 knows even sizes only: an odd last row or column is left out."""
    video = cv2.VideoCapture(str(source.path))
    rate, frames = video.get(cv2.CAP_PROP_FPS), int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    task = progress.add_task(source.path.name, total=frames if frames > 0 else None)
    with replacing(_named(output / OVERLAY / source.place, ".mp4")) as temporary:
        writer: cv2.VideoWriter | None = None
        for frame in _frames(video):
            picture = predictor(frame).overlay()[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
            if writer is None:
                size = (picture.shape[1], picture.shape[0])
                writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), rate or 25.0, size)
                if not writer.isOpened():
                    raise UserError(f"Cannot write a video in {output}: its folder or OpenCV's video writer fails.")
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            progress.advance(task)
        if writer is None:
            raise UserError(f"{source.path} cannot be read as a video: it is damaged or of another kind.")
        writer.release()
    progress.remove_task(task)


def _frames(video: cv2.VideoCapture) -> Iterator[NDArray[np.uint8]]:
    while True:
        there, frame = video.read()
        if not there:
            video.release()
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _named(place: Path, suffix: str) -> Path:
    """The place with the suffix added: ``with_suffix`` would cut names such as ``frame.001``."""
    return place.with_name(place.name + suffix)


def _save(path: Path, picture: NDArray[np.uint8]) -> None:
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, quality=92)
