"""What a network says about one picture: labels to look at, to save and to hand on to other programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cssformer.data.dataset import IGNORE
from cssformer.data.dataset_info import combined_colours, no_data
from cssformer.data.image_io import write_image, write_label
from cssformer.data.multilabel import is_class, require_single_label
from cssformer.utils.console import percentage
from cssformer.utils.errors import UserError
from cssformer.visualize import drawing
from cssformer.visualize.drawing import Picture

if TYPE_CHECKING:
    from fiftyone import Segmentation as FiftyOneSegmentation
    from supervision import Detections

    from cssformer.inference.regions import Region


@dataclass(frozen=True)
class Prediction:
    """What a network says about one picture.

    Attributes:
        image: the picture, RGB uint8 (H, W, 3); of other channels a view of it, see
            :func:`cssformer.data.channels.rgb_view`.
        labels: class indices (H, W) int32; ``IGNORE`` where the picture has no data. Of a multi-label network bit
            fields, see :attr:`masks`.
        confidence: probability of the class chosen, (H, W) float32 from 0 to 1; None if it was not asked for. Of a
            multi-label network that of its least certain answer, which class is there and which is not.
        classes: a name per class.
        colours: an RGB colour per class.
        top_labels: the k most probable classes of each pixel, the first of them the label (not of a multi-label
            network), (k, H, W) int32; None without ``top_k``.
        top_probabilities: of these, (k, H, W) float32 from 0 to 1.
        entropy: -Σ p ln p over all classes, (H, W) float32 from 0 to ln(number of classes); None if not asked for. Of a
            multi-label network the sum of the entropies of its classes, there or not.
        multilabel: whether a pixel may be of several classes.
    """

    image: Picture
    labels: NDArray[np.int32]
    confidence: NDArray[np.float32] | None
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    top_labels: NDArray[np.int32] | None = None
    top_probabilities: NDArray[np.float32] | None = None
    entropy: NDArray[np.float32] | None = None
    multilabel: bool = False

    @property
    def masks(self) -> NDArray[np.bool_]:
        """Which pixels are of each class, (C, H, W)."""
        return np.stack([self.mask(index) for index in range(len(self.classes))])

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Which pixels are of one class, (H, W)."""
        return is_class(self.labels, index, self.multilabel)

    def name_at(self, y: int, x: int) -> str:
        """The class, or several, of the pixel in row y and column x."""
        names = [name for index, name in enumerate(self.classes) if is_class(self.labels[y, x], index, self.multilabel)]
        return " and ".join(names) or "no class"

    @property
    def runner_up(self) -> NDArray[np.int32] | None:
        """The second most probable class of each pixel, (H, W) int32; None without ``top_k``."""
        return None if self.top_labels is None else self.top_labels[1]

    @property
    def margin(self) -> NDArray[np.float32] | None:
        """By how much the class chosen is more probable than the runner-up, (H, W) float32 from 0 to 1."""
        return None if self.top_probabilities is None else self.top_probabilities[0] - self.top_probabilities[1]

    @property
    def probabilities(self) -> NDArray[np.float32] | None:
        """Of each class, (C, H, W) float32 from 0 to 1; 0 where the picture has no data; None unless ``top_k`` is C."""
        if self.top_labels is None or self.top_probabilities is None or len(self.top_labels) < len(self.classes):
            return None
        missing = self.labels == IGNORE
        found = by_class(np.where(missing, 0, self.top_labels), self.top_probabilities)
        found[:, missing] = 0
        return found

    @property
    def counts(self) -> "Counts":
        """How many pixels have data, and how many are of each class."""
        if self.multilabel:
            pixels = np.array([np.count_nonzero(self.mask(index)) for index in range(len(self.classes))])
            return Counts.of(self.classes, pixels, int(np.count_nonzero(self.labels != IGNORE)))
        # In blocks of rows, because numpy makes eight bytes of each label.
        blocks = np.array_split(self.labels, -(-self.labels.size // 2**20))
        pixels = np.sum([np.bincount(block[block != IGNORE], minlength=len(self.classes)) for block in blocks], axis=0)
        return Counts.of(self.classes, pixels, int(pixels.sum()))

    @property
    def shares(self) -> dict[str, float]:
        """Class name -> share of the pixels with data, from 0 to 1, for the classes that occur, the largest first."""
        return self.counts.shares

    def overlay(self, alpha: float = 0.5, clear: Sequence[str] = ("background",)) -> Picture:
        """The picture under its classes' colours: RGB uint8 (H, W, 3).

        Args:
            alpha: opacity of the colours, from 0 to 1.
            clear: names of classes left uncoloured.
        """
        if self.multilabel:
            kept = sum(1 << index for index, name in enumerate(self.classes) if name not in clear)
            shown = np.where(self.labels == IGNORE, 0, self.labels & kept)
            return drawing.overlay(self.image, shown, combined_colours(self.colours), alpha, [0])
        indices = [index for index, name in enumerate(self.classes) if name in clear]
        return drawing.overlay(self.image, self.labels, self.colours, alpha, [*indices, IGNORE])

    def legend(self, width: int = 900) -> Picture:
        """The colours of the classes that occur, with names and shares: RGB uint8 (height, width, 3)."""
        colour_of = dict(zip(self.classes, self.colours, strict=True))
        entries = [(f"{name} {percentage(part)}", colour_of[name]) for name, part in self.shares.items()]
        return drawing.legend(entries, width)

    def polygons(self, tolerance: float = 1.0, min_area: float = 0.0) -> "list[Region]":
        """The outlines of all connected regions, the largest first; see :func:`cssformer.inference.regions.regions`.

        Args:
            tolerance: how far, in pixels, outlines may be moved to have fewer corners; with 0 they are exact.
            min_area: regions of fewer pixels are left out.
        """
        from cssformer.inference.regions import regions

        maps = [self.labels]
        if self.multilabel:
            maps = [np.where(self.mask(index), index, IGNORE) for index in range(len(self.classes))]
        certain = None if self.multilabel else self.confidence
        found = [each for one in maps for each in regions(one, self.classes, certain, tolerance, min_area)[0]]
        return sorted(found, key=lambda each: -each.area)

    def rle(self) -> dict[str, dict[str, Any]]:
        """Class name -> its pixels as COCO's run lengths (``size`` and ``counts``), for the classes that occur."""
        from cssformer.inference.regions import run_lengths

        return {name: run_lengths(self.mask(self.classes.index(name))) for name in self.shares}

    def to_supervision(self) -> "Detections":
        """The detections of the package ``supervision``, one for each class that occurs, the largest first.

        Each has its ``mask``, its box, ``class_id`` (the class index), ``data["class_name"]``, and as ``confidence``
        the mean of its pixels, if there is one.

        Raises:
            ModuleNotFoundError: supervision is not installed.
        """
        from supervision import Detections, mask_to_xyxy

        names = list(self.shares)
        indices = np.array([self.classes.index(name) for name in names])
        masks = self.masks[indices]
        confident = None if self.multilabel else self.confidence
        certain = None if confident is None else np.array([confident[mask].mean() for mask in masks])
        return Detections(mask_to_xyxy(masks), masks, certain, indices, data={"class_name": np.array(names)})

    def to_fiftyone(self) -> "FiftyOneSegmentation":
        """FiftyOne's ``Segmentation`` with the values of :attr:`mask_targets`.

        Raises:
            ModuleNotFoundError: fiftyone is not installed.
        """
        from fiftyone import Segmentation

        require_single_label(self.multilabel, "FiftyOne's segmentation")
        values = np.array(list(self.mask_targets), np.uint8 if len(self.classes) < 256 else np.uint16)
        return Segmentation(mask=np.where(self.labels == IGNORE, 0, values[self.labels]).astype(values.dtype))

    @property
    def mask_targets(self) -> dict[int, str]:
        """Value -> class name for FiftyOne, whose 0 is nothing but background: other first classes are 1."""
        return dict(enumerate(self.classes, int(self.classes[0] != "background")))

    def save(self, path: str | Path, ids: Sequence[int] | None = None) -> None:
        """Write the labels as a PNG with the classes' colours as palette, or of 16 bits grey for ids above 254.

        Where the picture has no data it holds what :func:`cssformer.data.dataset_info.no_data` gives; 255 is
        transparent.

        Args:
            path: the file.
            ids: what is written for each class; its index if None.

        Raises:
            UserError: the file cannot be written, or the network is multi-label, see :meth:`save_masks`.
        """
        require_single_label(self.multilabel, "A file of labels")
        ids = range(len(self.classes)) if ids is None else ids
        palette = [(0, 0, 0)] * (max(ids) + 1)
        for value, colour in zip(ids, self.colours, strict=True):
            palette[value] = colour
        values = np.where(self.labels == IGNORE, no_data(ids), np.take(ids, self.labels, mode="clip"))
        write_label(Path(path), values, palette)

    def save_masks(self, folder: str | Path, name: str) -> None:
        """Write ``folder/CLASS/NAME.png`` for each class: 255 where it is, 0 where not, transparent without data.

        Raises:
            UserError: a file cannot be written, or a class's name is none of a folder.
        """
        alpha = np.where(self.labels == IGNORE, 0, 255)
        for index, kind in enumerate(self.classes):
            if Path(kind).name != kind or kind.startswith(".") or "\\" in kind:
                raise UserError(f"The class {kind!r} cannot name a folder for its masks; rename it.")
            grey = np.where(self.mask(index), 255, 0)
            pixels = grey if alpha.all() else np.dstack([grey, alpha])
            write_image(Path(folder) / kind / f"{name}.png", pixels.astype(np.uint8))


class Counts(NamedTuple):
    """Pixels of a picture.

    Attributes:
        known: how many have data.
        pixels: class name -> how many are of it, for the classes that occur, the largest first.
    """

    known: int
    pixels: dict[str, int]

    @classmethod
    def of(cls, classes: Sequence[str], pixels: NDArray[np.integer], known: int) -> "Counts":
        """From the pixels (C,) of the classes."""
        order = np.argsort(-pixels, kind="stable").tolist()
        return cls(known, {classes[index]: int(pixels[index]) for index in order if pixels[index]})

    @property
    def shares(self) -> dict[str, float]:
        """Class name -> share of the pixels with data, from 0 to 1."""
        return {name: pixels / self.known for name, pixels in self.pixels.items()}

    @property
    def row(self) -> dict[str, Any]:
        """What the report of files tells."""
        return {"shares": self.shares, **self._asdict()}


def by_class(top_labels: NDArray[np.integer], top_probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of all C classes, ranked as in :class:`Prediction`, in the classes' order: each (C, ...)."""
    found = np.empty_like(top_probabilities)
    np.put_along_axis(found, top_labels, top_probabilities, axis=0)
    return found
