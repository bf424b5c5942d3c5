"""Training augmentation: one window of the picture, resized or warped, mirrored, recoloured and spoilt."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cssformer.data import corruptions
from cssformer.data.channels import Channels, in_fours
from cssformer.data.corruptions import MEAN_COLOUR, USUAL_STD, as_values
from cssformer.data.dataset import IGNORE, Sample
from cssformer.data.multilabel import is_class
from cssformer.data.warp import Warp, Window, draw_warp

_CROP_TRIES = 10


@dataclass(frozen=True)
class Augment:
    """What training does at random to a sample: scale, crop, warp, flip, colours and the rest; see the recipe.

    The crop is chosen first, as a window of the source, and only its pixels are resized and recoloured: the image by
    :func:`resize`, as in prediction, the label by its nearest pixels, both with pixel centres aligned. A picture
    smaller than the window is taken whole and padded to the right and below, with the mean colour and ``IGNORE``.
    Rotation, shear and perspective are one :class:`cssformer.data.warp.Warp` of the image, resized before if it
    shrinks, and of the source's label.

    Args:
        crop: height and width of the result.
        scale: range of the random scale.
        cat_max_ratio: a crop in which one class (or combination of them, or none) has a larger share of the labelled
            pixels is drawn again, up to ten times.
        rotate, shear, perspective: of :func:`cssformer.data.warp.draw_warp`.
        flip: probability of mirroring left and right.
        photometric: random brightness, contrast, saturation and hue.
        grey, blur, noise, jpeg, erase: probability of each of :mod:`cssformer.data.corruptions`.
        custom: what is done last, such as :class:`cssformer.data.custom.CustomAugment`.
        rare_class_crops, paste, cutmix: of :class:`cssformer.data.stream.TrainingStream`, which has the other pictures.
        short_side: the scale is relative to the picture resized so that its shorter side has this many pixels;
            None for the picture as it is.
        channels: what pictures hold, where they are no photographs. Their mean takes the mean colour's place, of
            ``photometric`` brightness and contrast are left, and ``grey`` and ``jpeg``, which are of colours seen and
            of 8 bits, are left out.
        multilabel: labels are bit fields.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    rotate: float = 0.0
    shear: float = 0.0
    perspective: float = 0.0
    flip: float = 0.5
    photometric: bool = True
    grey: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0
    erase: float = 0.0
    custom: Callable[[Sample, np.random.Generator], Sample] | None = None
    rare_class_crops: float = 0.0
    paste: float = 0.0
    cutmix: float = 0.0
    short_side: int | None = None
    channels: Channels | None = None
    multilabel: bool = False

    def __call__(self, sample: Sample, rng: np.random.Generator, held: int | None = None) -> Sample:
        """Return the augmented sample, image (h, w, C) and label (h, w) of the crop's size.

        Args:
            sample: with a label.
            rng: decides all.
            held: a class in the label, of which the window holds a pixel.
        """
        name, image, label = sample
        if label is None:
            raise ValueError(f"{name} has no label to train on.")
        fill = np.array(MEAN_COLOUR, np.uint8) if self.channels is None else self.channels.fill
        factor = rng.uniform(*self.scale)
        if self.short_side is not None:
            factor *= self.short_side / min(label.shape)
        window, size, warp = self._window(label, factor, held, rng)
        if warp is None:
            image = _resize_image(image[window], size)
            label = cv2.resize(label[window], size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[assignment]
        else:
            image, label, size = _warped_image(image, warp, factor, fill), warp.label(label), self.crop
        if rng.random() < self.flip:
            # OpenCV, unlike a reversed view, returns contiguous arrays.
            image, label = in_fours(lambda part: cv2.flip(part, 1), image), cv2.flip(label, 1)  # type: ignore[assignment]
        channels = self.channels
        if self.photometric:
            image = distort_colours(image, rng) if channels is None else distort_values(image, channels, rng)
        if self.grey and channels is None and rng.random() < self.grey:
            image = corruptions.grey(image)
        if self.blur and rng.random() < self.blur:
            image = corruptions.blur(image, rng)
        if self.noise and rng.random() < self.noise:
            image = corruptions.noise(image, rng, channels)
        if self.jpeg and channels is None and rng.random() < self.jpeg:
            image = corruptions.jpeg(image, rng)
        bottom, right = self.crop[0] - size[0], self.crop[1] - size[1]
        if bottom or right:
            seen, image = image, np.full((*self.crop, image.shape[2]), fill)
            image[: size[0], : size[1]] = seen
            border = (0, bottom, 0, right, cv2.BORDER_CONSTANT)
            label = cv2.copyMakeBorder(label, *border, value=(IGNORE,))  # type: ignore[assignment]
        sample = Sample(name, image, label)
        if self.erase and rng.random() < self.erase:
            sample = corruptions.erase(sample, rng, fill)
        return sample if self.custom is None else self.custom(sample, rng)

    def _window(
        self, label: NDArray[np.int32], factor: float, held: int | None, rng: np.random.Generator
    ) -> tuple[Window, tuple[int, int], Warp | None]:
        """Choose the window of the source, the size (h, w) it is resized to, at most that of the crop, and the warp."""
        sides, size = [], []
        for whole, wanted in zip(label.shape, self.crop, strict=True):
            side = max(1, round(wanted / factor))
            sides.append(min(side, whole))
            size.append(wanted if side <= whole else min(wanted, max(1, round(whole * factor))))
        pixels = None if held is None else np.flatnonzero(is_class(label, held, self.multilabel))
        for _ in range(_CROP_TRIES):
            if pixels is None:
                corner = [int(rng.integers(whole - side + 1)) for whole, side in zip(label.shape, sides, strict=True)]
            else:
                pixel = np.unravel_index(rng.choice(pixels), label.shape)
                corner = [
                    int(rng.integers(max(0, place - side + 1), min(place, whole - side) + 1))
                    for place, whole, side in zip(pixel, label.shape, sides, strict=True)
                ]
            window = np.s_[corner[0] : corner[0] + sides[0], corner[1] : corner[1] + sides[1]]
            warp, seen = None, label[window]
            if self.rotate or self.shear or self.perspective:
                target = size[0], size[1]
                warp = draw_warp(window, target, self.crop, self.rotate, self.shear, self.perspective, rng)
                seen = warp.label(label)
            if largest_share(seen) <= self.cat_max_ratio and (
                held is None or is_class(seen, held, self.multilabel).any()
            ):
                break
        return window, (size[0], size[1]), warp


def largest_share(label: NDArray[np.int32]) -> float:
    """Return the largest class's share of the labelled pixels; 1 where there are none."""
    counts = np.bincount(label[label != IGNORE])
    return counts.max() / counts.sum() if counts.size else 1.0


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images (B, C, H, W), uint8 or float, to ``size`` (height, width): bilinear, antialiased when shrinking.

    Training and prediction both resize by this, so that a network is shown the same picture in both.
    """
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def _resize_image(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    if image.shape[:2] == size:
        return image
    resized = resize(torch.from_numpy(image).permute(2, 0, 1)[None], size)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def _warped_image(image: NDArray[Any], warp: Warp, factor: float, fill: NDArray[Any]) -> NDArray[Any]:
    box = warp.box(image.shape)
    part = image[box]
    if factor < 1:
        # A warp looks between neighbouring pixels only, so it cannot shrink.
        part = _resize_image(part, (max(1, round(part.shape[0] * factor)), max(1, round(part.shape[1] * factor))))
    warped = warp.image(part, box)
    warped[warp.outside(image.shape)] = fill
    return warped


def distort_values(image: NDArray[Any], channels: Channels, rng: np.random.Generator) -> NDArray[Any]:
    """Change brightness and contrast of an image (H, W, N) of any channels, each with probability 1/2.

    All channels get the same share of their deviation, by as much as :func:`distort_colours` changes a photograph, and
    the same contrast about their mean. Saturation and hue are of colours that are seen.
    """
    mean, std = (np.array(each, np.float32) for each in (channels.mean, channels.std))
    numbers = image.astype(np.float32)
    if rng.random() < 0.5:
        numbers += np.float32(rng.uniform(-32, 32)) / USUAL_STD * std
    if rng.random() < 0.5:
        numbers = mean + np.float32(rng.uniform(0.5, 1.5)) * (numbers - mean)
    return as_values(numbers, image.dtype)


def distort_colours(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change brightness, contrast, saturation and hue of an RGB image (H, W, 3), each with probability 1/2.

    As the field does it: brightness ±32, contrast and saturation ×0.5 to ×1.5, hue ±18 of OpenCV's 180 steps,
    contrast before or after the colours, rounded down to 8 bits after each step. Steps that follow each other on one
    channel are composed into one look-up table, which gives the same pixels.
    """
    before, after = np.arange(256.0), np.arange(256.0)
    if rng.random() < 0.5:
        before = np.floor((before + rng.uniform(-32, 32)).clip(0, 255))
    early = rng.random() < 0.5
    if rng.random() < 0.5:
        contrast = rng.uniform(0.5, 1.5)
        if early:
            before = np.floor((before * contrast).clip(0, 255))
        else:
            after = np.floor((after * contrast).clip(0, 255))
    hue, saturation = np.arange(256), np.arange(256.0)
    if rng.random() < 0.5:
        saturation = np.floor((saturation * rng.uniform(0.5, 1.5)).clip(0, 255))
    if rng.random() < 0.5:
        hue = (hue + rng.integers(-18, 19)) % 180
    image = cv2.LUT(image, before.astype(np.uint8))  # type: ignore[assignment]
    hsv_table = np.stack([hue, saturation, np.arange(256)], -1).astype(np.uint8)
    image = cv2.cvtColor(image, cv2.COLOR_RGB2HSV, dst=image)  # type: ignore[assignment]
    image = cv2.LUT(image, hsv_table[None], dst=image)  # type: ignore[assignment]
    image = cv2.cvtColor(image, cv2.COLOR_HSV2RGB, dst=image)  # type: ignore[assignment]
    return cv2.LUT(image, after.astype(np.uint8), dst=image)  # type: ignore[return-value]
