"""A network that takes pictures as people have them."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from cssformer.data.bands import read_pixels
from cssformer.data.channels import Channels, Pixels, from_bands, rgb_view
from cssformer.data.dataset import IGNORE
from cssformer.data.dataset_info import distinct_colours
from cssformer.data.image_io import to_rgb
from cssformer.inference.prediction import Prediction
from cssformer.inference.views import Options, evaluating, predict, used_threshold
from cssformer.model import SegmentationNetwork
from cssformer.utils.device import device_of, on_device
from cssformer.utils.errors import UserError

if TYPE_CHECKING:
    from cssformer.export import ExportedNetwork

Input = str | Path | Image.Image | NDArray[Any] | Pixels
Network = TypeVar("Network", bound=nn.Module)


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
        TypeError: the model is no such network.
    """

    def __init__(self, model: "SegmentationNetwork | ExportedNetwork", device: str = "auto", **options: Any) -> None:
        if not hasattr(model, "metadata"):
            raise TypeError(
                f"A Predictor takes a network such as CSSFormer, not {model!r:.60}; Predictor.from_pretrained takes "
                "the name or the folder of one."
            )
        if str(device).startswith("meta"):
            raise UserError("The device 'meta' computes nothing; take cpu or auto.")
        self.network = model = on_device(model, device)
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
