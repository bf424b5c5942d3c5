"""What spoils a picture's pixels and leaves them in place, and rectangles that are erased."""

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.data.dataset import IGNORE, Sample

Image = NDArray[np.uint8]

# The usual mean of ImageNet's pictures, RGB.
MEAN_COLOUR = (124, 116, 104)


def grey(image: Image) -> Image:
    """An RGB image (H, W, 3) without colour."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)  # type: ignore[return-value]


def blur(image: Image, rng: np.random.Generator) -> Image:
    """Blurred by a Gaussian of a deviation from 0.5 to 2 pixels."""
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2))  # type: ignore[return-value]


def noise(image: Image, rng: np.random.Generator) -> Image:
    """With Gaussian noise of a deviation from 2 to 20 of 255, of each channel for itself."""
    grain = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2, 20))
    return (image + grain).round().clip(0, 255).astype(np.uint8)


def jpeg(image: Image, rng: np.random.Generator) -> Image:
    """As a JPEG of a quality from 20 to 90 shows it."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 91))]
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1]
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)  # type: ignore[arg-type, return-value]


def erase(sample: Sample, rng: np.random.Generator) -> Sample:
    """Without a rectangle of 2 to 20 % of the area (Zhong et al., AAAI 2020): mean colour, and ignored."""
    name, image, label = sample
    assert label is not None
    window = rectangle(label.shape, rng.uniform(0.02, 0.2), rng)
    image, label = image.copy(), label.copy()
    image[window], label[window] = MEAN_COLOUR, IGNORE
    return Sample(name, image, label)


def rectangle(shape: tuple[int, ...], share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """A random rectangle of this share of the area (H, W), three times as long as wide at most, or cut off."""
    stretch = np.exp(rng.uniform(-0.5, 0.5) * np.log(3))
    sides = [max(1, round(side * share**0.5 * part)) for side, part in zip(shape, (stretch, 1 / stretch), strict=True)]
    top, left = (int(rng.integers(max(1, whole - side + 1))) for whole, side in zip(shape, sides, strict=True))
    return slice(top, top + sides[0]), slice(left, left + sides[1])
