"""Pictures for people: colours for classes, overlays, legends, sheets of examples, confusion matrices."""

import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Colours = Sequence[Colour]
Picture = NDArray[np.uint8]
Labels = NDArray[np.integer]

FONT = Path(__file__).with_name("DejaVuSans.ttf")
"""DejaVu Sans with Latin, Greek and Cyrillic letters."""
PAPER, INK, FAINT = (255, 255, 255), (33, 37, 41), (134, 142, 150)
UNKNOWN = (52, 58, 64)
"""Colour of pixels without a class."""
WRONG = (224, 49, 49)
CONFUSED = np.array((8, 48, 107))
"""A full cell of the confusion matrix; an empty one is white."""


def colourise(labels: Labels, colours: Colours) -> Picture:
    """Class indices (H, W) -> RGB (H, W, 3); anything outside the classes is dark grey."""
    palette = np.array([*colours, UNKNOWN], np.uint8)
    known = (labels >= 0) & (labels < len(colours))
    return palette[np.where(known, labels, len(colours))]


def overlay(image: Picture, labels: Labels, colours: Colours, alpha: float = 0.5, clear: Sequence[int] = ()) -> Picture:
    """The picture (H, W, 3) under its classes' colours, with a thin pale line between classes.

    Args:
        image: RGB.
        labels: class indices (H, W).
        colours: RGB of each class.
        alpha: opacity of the colours, from 0 to 1.
        clear: indices of classes left uncoloured.
    """
    mixed = np.empty_like(image)
    # In blocks of rows, because large pictures are many times larger as masks and indices.
    rows = max(1, 2**20 // image.shape[1])
    for top in range(0, len(image), rows):
        here, part = labels[top : top + rows], mixed[top : top + rows]
        cv2.addWeighted(image[top : top + rows], 1 - alpha, colourise(here, colours), alpha, 0, dst=part)
        if clear:
            uncoloured = np.isin(here, clear)
            part[uncoloured] = image[top : top + rows][uncoloured]
        border = np.zeros(here.shape, bool)
        border[:, 1:] |= here[:, 1:] != here[:, :-1]
        border[1:] |= here[1:] != here[:-1]
        if top:
            border[0] |= here[0] != labels[top - 1]
        part[border] = part[border] // 2 + 127
    return mixed


def legend(entries: Sequence[tuple[str, tuple[int, int, int]]], width: int) -> Picture:
    """Swatches with names in as many columns as ``width`` pixels hold: RGB (height, width, 3)."""
    size = pad = 15
    column = max((int(_length(name, size)) for name, _ in entries), default=0) + 3 * pad
    columns = max(1, min(len(entries), (width - pad) // column))
    rows = -(-len(entries) // columns)
    line = int(size * 1.7)
    canvas = Image.new("RGB", (width, rows * line + pad), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, (name, colour) in enumerate(entries):
        x, y = pad + index // rows * column, pad // 2 + index % rows * line
        draw.rounded_rectangle((x, y, x + size, y + size), size // 4, fill=colour, outline=FAINT)
        _text(draw, (x + size * 1.5, y + size / 2), name, INK, size)
    return np.asarray(canvas)


def pale(picture: Picture, light: int = 96) -> Picture:
    """The picture in grey, at half its contrast and as light as said, so that colours drawn on it stand out."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None] // 2 + light
    return np.repeat(grey, 3, axis=2).astype(np.uint8)


def sheet(
    rows: Sequence[Sequence[Picture]], heads: Sequence[str], captions: Sequence[str], foot: Callable[[int], Picture]
) -> Picture:
    """A table of pictures with a heading for each column, a caption under each row and a legend at the foot.

    Args:
        rows: tiles, all of one width; those of one row have one height.
        heads: of the columns.
        captions: of the rows.
        foot: the legend of a width in pixels.
    """
    gap, head, caption = 12, 34, 26
    tile = rows[0][0].shape[1]
    heights = [row[0].shape[0] for row in rows]
    below = foot(gap + len(heads) * (tile + gap))
    height = head + sum(heights) + (caption + gap) * len(rows) + below.shape[0]
    canvas = Image.new("RGB", (below.shape[1], height), PAPER)
    draw = ImageDraw.Draw(canvas)
    lefts = [gap + index * (tile + gap) for index in range(len(heads))]
    for left, text in zip(lefts, heads, strict=True):
        _text(draw, (left, head / 2), text, INK, 17)
    top = head
    for row, height, text in zip(rows, heights, captions, strict=True):
        for left, picture in zip(lefts, row, strict=True):
            canvas.paste(Image.fromarray(picture), (left, top))
        _text(draw, (gap, top + height + caption / 2), text, FAINT, 13)
        top += height + caption + gap
    canvas.paste(Image.fromarray(below), (0, top))
    return np.asarray(canvas)


def confusion_picture(matrix: NDArray[np.int64], classes: Sequence[str]) -> Picture:
    """The confusion matrix with the truth's classes as rows: each cell darker with its share of the true pixels.

    Args:
        matrix: (C, C), or (C, C + 1) with a column for pixels without prediction, shown if there are such pixels.
        classes: names of the rows.
    """
    across = [*classes, *(["no prediction"] if matrix[:, len(classes) :].any() else [])]
    count, columns = len(classes), len(across)
    cell = max(10, min(56, 1400 // count))
    small, share = max(9, min(15, cell - 2)), matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    label = int(max(_length(name, small) for name in across)) + 14
    head, heading = 30, "prediction across, truth down; percent of the true pixels"
    width = max(label + columns * cell, label + int(_length(heading, 15)))
    canvas = Image.new("RGB", (width + 20, head + label + count * cell + 20), PAPER)
    draw = ImageDraw.Draw(canvas)
    _text(draw, (label, head / 2), heading, INK, 15)
    beside, above = (Image.new("RGB", (label, size * cell), PAPER) for size in (count, columns))
    for strip, names, left, anchor in ((beside, classes, label - 7, "rm"), (above, across, 7, "lm")):
        for index, name in enumerate(names):
            _text(ImageDraw.Draw(strip), (left, index * cell + cell / 2), name, INK, small, anchor)
    canvas.paste(beside, (0, head + label))
    canvas.paste(above.transpose(Image.Transpose.ROTATE_90), (label, head))
    number = max(9, cell // 4)
    for row in range(count):
        for column in range(columns):
            value = share[row, column]
            x, y = label + column * cell, head + label + row * cell
            colour = tuple(int(part) for part in 255 + (CONFUSED - 255) * value**0.5)
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour)
            if cell >= 30 and value >= 0.005:
                ink = PAPER if value > 0.3 else INK
                _text(draw, (x + cell / 2, y + cell / 2), f"{100 * value:.0f}", ink, number, "mm")
    draw.rectangle((label, head + label, label + columns * cell, head + label + count * cell), outline=FAINT)
    return np.asarray(canvas)


def written(picture: Picture, text: str, left: int, middle: int) -> Picture:
    """A copy of the picture with a line of text on it, from ``left``, at the height of ``middle``."""
    canvas = Image.fromarray(picture)
    _text(ImageDraw.Draw(canvas), (left, middle), text, INK, 13)
    return np.array(canvas)


def _text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: Colour, size: int, anchor: str = "lm"
) -> None:
    drawn, font = _fitting(text, size)
    draw.text(place, drawn, colour, font, anchor=anchor)


def _length(text: str, size: int) -> float:
    drawn, font = _fitting(text, size)
    return font.getlength(drawn)


@cache
def _fitting(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text and a font that has its characters: the package's or one of the system's; else these are escaped."""
    font = ImageFont.truetype(str(FONT), size)
    missing = _missing(font, text)
    if missing and (found := _system_font(text)):
        other = ImageFont.truetype(str(found[0]), size, found[1])
        if not _missing(other, text):
            return text, other
    for character in missing:
        text = text.replace(character, character.encode("ascii", "backslashreplace").decode())
    return text, font


def _missing(font: ImageFont.FreeTypeFont, text: str) -> set[str]:
    """The characters for which the font draws a box, as for one that no font has."""
    box = bytes(font.getmask("\U0010ffff"))
    return {character for character in set(text) if bytes(font.getmask(character)) == box}


def _system_font(text: str) -> tuple[str, int] | None:
    """File and index of the font that fontconfig, where it is there, finds the best for the characters."""
    wanted = " ".join(f"{ord(character):x}" for character in sorted(set(text)))
    command = ["fc-match", "--format=%{file}\n%{index}", f":charset={wanted}"]
    try:
        path, index = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return path, int(index or 0)
