"""Prediction on a Ray cluster: each actor holds the network and labels its batches of a Ray Data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cssformer.data.bands import decode_pixels
from cssformer.inference.predictor import Predictor
from cssformer.utils.errors import UserError

if TYPE_CHECKING:
    from ray.data import Dataset

Batch = dict[str, Any]


def predict_dataset(
    dataset: "Dataset",
    model: str,
    *,
    column: str = "path",
    output: str | None = None,
    confidence: bool = False,
    workers: int = 1,
    cpus: float = 1,
    gpus: float = 0,
    batch_size: int = 16,
    **options: Any,
) -> "Dataset":
    """Label the pictures of a Ray Data set. As all of Ray Data's it is done when the result is asked for, in any order.

    Args:
        dataset: a row for each picture.
        model: as of :meth:`Predictor.from_pretrained`; every machine must reach it.
        column: where the pictures are: paths that every machine reaches, the bytes of files (as of
            ``ray.data.read_binary_files``), or arrays (H, W, 3).
        output: write each picture's labels to ``output/labels/PLACE.png``, as ``cssformer predict`` does, with the
            row's column ``place``.
        confidence: add the confidence too.
        workers: how many actors.
        cpus, gpus: what each actor reserves.
        batch_size: rows that go to an actor at once.
        **options: of :class:`Predictor`.

    Returns:
        The rows with the columns ``labels``, those of :class:`cssformer.inference.Prediction`, or with ``output`` the
        path written; ``confidence``, (H, W) float32, if asked for; and ``error``, empty or why a picture could not be
        read or written, which leaves labels and confidence empty.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """
    from ray.data import ActorPoolStrategy

    options = {"device": "auto" if gpus else "cpu", **options}
    return dataset.map_batches(
        _Labeller,
        fn_constructor_args=(model, column, output, confidence, options),
        compute=ActorPoolStrategy(size=workers),
        batch_size=batch_size,
        num_cpus=cpus,
        num_gpus=gpus,
    )


class _Labeller:
    """What each actor keeps from batch to batch."""

    def __init__(self, model: str, column: str, output: str | None, confidence: bool, options: dict[str, Any]) -> None:
        self.predictor = Predictor.from_pretrained(model, **options)
        self.column, self.output, self.confidence = column, output, confidence

    def __call__(self, batch: Batch) -> Batch:
        pictures = batch[self.column]
        places = batch["place"] if self.output is not None else [None] * len(pictures)
        labels, confidences, errors = zip(*map(self._label, pictures, places), strict=True)
        added = {"labels": list(labels), "error": list(errors)}
        return {**batch, **added, **({"confidence": list(confidences)} if self.confidence else {})}

    def _label(self, picture: Any, place: str | None) -> tuple[str | NDArray[np.int32], NDArray[np.float32], str]:
        try:
            if isinstance(picture, bytes):
                picture = decode_pixels(picture, Path("A picture's bytes"), self.predictor.channels)[0]
            found = self.predictor(picture, self.confidence)
            path = None if self.output is None else Path(self.output) / "labels" / f"{place}.png"
            if path is not None:
                found.save(path)
        except UserError as error:
            nothing = np.zeros((0, 0), np.float32)
            return nothing.astype(np.int32) if self.output is None else "", nothing, str(error)
        confidence = np.zeros((0, 0), np.float32) if found.confidence is None else found.confidence
        return found.labels if path is None else str(path), confidence, ""
