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

from cssformer.inference.predictor import Prediction, Predictor, read_pixels
from cssformer.inference.views import Mode
from cssformer.prepare.pairing import PICTURES
from cssformer.utils.atomic import atomic_write, require_writable
from cssformer.utils.errors import UserError
from cssformer.visualize import drawing

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
    stride: tuple[int, int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    short_side: int | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> dict[str, Any]:
    """Predict pictures, folders of pictures and videos, and write what was found.

    Below ``output`` a picture becomes ``labels/NAME.png`` (class indices with a palette), ``overlay/NAME.jpg`` and
    ``confidence/NAME.png`` (255 is certain); a video becomes ``overlay/NAME.mp4``; ``legend.png`` shows the colours.
    Folders are searched to the bottom and keep their layout. A file that cannot be read does not stop the others.

    Args:
        model: A model folder or a model id of the Hugging Face hub.
        inputs: Pictures, videos, or folders of them.
        output: The folder to write into.
        overlay: Also write each picture under its classes' colours.
        confidence: Also write the probability of the class chosen, as grey values.
        mode: Whole pictures, or a window that slides over them; by default as the model was trained for.
        crop: Height and width of the sliding window.
        stride: From window to window, down and across; 2/3 of the crop by default.
        scales: Average over the picture at these sizes.
        flip: Average over the mirror image too.
        short_side: First resize so that the shorter side has this many pixels; by default as the model was trained for.
        device: Such as cuda or cpu; auto takes the best there is.
        console: Where progress goes if it is a terminal; standard error by default.

    Returns:
        For JSON: "output", "pictures" and "videos" (how many were predicted), "shares" (class name -> share of the
        pictures' pixels), "failed" (file that could not be read -> why).

    Raises:
        UserError: an input or the model is missing, no input can be read, two inputs have one name, or the output
            cannot be written. Files written before that are whole.
    """
    sources = _find(inputs, output)
    require_writable(output / LEGEND)
    predictor = Predictor.from_pretrained(
        model, device, mode=mode, crop=crop, stride=stride, scales=scales, flip=flip, short_side=short_side
    )
    shares: dict[str, float] = dict.fromkeys(predictor.classes, 0.0)
    done = {True: 0, False: 0}
    failed: dict[str, str] = {}
    console = console or Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        for source in progress.track(sources, description="predict"):
            try:
                content = _Video(source.path) if source.is_video else read_pixels(source.path)
            except UserError as error:
                failed[str(source.path)] = str(error)
                continue
            if isinstance(content, _Video):
                _predict_video(predictor, content, source.place, output, progress)
            else:
                prediction = predictor(content, confidence)
                _write(prediction, source.place, output, overlay)
                for name, share in prediction.shares.items():
                    shares[name] += share
            done[source.is_video] += 1
    if len(failed) == len(sources):
        others = len(sources) - 1
        more = f" Nor can {others} other file{'' if others == 1 else 's'}." if others else ""
        raise UserError(next(iter(failed.values())) + more)
    _save(output / LEGEND, drawing.legend(list(zip(predictor.classes, predictor.colours, strict=True)), 900))
    return {
        "output": str(output),
        "pictures": done[False],
        "videos": done[True],
        "shares": {name: share / max(1, done[False]) for name, share in shares.items()},
        "failed": failed,
    }


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


def _write(prediction: Prediction, place: Path, output: Path, overlay: bool) -> None:
    prediction.save(_named(output / LABELS / place, ".png"))
    if overlay:
        _save(_named(output / OVERLAY / place, ".jpg"), prediction.overlay())
    if prediction.confidence is not None:
        grey = cv2.convertScaleAbs(prediction.confidence, alpha=255)
        _save(_named(output / CONFIDENCE / place, ".png"), grey.astype(np.uint8, copy=False))


class _Video:
    """The frames of a video, RGB uint8 (H, W, 3).

    Raises:
        UserError: there are none.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.video = cv2.VideoCapture(str(path))
        self.rate, self.count = self.video.get(cv2.CAP_PROP_FPS), int(self.video.get(cv2.CAP_PROP_FRAME_COUNT))
        self.there, self.frame = self.video.read()
        if not self.there:
            raise UserError(f"{path} cannot be read as a video: it is damaged or of another kind.")

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        while self.there:
            yield cv2.cvtColor(self.frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
            self.there, self.frame = self.video.read()
        self.video.release()


def _predict_video(predictor: Predictor, video: _Video, place: Path, output: Path, progress: Progress) -> None:
    """Write the video under its classes' colours. MP4 knows even sizes only: an odd last row or column is left out."""
    task = progress.add_task(video.name, total=video.count if video.count > 0 else None)
    height, width = (side // 2 * 2 for side in video.frame.shape[:2])
    with atomic_write(_named(output / OVERLAY / place, ".mp4")) as temporary:
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), video.rate or 25.0, (width, height))
        if not writer.isOpened():
            raise UserError(f"Cannot write a video in {output}: its folder or OpenCV's video writer fails.")
        for frame in video:
            picture = predictor(frame, confidence=False).overlay()[:height, :width]
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            progress.advance(task)
        writer.release()
    progress.remove_task(task)


def _named(place: Path, suffix: str) -> Path:
    """The place with the suffix added: ``with_suffix`` would cut names such as ``frame.001``."""
    return place.with_name(place.name + suffix)


def _save(path: Path, picture: NDArray[np.uint8]) -> None:
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary, quality=92)
