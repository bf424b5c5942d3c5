"""Pictures of overlapping discs, red, green and blue: of several classes a pixel."""

from pathlib import Path

import cv2
import numpy as np

from cssformer.data import DatasetInfo

CLASSES = ("red", "green", "blue")


def discs(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture RGB (size, size, 3), and a bit for each colour's discs, uint16 (size, size)."""
    y, x = np.mgrid[:size, :size]
    image, field = rng.normal(100, 6, (size, size, 3)), np.zeros((size, size), np.uint16)
    for index in range(len(CLASSES)):
        for _ in range(2):
            left, top, radius = *rng.uniform(0, size, 2), rng.uniform(size / 6, size / 3)
            field |= np.where((x - left) ** 2 + (y - top) ** 2 < radius**2, 1 << index, 0).astype(np.uint16)
        image[field >> index & 1 == 1, index] += 100
    return image.clip(0, 255).astype(np.uint8), field


def prepared_discs(root: Path, size: int = 32, train: int = 12, val: int = 3) -> Path:
    """A prepared folder of such pictures, a corner of each ignored."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            image, field = discs(size, rng)
            field[:3, :3] = 65535
            cv2.imwrite(str(root / split / "images" / f"{number}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            cv2.imwrite(str(root / split / "labels" / f"{number}.png"), field)
    DatasetInfo(CLASSES, ((230, 0, 0), (0, 230, 0), (0, 0, 230)), 65535, multilabel=True).save(root)
    return root
