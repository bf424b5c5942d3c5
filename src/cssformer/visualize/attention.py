"""The picture of an explanation: circles at the places where a pixel looks, by module and scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.data.dataset_info import distinct_colours
from cssformer.visualize import drawing
from cssformer.visualize.drawing import FAINT, INK, PAPER, Picture

if TYPE_CHECKING:
    from cssformer.inference.explain import Explanation, SamplingMap
    from cssformer.inference.explain_region import RegionExplanation

Array = NDArray[np.floating]

TILE = 272
"""Width of a panel in pixels."""
RADIUS = 36.0
"""Of a circle that stands for all of a head's weight; the area goes with the weight."""
HELD = 0.95
"""The share of a scale's weight that its panels hold; places further away are cut off."""
STRIP = 26
"""Height of the line of text under a panel."""
MODULES = {
    "MSFE": "MSFE, Multi-Scale Feature Enhancement: the weights come from a linear layer",
    "CSF": "CSF, Cross-Scale Fusion: the weights come from the content, by attention",
}
LIGHT = 127
"""Of the grey picture below the colours of heads and heat."""
HOT = (224, 49, 49)
"""Where much of a region's weight lies."""
GRID, INVALID = (206, 212, 218), (173, 181, 189)
SHIFT = 4
"""Fractional bits of the coordinates that OpenCV draws at."""


def draw_places(explanation: "Explanation", token: int) -> Picture:
    """A row for each module: the picture, the places on all scales, and those of each scale, enlarged, on its grid.

    Args:
        explanation: with I tokens.
        token: the one whose places are shown, from 0 to I - 1.
    """
    image, looks = explanation.prediction.image, explanation.maps
    height, width = image.shape[:2]
    size = TILE, round(TILE * min(1.2, max(0.5, height / width)))
    whole = _Panel.holding(np.array((width - 1, height - 1)) / 2, np.array((width, height)) / 2, size)
    pale = drawing.pale(image, LIGHT)
    colours = distinct_colours(looks[0].weights.shape[1])
    name, confidence = explanation.label

    def marked(frame: _Panel, canvas: Picture, text: str) -> Picture:
        frame.draw_cell(canvas, looks[0].centres[token], explanation.cells[token])
        frame.draw_cross(canvas, explanation.x, explanation.y)
        strip = np.full((STRIP, TILE, 3), PAPER, np.uint8)
        return np.concatenate((canvas, drawing.written(strip, text, 2, STRIP // 2)))

    rows, captions = [], []
    for number, look in enumerate(looks):
        picture = image if number == 0 else explanation.prediction.overlay()
        canvas = whole.cut(pale)
        whole.draw_circles(canvas, look.places[token], look.weights[token], colours)
        row = [
            marked(
                whole, whole.cut(picture), f"pixel {explanation.x}, {explanation.y}: {name} {100 * confidence:.0f} %"
            ),
            marked(whole, canvas, f"{look.module}, mean distance {look.reach()[token]:.0f} pixels"),
        ]
        for level, share in enumerate(look.shares()[token]):
            frame = _enlarged(looks, token, level, explanation.cells[level], (width, height), size)
            canvas = frame.cut(pale)
            frame.draw_grid(canvas, look.centres[level], explanation.cells[level])
            frame.draw_circles(canvas, look.places[token][:, level], look.weights[token][:, level], colours)
            row.append(marked(frame, canvas, f"{100 * share:.0f} % of the weight"))
        rows.append(row)
        captions.append(MODULES[look.module.split()[0]])
    heads = ["picture, prediction", "all scales", *(f"stride {stride}" for stride in explanation.strides)]
    return drawing.sheet(rows, heads, captions, partial(_foot, colours, explanation.strides[token]))


def draw_regions(explanations: "Sequence[RegionExplanation]", token: int) -> Picture:
    """Heat maps of the places that regions sample: of one a row for each module, of several a row for each.

    Args:
        explanations: of one network.
        token: which of the strides' tokens, from 0 on.
    """
    first, rows, captions = explanations[0], [], []
    for each in explanations:
        region = _tile(drawing.overlay(each.prediction.image, each.mask.astype(int), (PAPER, HOT), 0.4, [0]))
        by_module = [look.heat[token] for look in each.maps]
        # One scale of colours for the whole row, so that its tiles compare.
        if len(explanations) == 1:
            for look, heat in zip(each.maps, by_module, strict=True):
                tiles = [_hot(each.prediction.image, part, heat.sum(0).max()) for part in (heat.sum(0), *heat)]
                rows.append([region, *tiles])
                captions.append(f"{look.module}, mean distance {look.reach[token]:.0f} pixels")
        else:
            sums = [heat.sum(0) for heat in by_module]
            highest = max(part.max() for part in sums)
            rows.append([region, *(_hot(each.prediction.image, part, highest) for part in sums)])
            captions.append(f"{each.name}: {100 * each.mask.mean():.1f} % of the pixels")
    heads = [look.module for look in first.maps]
    if len(explanations) == 1:
        heads = ["all scales", *(f"stride {stride}" for stride in first.strides)]
    words = f"red: where tokens of stride {first.strides[token]} over the region look, the mean over its pixels"

    def foot(width: int) -> Picture:
        return drawing.written(np.full((STRIP, width, 3), PAPER, np.uint8), words, 12, STRIP // 2)

    return drawing.sheet(rows, ["region", *heads], captions, foot)


def _hot(image: Picture, heat: Array, highest: float) -> Picture:
    """The picture, grey and pale, under the square root of the heat."""
    pale = drawing.pale(image, LIGHT)
    part = cv2.resize(np.sqrt(heat / max(highest, 1e-9)), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)[..., None]
    return _tile((pale * (1 - part) + np.array(HOT) * part).astype(np.uint8))


def _tile(image: Picture) -> Picture:
    height = max(1, round(TILE * min(1.2, image.shape[0] / image.shape[1])))
    return cv2.resize(image, (TILE, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


@dataclass(frozen=True)
class _Panel:
    """A part of the picture around ``centre``, shown at ``zoom`` panel pixels per pixel of the picture."""

    centre: Array
    zoom: float
    size: tuple[int, int]

    @classmethod
    def holding(cls, centre: Array, half: Array, size: tuple[int, int]) -> "_Panel":
        """The panel of this (width, height) that holds everything within ``half`` (x, y) of the centre."""
        return cls(centre, float((np.array(size) / (2 * half)).min()), size)

    def place(self, points: Array) -> Array:
        """Points (..., 2) of the picture -> pixels of the panel."""
        return (points - self.centre) * self.zoom + (np.array(self.size) - 1) / 2

    def cut(self, image: Picture) -> Picture:
        """What the panel shows of an image as large as the picture, and plain grey beyond it."""
        sides = np.array(image.shape[1::-1])
        # A pixel at least is left of a narrow side, and shown.
        shrunk_sides = np.maximum(1, np.rint(sides * min(1.0, self.zoom)).astype(int))
        shrunk = cv2.resize(image, shrunk_sides.tolist(), interpolation=cv2.INTER_AREA)
        per_pixel = sides / shrunk_sides
        zoom = np.where(shrunk_sides > 1, per_pixel * self.zoom, np.maximum(1, per_pixel * self.zoom))
        # The first pixel of the shrunk image has its centre at (per_pixel - 1) / 2.
        shift = self.place((per_pixel - 1) / 2)
        matrix = np.array(((zoom[0], 0, shift[0]), (0, zoom[1], shift[1])))
        return cv2.warpAffine(shrunk, matrix, self.size, flags=cv2.INTER_LINEAR, borderValue=INVALID).astype(np.uint8)

    def draw_grid(self, canvas: Picture, centre: Array, cell: Array) -> None:
        """The borders of cells of this (width, height), one of which has its centre here."""
        steps, (x, y) = cell * self.zoom, self.place(centre + cell / 2)
        if min(steps) >= 6:
            canvas[:, np.arange(x % steps[0], self.size[0], steps[0]).astype(int)] = GRID
            canvas[np.arange(y % steps[1], self.size[1], steps[1]).astype(int)] = GRID

    def draw_circles(self, canvas: Picture, places: Array, weights: Array, colours: drawing.Colours) -> None:
        """Circles at (M, ..., 2) with area by the weights (M, ...) and a colour for each of the M heads."""
        order = np.argsort(-weights, axis=None)  # the small ones on top
        points = _fixed(self.place(places).reshape(-1, 2)[order])
        radii = _fixed(RADIUS * np.sqrt(weights.ravel()[order]))
        heads = np.arange(len(colours)).repeat(weights[0].size)[order]
        circles = [(point, radius, colours[head]) for point, radius, head in zip(points, radii, heads, strict=True)]
        filled = canvas.copy()
        for point, radius, colour in circles:
            cv2.circle(filled, point, radius, colour, cv2.FILLED, cv2.LINE_AA, SHIFT)
        cv2.addWeighted(canvas, 0.4, filled, 0.6, 0, dst=canvas)
        for point, radius, colour in circles:
            cv2.circle(canvas, point, radius, colour, 1, cv2.LINE_AA, SHIFT)

    def draw_cell(self, canvas: Picture, centre: Array, cell: Array) -> None:
        """The border of the token's own cell."""
        first, last = _fixed(self.place(np.stack((centre - cell / 2, centre + cell / 2))))
        for colour, thickness in ((PAPER, 3), (INK, 1)):
            cv2.rectangle(canvas, first, last, colour, thickness, cv2.LINE_8, SHIFT)

    def draw_cross(self, canvas: Picture, x: int, y: int) -> None:
        point = np.rint(self.place(np.array((x, y)))).astype(int).tolist()
        for colour, thickness in ((PAPER, 3), (INK, 1)):
            cv2.drawMarker(canvas, point, colour, cv2.MARKER_TILTED_CROSS, 10, thickness, cv2.LINE_AA)


def _fixed(values: Array) -> Any:
    """Panel pixels as the integers, with fractional bits, that OpenCV draws at; what is far outside stays outside."""
    return np.rint(np.clip(values, -9999, 9999) * (1 << SHIFT)).astype(int).tolist()


def _enlarged(
    looks: "tuple[SamplingMap, ...]",
    token: int,
    level: int,
    cell: Array,
    picture: tuple[int, int],
    size: tuple[int, int],
) -> _Panel:
    """The panel around the token that holds most of its weight on this level, in every module."""
    centre = looks[0].centres[token]
    aspect = np.array((1, size[1] / size[0]))
    places = np.concatenate([look.places[token][:, level].reshape(-1, 2) for look in looks])
    weights = np.concatenate([look.weights[token][:, level].ravel() for look in looks])
    distances = (np.abs(places - centre) / aspect).max(axis=1)
    order = distances.argsort()
    enough = np.searchsorted(weights[order].cumsum(), HELD * weights.sum())
    half = 1.15 * distances[order][min(enough, len(order) - 1)]
    half = np.clip(half, 3 * cell.max(), max(picture))
    return _Panel.holding(centre, half * aspect, size)


def _foot(colours: drawing.Colours, stride: int, width: int) -> Picture:
    """What colours, circles, lines and marks mean."""
    heads = drawing.legend([(f"head {index}", colour) for index, colour in enumerate(colours, 1)], width)
    strip = np.full((76, width, 3), PAPER, np.uint8)
    left = 28
    for weight in (0.01, 0.1, 0.3):
        cv2.circle(strip, (left, 24), round(RADIUS * weight**0.5), FAINT, cv2.FILLED, cv2.LINE_AA)
        strip = drawing.written(strip, f"{100 * weight:.0f} %", left + 24, 24)
        left += 90
    words = f"of a head's weight     cross: the pixel     square: its token, of stride {stride}"
    strip = drawing.written(strip, words, left - 20, 24)
    strip = drawing.written(strip, "lines: cells of the scale looked at     grey: outside the picture", 15, 58)
    return np.concatenate((heads, strip))
