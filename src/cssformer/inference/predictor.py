"""A network that takes pictures as people have them and gives back labels to look at and to save."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from cssformer.data.bands import read_pixels
from cssformer.data.channels import Channels, Pixels, from_bands, rgb_view
from cssformer.data.dataset import IGNORE, combined_colours, distinct_colours, no_data
from cssformer.data.image_io import to_rgb, write_image, write_label
from cssformer.data.multilabel import is_class, require_single_label
from cssformer.inference.views import Options, evaluating, predict, used_threshold
from cssformer.model import SegmentationNetwork
from cssformer.utils.console import percentage
from cssformer.utils.device import best_device, device_of
from cssformer.utils.errors import UserError
from cssformer.visualize import drawing

if TYPE_CHECKING:
    from fiftyone import Segmentation as FiftyOneSegmentation
    from supervision import Detections

    from cssformer.export import ExportedNetwork
    from cssformer.inference.regions import Region

Picture = NDArray[np.uint8]
Input = str | Path | Image.Image | NDArray[Any] | Pixels
Network = TypeVar("Network", bound=nn.Module)


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
    def shares(self) -> dict[str, float]:
        """Class name -> share of the pixels with data, from 0 to 1, for the classes that occur, the largest first."""
        if self.multilabel:
            pixels = np.array([np.count_nonzero(self.mask(index)) for index in range(len(self.classes))])
            return shares_of(self.classes, pixels, int(np.count_nonzero(self.labels != IGNORE)))
        # In blocks of rows, because numpy makes eight bytes of each label.
        blocks = np.array_split(self.labels, -(-self.labels.size // 2**20))
        pixels = np.sum([np.bincount(block[block != IGNORE], minlength=len(self.classes)) for block in blocks], axis=0)
        return shares_of(self.classes, pixels, int(pixels.sum()))

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

        Where the picture has no data it holds what :func:`cssformer.data.dataset.no_data` gives; 255 is transparent.

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


class Predictor:
    """A network with all that is needed to label pictures.

    Args:
        model: a trained ``CSSFormer``, or an exported one; it is moved to the device and stays in its mode.
        device: "cuda", "mps", "cpu" and the like; "auto" takes the best there is.
        **options: of :class:`cssformer.inference.views.Options`. What is not given, or None, is done as the model was
            trained for.

    Raises:
        UserError: there is no such device or option, a value cannot be, or a crop or stride is given where no window
            slides.
    """

    def __init__(self, model: "SegmentationNetwork | ExportedNetwork", device: str = "auto", **options: Any) -> None:
        if str(device).startswith("meta"):
            raise UserError("The device 'meta' computes nothing; take cpu or auto.")
        try:
            model = model.to(best_device() if device == "auto" else device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"The device {device!r} cannot be used here: {reason}; take cpu or auto.") from error
        self.network = model
        with evaluating(model):
            self.model = accelerated(model)
        known = [field.name for field in fields(Options)]
        if unknown := options.keys() - known:
            raise UserError(f"There is no option {min(unknown)!r} of prediction; there are {', '.join(known)}.")
        given = {name: value for name, value in options.items() if value is not None}
        self.options = {**model.metadata.inference, **given}
        Options(**self.options)
        if self.options.get("mode") != "slide" and (unused := given.keys() & {"crop", "stride"}):
            raise UserError(
                f"The {min(unused)} is that of the sliding window; give the mode slide too or leave it out."
            )
        self.classes = model.metadata.classes or tuple(f"class {index}" for index in range(model.num_classes))
        self.colours = model.metadata.colours or distinct_colours(model.num_classes)
        self.raw_ids = model.metadata.raw_ids
        self.channels = model.metadata.channels
        self.multilabel = model.metadata.multilabel
        used_threshold(model, self.options.get("threshold"))

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str = "auto", **options: Any) -> "Predictor":
        """A predictor of a saved network.

        Args:
            source: a run or model folder, a bundled model such as "animals", a Hugging Face model id, or a file for
                :meth:`from_exported`.
            device: see :class:`Predictor`; an exported file runs on the CPU.
            **options: see :class:`Predictor`.

        Raises:
            UserError: there is no such model, or as :class:`Predictor` raises.
        """
        if Path(source).suffix in (".onnx", ".xml"):
            if device not in ("auto", "cpu"):
                raise UserError(f"{source} runs on the CPU alone here, not on {device!r}; take cpu or auto.")
            return cls.from_exported(source, **options)
        return cls(SegmentationNetwork.from_pretrained(source), device, **options)

    @classmethod
    def from_exported(cls, path: str | Path, **options: Any) -> "Predictor":
        """A predictor from an ONNX file or OpenVINO's IR that ``cssformer export`` wrote, on the CPU.

        Args:
            path: a ``.onnx`` file, or an ``.xml`` file with its ``.bin`` beside it.
            **options: see :class:`Predictor`.

        Raises:
            UserError: as :class:`cssformer.export.ExportedNetwork` and :class:`Predictor` raise.
            ModuleNotFoundError: the runtime is not installed.
        """
        from cssformer.export import ExportedNetwork

        return cls(ExportedNetwork(path), "cpu", **options)

    @overload
    def __call__(self, image: Input, confidence: bool = True, top_k: int = 1, entropy: bool = False) -> Prediction: ...
    @overload
    def __call__(
        self, image: list[Input], confidence: bool = True, top_k: int = 1, entropy: bool = False
    ) -> list[Prediction]: ...
    def __call__(
        self, image: Input | list[Input], confidence: bool = True, top_k: int = 1, entropy: bool = False
    ) -> Prediction | list[Prediction]:
        """Label every pixel of a picture, or of each picture of a list.

        Beside the labels' 4 bytes a pixel, confidence and entropy take 4 each, and ``top_k`` classes 8 each; with as
        many as there are, these are all probabilities.

        Args:
            image: a file (turned upright as its EXIF data say), or pixels as they are: a PIL image or an RGB uint8
                array (H, W, 3), where the model has other ``channels`` an array (H, W, N) of their type, or what
                :func:`cssformer.data.channels.from_bands` gives; or a list of those.
            confidence: False saves the time and the memory of the probabilities.
            top_k: keep so many of the most probable classes of each pixel, from 2 on; the runner-up is the second.
            entropy: keep the entropy of each pixel's probabilities.

        Raises:
            UserError: the file is missing, damaged or no picture, has other channels than the model, or there are not
                ``top_k`` classes.
            ValueError: the array is not RGB uint8.
        """
        if isinstance(image, list):
            return [self(each, confidence, top_k, entropy) for each in image]
        pixels, missing = taken(image, self.channels)
        picture = torch.from_numpy(pixels).permute(2, 0, 1)
        found = predict(self.model, picture, confidence=confidence, top_k=top_k, entropy=entropy, **self.options)
        labels, certain, ranked, likely, spread = (None if each is None else each.cpu().numpy() for each in found)
        assert labels is not None
        if missing is not None:
            labels[missing] = IGNORE
        about = (self.classes, self.colours, ranked, likely, spread, self.multilabel)
        return Prediction(rgb_view(pixels, self.channels, missing), labels, certain, *about)


def accelerated(model: Network) -> Network:
    """The network as its device predicts fastest: on a CPU a copy by :mod:`cssformer.accelerate`, where that exists."""
    if not isinstance(model, SegmentationNetwork) or device_of(model).type != "cpu":
        return model
    try:
        from cssformer.accelerate import accelerate_cpu
    except ModuleNotFoundError as error:
        if error.name != "cssformer.accelerate":
            raise
        return model
    return accelerate_cpu(model)


def shares_of(classes: Sequence[str], pixels: NDArray[np.integer], known: int) -> dict[str, float]:
    """Class name -> share of the known pixels, for the classes that have some of these (C,), the largest first."""
    order = np.argsort(-pixels, kind="stable").tolist()
    return {classes[index]: float(pixels[index] / known) for index in order if pixels[index]}


def by_class(top_labels: NDArray[np.integer], top_probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of all C classes, ranked as in :class:`Prediction`, in the classes' order: each (C, ...)."""
    found = np.empty_like(top_probabilities)
    np.put_along_axis(found, top_labels, top_probabilities, axis=0)
    return found


def taken(image: Input, channels: Channels | None) -> Pixels:
    """What a network of these channels takes of a picture, as :class:`Predictor` is given it; raises as it does."""
    if isinstance(image, Pixels):
        return image
    if isinstance(image, str | Path):
        return read_pixels(Path(image), channels)[0]
    pixels = to_rgb(image) if isinstance(image, Image.Image) else image
    if not isinstance(pixels, np.ndarray):
        raise ValueError(f"an image must be a path, an array (H, W, 3) or a Pillow image, not {pixels!r:.60}.")
    if channels is not None and pixels.ndim == 3 and pixels.size:
        return from_bands(np.moveaxis(pixels, -1, 0), channels)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        wanted = "RGB uint8 (H, W, 3)" if channels is None else f"(H, W, N) of {channels}"
        raise ValueError(f"an image must be {wanted}, not {pixels.dtype} {pixels.shape}.")
    return Pixels(np.require(pixels, requirements=("C", "W")), None)
