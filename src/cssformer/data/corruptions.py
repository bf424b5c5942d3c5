"""What spoils a picture's pixels and leaves them in place, and rectangles that are erased."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.data.channels import Channels, in_fours
from cssformer.data.dataset import IGNORE, Sample

Image = NDArray[Any]

# The usual mean of ImageNet's pictures, RGB.
MEAN_COLOUR = (124, 116, 104)
USUAL_STD = np.float32(58)
"""Of photographs' channels, of 255."""


def grey(image: Image) -> Image:
    """An RGB image (H, W, 3) without colour."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def blur(image: Image, rng: np.random.Generator) -> Image:
    """Blurred by a Gaussian of a deviation from 0.5 to 2 pixels; (H, W, N)."""
    sigma = rng.uniform(0.5, 2)
    return in_fours(lambda part: cv2.GaussianBlur(part, (0, 0), sigma), image)


def noise(image: Image, rng: np.random.Generator, channels: Channels | None = None) -> Image:
    """With Gaussian noise of a deviation from 2 to 20 of 255, of each channel for itself.

    Of other channels than a photograph's it is the same share of their deviation.
    """
    grain = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2, 20))
    if channels is not None:
        grain *= np.array(channels.std, np.float32) / USUAL_STD
    return as_values(image + grain, image.dtype)


def as_values(numbers: NDArray[np.float32], dtype: Any) -> Image:
    """Float32 numbers as an image of the type, rounded and cut off to 0 to 255 for uint8."""
    return numbers if dtype == np.float32 else numbers.round().clip(0, 255).astype(np.uint8)


def jpeg(image: Image, rng: np.random.Generator) -> Image:
    """As a JPEG of a quality from 20 to 90 shows it."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 91))]
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1]
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)  # type: ignore[arg-type]


def erase(sample: Sample, rng: np.random.Generator, fill: Any = MEAN_COLOUR) -> Sample:
    """Without a rectangle of 2 to 20 % of the area (Zhong et al., AAAI 2020): the fill, and ignored."""
    name, image, label = sample
    assert label is not None
    window = rectangle(label.shape, rng.uniform(0.02, 0.2), rng)
    image, label = image.copy(), label.copy()
    image[window], label[window] = fill, IGNORE
    return Sample(name, image, label)


def rectangle(shape: tuple[int, ...], share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """A random rectangle of this share of the area (H, W), three times as long as wide at most, or cut off."""
    stretch = np.exp(rng.uniform(-0.5, 0.5) * np.log(3))
    sides = [max(1, round(side * share**0.5 * part)) for side, part in zip(shape, (stretch, 1 / stretch), strict=True)]
    top, left = (int(rng.integers(max(1, whole - side + 1))) for whole, side in zip(shape, sides, strict=True))
    return slice(top, top + sides[0]), slice(left, left + sides[1])
