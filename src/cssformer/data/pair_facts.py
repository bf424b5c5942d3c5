"""What one picture of a prepared folder and its label hold."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.data.alignment import better_turned
from cssformer.data.bands import decode_bands
from cssformer.data.channels import Moments, moments, rgb_view
from cssformer.data.dataset_info import DatasetInfo
from cssformer.data.duplicates import perceptual_hash
from cssformer.data.files import read_bytes
from cssformer.data.image_io import decode_image, decode_mask
from cssformer.data.multilabel import is_class
from cssformer.data.picture_facts import PictureFacts
from cssformer.utils.errors import UserError

_SIDE = 256
NO_CLASS = -1
"""Stands for the pixels of multi-label data that are of no class."""


@dataclass
class PairFacts:
    """What one picture and its label hold; a file that cannot be read leaves a problem instead.

    Attributes:
        problems: sentences on files that cannot be read.
        file: facts of the picture's file.
        channels: of each channel, in the file's units.
        size: of the picture, width and height.
        digest: SHA-256 of its pixels.
        hash: of :func:`cssformer.data.duplicates.perceptual_hash`.
        label_size, label_orientation, bits: of the label, which has so many bits a pixel.
        pixels: how many the label has of each id; of multi-label data of each class, of ``NO_CLASS``, and of values
            that are no bits of classes.
        regions, beside_ignored: of each class: its connected regions (by sides and corners), and the pixels beside
            ignored ones.
        turned: how the label must be turned to fit its picture, if it fits so alone.
    """

    split: str
    image: Path
    label: Path | None
    problems: list[str] = field(default_factory=list)
    file: PictureFacts | None = None
    channels: Moments | None = None
    size: tuple[int, int] | None = None
    digest: str = ""
    hash: NDArray[np.bool_] | None = None
    label_size: tuple[int, int] | None = None
    label_orientation: int = 1
    bits: int = 0
    pixels: dict[int, int] = field(default_factory=dict)
    regions: dict[int, int] = field(default_factory=dict)
    beside_ignored: dict[int, int] = field(default_factory=dict)
    turned: str | None = None

    @property
    def label_area(self) -> int:
        """The pixels of the label, 0 without one."""
        width, height = self.label_size or (0, 0)
        return width * height


def read_pair(split: str, image_path: Path, label_path: Path | None, info: DatasetInfo) -> PairFacts:
    """The facts of a split's picture and its label."""
    facts, grey = PairFacts(split, image_path, label_path), None
    try:
        if info.channels is None:
            image, facts.file = decode_image(read_bytes(image_path), image_path)
            facts.channels = moments(cv2.split(image))
        else:
            bands = decode_bands(read_bytes(image_path), image_path)
            facts.file, facts.channels = bands.facts, bands.moments()
            image = bands.pixels(info.channels, image_path).pixels
        facts.size = image.shape[1], image.shape[0]
        facts.digest = hashlib.sha256(image.tobytes()).hexdigest()
        grey = _shrunk(rgb_view(image, info.channels))
        facts.hash = perceptual_hash(grey)
    except UserError as error:
        facts.problems.append(str(error))
    try:
        if label_path is not None:
            mask = decode_mask(read_bytes(label_path), label_path)
            label, facts.label_orientation = mask.ids(label_path), mask.orientation
            facts.bits = 8 * label.itemsize
            facts.label_size = label.shape[1], label.shape[0]
            facts.pixels = _count_ids(label, info)
            _read_regions(label, info, facts)
            if grey is not None and facts.size == facts.label_size:
                facts.turned = better_turned(grey, label)
    except UserError as error:
        facts.problems.append(str(error))
    return facts


def _count_ids(ids: NDArray[Any], info: DatasetInfo) -> dict[int, int]:
    counts = np.bincount(ids.ravel())
    found = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    if not info.multilabel:
        return found
    classes = range(len(info.classes))
    fields = {value: number for value, number in found.items() if value < 1 << len(classes)}
    of = {index: sum(number for value, number in fields.items() if value >> index & 1) for index in classes}
    rest = {value: number for value, number in found.items() if value not in fields}
    return {index: number for index, number in {NO_CLASS: fields.get(0), **of}.items() if number} | rest


def _read_regions(label: NDArray[Any], info: DatasetInfo, facts: PairFacts) -> None:
    for value in facts.pixels:
        if 0 <= value < len(info.classes):
            mask = (label != info.ignore) & is_class(label, value, info.multilabel)
            facts.regions[value] = cv2.connectedComponents(mask.astype(np.uint8))[0] - 1
    if info.ignore in facts.pixels:
        near = cv2.dilate((label == info.ignore).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        facts.beside_ignored = _count_ids(label[near], info)


def _shrunk(image: NDArray[Any]) -> NDArray[np.float32]:
    """A picture (H, W, C) in grey of at most 256 pixels along a side."""
    factor = min(1.0, _SIDE / max(image.shape[:2]))
    size = max(1, round(factor * image.shape[1])), max(1, round(factor * image.shape[0]))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return small.reshape(size[1], size[0], -1).mean(axis=2, dtype=np.float32)
