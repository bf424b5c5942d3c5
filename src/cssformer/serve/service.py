"""One network for many clients: one picture at a time, a queue of a stated length, the latest predictions kept."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from cssformer.data.bands import decode_pixels, read_pixels
from cssformer.data.files import read_bytes
from cssformer.data.image_io import readable
from cssformer.data.multilabel import require_single_label
from cssformer.inference.explain import Explanation, explain
from cssformer.inference.prediction import Prediction
from cssformer.inference.predictor import Predictor
from cssformer.inference.views import SMALLEST
from cssformer.utils.errors import UserError, is_out_of_memory

MOST_SCANS = 500
"""Of a JPEG: progressive ones have about ten, a small hostile one could keep the decoder busy for hours."""


class Busy(Exception):
    """As many pictures wait as may."""


class Service:
    """A predictor whose work is all done on one thread, so that its memory stays that of one picture.

    Args:
        predictor: of whole pictures or windows.
        model: its name, for the files that predictions become.
        queue: how many pictures may wait beside the one at work.
        max_megapixels: of a picture, in millions of pixels; Pillow's own limit in this process becomes the same.

    Raises:
        UserError: the network is multi-label.
    """

    def __init__(self, predictor: Predictor, model: str, queue: int = 8, max_megapixels: float = 25.0) -> None:
        require_single_label(predictor.multilabel, "The server")
        self.predictor, self.model, self.max_pixels = predictor, model, int(max_megapixels * 1e6)
        self.queue = queue
        # Pillow looks before it decodes, and takes twice as many.
        Image.MAX_IMAGE_PIXELS = self.max_pixels // 2
        self._places = threading.BoundedSemaphore(queue + 1)
        self._thread = ThreadPoolExecutor(1, "predict")
        self._kept: OrderedDict[Path, Prediction] = OrderedDict()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue for the block; raises Busy if there is none left."""
        if not self._places.acquire(blocking=False):
            raise Busy(f"The server is busy: {self.queue} pictures wait already; try again in some seconds.")
        try:
            yield
        finally:
            self._places.release()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What ``function(*arguments)`` returns, once its turn has come; by who has a place."""
        return await asyncio.wrap_future(self._thread.submit(function, *arguments))

    def close(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def predict(self, data: bytes, name: Path) -> Prediction:
        """Label a picture, with its confidence, runner-up and entropy.

        Args:
            data: the bytes of its file.
            name: what errors call it.

        Raises:
            UserError: no picture, damaged, or too large.
        """
        if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > MOST_SCANS:
            raise UserError(f"{name} has more than {MOST_SCANS} scans, which only take time; save it once more.")
        channels = self.predictor.channels
        with readable(data, name) as pages:
            # Before all of them are decoded.
            if channels is not None and pages and pages[0].bands > len(channels):
                raise UserError(f"{name} has {pages[0].bands} channels, but {channels} are wanted.")
        taken, _ = decode_pixels(data, name, channels)
        height, width = taken.pixels.shape[:2]
        # The network sees more of a thin picture, because it needs, or was told, a shortest side.
        fit = (self.predictor.options.get("short_side") or 0) / min(height, width) or 1.0
        if max(SMALLEST, height * fit) * max(SMALLEST, width * fit) > self.max_pixels:
            raise UserError(
                f"{name} is too thin, {width} wide and {height} high: with a shorter side as the network needs it, it "
                f"has more than {self.max_pixels / 1e6:g} million pixels."
            )
        try:
            return self.predictor(taken, top_k=min(2, len(self.predictor.classes)), entropy=True)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(f"The memory is too small for {name}, {width} wide and {height} high.") from error

    def uploaded(self, path: Path) -> Prediction:
        """The prediction of an uploaded file; the latest ones, of no more pixels than one picture may have, are kept.

        Raises:
            UserError: as :meth:`predict`, or the file is no longer there.
        """
        if path not in self._kept:
            if not path.is_file():
                raise UserError("The picture is no longer here; drop it once more.")
            self._kept[path] = self.predict(read_bytes(path), Path(path.name))
        self._kept.move_to_end(path)
        while len(self._kept) > 1 and sum(each.labels.size for each in self._kept.values()) > self.max_pixels:
            self._kept.popitem(last=False)
        return self._kept[path]

    def explain(self, path: Path, x: int, y: int) -> Explanation:
        """Where a pixel of an uploaded file looks; raises UserError as :meth:`uploaded` and ``explain`` do."""
        prediction = self.uploaded(path)
        if self.predictor.channels is None:
            return explain(self.predictor, prediction, x, y)
        # Which holds a view of other channels, not what the network takes.
        return explain(self.predictor, read_pixels(path, self.predictor.channels)[0], x, y)
