"""Videos, frame by frame."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.inference.predictor import Predictor
from cssformer.utils.atomic import atomic_write
from cssformer.utils.console import progress
from cssformer.utils.errors import UserError


def predict_video(predictor: Predictor, path: Path, overlay: Path, clear: Sequence[str]) -> dict[str, Any]:
    """Write the video under its classes' colours. MP4 knows even sizes only: an odd last row or column is left out.

    Args:
        predictor: the network and its options.
        path, overlay: the video, and the one to write.
        clear: names of classes left uncoloured.

    Returns:
        The row of the report: "overlay", "frames", "announced_frames" (an estimate in some containers) and "shares".

    Raises:
        UserError: the video cannot be read, or written.
    """
    shares: dict[str, float] = dict.fromkeys(predictor.classes, 0.0)
    with _opened(path) as (video, frame):
        announced = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
        height, width = (side // 2 * 2 for side in frame.shape[:2])
        rate, frames, there = video.get(cv2.CAP_PROP_FPS) or 25.0, 0, True
        with atomic_write(overlay) as temporary:
            writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
            bar = progress(path.name, total=announced or None)
            try:
                if not writer.isOpened():
                    raise UserError(
                        f"Cannot write a video in {overlay.parent}: its folder or OpenCV's video writer fails."
                    )
                while there:
                    pixels = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
                    prediction = predictor(pixels, confidence=False)
                    for name, share in prediction.shares.items():
                        shares[name] += share
                    picture = prediction.overlay(clear=clear)[:height, :width]
                    writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
                    frames += 1
                    bar.update()
                    there, frame = video.read()
            finally:
                writer.release()
                bar.close()
    mean = {name: share / frames for name, share in shares.items() if share}
    return {"overlay": str(overlay), "frames": frames, "announced_frames": announced, "shares": mean}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[cv2.VideoCapture, NDArray[Any]]]:
    """A video and its first frame, BGR (H, W, 3)."""
    # What FFmpeg says of damaged videos stands in our sentence.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    video = cv2.VideoCapture(str(path))
    try:
        there, frame = video.read()
        if not there:
            raise UserError(f"{path} cannot be read as a video: it is damaged or of another kind.")
        yield video, frame
    finally:
        video.release()
