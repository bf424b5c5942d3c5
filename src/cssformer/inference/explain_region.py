"""Where a region looks: attention rolled up over all its pixels, and over the pictures that hold a class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.inference.explain import Array, SamplingMap, index_of, record, seen_of
from cssformer.inference.prediction import Prediction
from cssformer.inference.predictor import Input, Predictor
from cssformer.utils.errors import UserError
from cssformer.visualize.attention import draw_regions
from cssformer.visualize.drawing import Picture

TOKENS_AT_ONCE = 512
"""Tokens whose sampled keys are held at one time."""
HEAT_CELLS = 256
"""A heat map has at most so many cells along each side."""


@dataclass(frozen=True)
class RegionMap:
    """What one module samples for a region: the mean over its pixels, each of which has a token of each of I strides.

    Attributes:
        module: "MSFE" or "CSF", numbered if the network has several.
        shares: how much of the weight lies on each of L scales, (I, L); rows sum to one.
        inside: how much of it lies in the region itself, (I,).
        outside: how much of it lies outside the picture, (I,).
        reach: mean distance of the places from their token, weighted, in pixels of the picture, (I,).
        heat: the weight in each cell of a grid over the picture, (I, L, h, w); with what lies outside it sums to one.
    """

    module: str
    shares: Array
    inside: Array
    outside: Array
    reach: Array
    heat: Array


@dataclass(frozen=True)
class RegionExplanation:
    """Where a region of a picture looks.

    Attributes:
        name: of the region.
        prediction: of the whole picture.
        mask: the region, (H, W).
        maps: of each MSFE, then of each CSF.
        strides: of the scales, the finest first.
    """

    name: str
    prediction: Prediction
    mask: NDArray[np.bool_]
    maps: tuple[RegionMap, ...]
    strides: tuple[int, ...]


def explain_region(
    predictor: Predictor, image: Input | Prediction, mask: NDArray[np.bool_], name: str = "region"
) -> RegionExplanation:
    """Roll up :func:`cssformer.inference.explain` over a region: the mean over its pixels.

    The network sees the picture as it does there, with the region's middle in the place of the pixel; pixels beyond a
    sliding window are left out.

    Args:
        predictor: with any network that has MSFE and CSF.
        image: as for :func:`cssformer.inference.explain`.
        mask: the region, (H, W).
        name: what it is called.

    Raises:
        UserError: the region is empty or not as large as the picture, or as :func:`cssformer.inference.explain`.
    """
    seen = seen_of(predictor, image)
    if mask.shape != seen.pixels.shape[:2] or not mask.any():
        height, width = seen.pixels.shape[:2]
        raise UserError(f"The {name} must be pixels of the picture, which is {width} wide and {height} high.")
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    view, samplings = record(predictor, seen.pixels, left + (width - 1) // 2, top + (height - 1) // 2)
    y, x = np.nonzero(mask)
    tokens = [view.tokens_over(x, y, level) for level in range(len(view.strides))]
    maps = []
    for module, sampling in samplings:
        found = []
        for numbers, centres, pixels in tokens:
            totals = _Totals(mask, len(view.strides))
            for start in range(0, len(numbers), TOKENS_AT_ONCE):
                part = slice(start, start + TOKENS_AT_ONCE)
                some = numbers[part].tolist()
                places = view.to_picture(sampling.positions[0, some].cpu().numpy())
                weights = sampling.weights_of(some)[0].cpu().numpy()
                totals.add(SamplingMap(module, places, weights, centres[part]), pixels[part] / pixels.sum())
            found.append((totals.shares, totals.inside, totals.outside, totals.reach, totals.heat))
        maps.append(RegionMap(module, *map(np.stack, zip(*found, strict=True))))
    prediction = image if isinstance(image, Prediction) else predictor(seen)
    return RegionExplanation(name, prediction, mask, tuple(maps), view.strides)


def explain_class(predictor: Predictor, images: Sequence[Path], name: str) -> list[RegionExplanation]:
    """Roll up over all pixels predicted as a class, in each of the pictures that has some.

    Raises:
        UserError: the model has no such class, no picture shows it, or as :func:`explain_region`.
    """
    if name not in predictor.classes:
        raise UserError(f"The model has no class {name!r}; it has {', '.join(predictor.classes)}.")
    found = []
    for image in images:
        prediction = predictor(image)
        mask = prediction.mask(predictor.classes.index(name))
        if mask.any():
            given = prediction if predictor.channels is None else image
            found.append(explain_region(predictor, given, mask, image.name))
    if not found:
        raise UserError(f"No pixel is predicted as {name}; give other pictures or another class.")
    return found


def summary(explanations: Sequence[RegionExplanation]) -> list[dict[str, Any]]:
    """For JSON: for each module and stride of the tokens the mean of the figures over regions, each counting alike."""
    first, rows = explanations[0], []
    for index, module in enumerate(first.maps):
        for token, stride in enumerate(first.strides):
            maps = [each.maps[index] for each in explanations]
            shares = np.mean([each.shares[token] for each in maps], axis=0).tolist()
            figures = {
                name: float(np.mean([getattr(each, name)[token] for each in maps]))
                for name in ("inside", "outside", "reach")
            }
            by_scale = dict(zip(map(str, first.strides), shares, strict=True))
            rows.append({"module": module.module, "stride": stride, "shares": by_scale, **figures})
    return rows


def heat_sheet(explanations: Sequence[RegionExplanation], stride: int | None = None) -> Picture:
    """Heat maps, RGB uint8 (height, width, 3): of one region on each scale, of several a row each.

    Args:
        explanations: of regions under one network.
        stride: of the tokens; the finest by default.

    Raises:
        UserError: there are no tokens of this stride.
    """
    return draw_regions(explanations, index_of(stride, explanations[0].strides))


class _Totals:
    """Figures of the tokens of one stride, added up."""

    def __init__(self, mask: NDArray[np.bool_], levels: int) -> None:
        self.mask, (self.height, self.width) = mask, mask.shape
        self.cell = max(4, math.ceil(max(mask.shape) / HEAT_CELLS))
        self.heat = np.zeros((levels, math.ceil(self.height / self.cell), math.ceil(self.width / self.cell)))
        self.shares, self.inside, self.outside, self.reach = np.zeros(levels), 0.0, 0.0, 0.0

    def add(self, sampled: SamplingMap, parts: Array) -> None:
        """Add tokens, each of which stands for a part of the region's pixels."""
        self.shares += parts @ sampled.shares()
        self.outside += float(parts @ sampled.outside(self.height, self.width))
        self.reach += float(parts @ sampled.reach())
        weights = sampled.weights * parts[:, None, None, None] / sampled.weights.shape[1]
        x, y = np.rint(sampled.places).astype(int).transpose(4, 0, 1, 2, 3)
        within = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
        x, y = x.clip(0, self.width - 1), y.clip(0, self.height - 1)
        weights = weights * within
        self.inside += float((weights * self.mask[y, x]).sum())
        cells = (y // self.cell) * self.heat.shape[2] + x // self.cell
        for level, heat in enumerate(self.heat):
            counted = np.bincount(cells[:, :, level].ravel(), weights[:, :, level].ravel(), heat.size)
            heat += counted.reshape(heat.shape)
