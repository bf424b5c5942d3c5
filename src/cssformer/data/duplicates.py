"""Pictures that are nearly the same, by a perceptual hash."""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

NEAR = 40
"""Hashes of near duplicates differ in at most so many of their 255 bits.

Of 480 000 pairs of different pictures (PASCAL VOC, India Driving Dataset) none differed in fewer than 68 bits; copies
of a third of the size and JPEG quality 50, or a fifth brighter, in 32 at most.
"""


def perceptual_hash(grey: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """Which of a picture's 255 lowest frequencies are above their median (pHash; Zauner, 2010); None if it is flat.

    Args:
        grey: the picture (H, W), perhaps shrunk.
    """
    small = cv2.resize(grey, (64, 64), interpolation=cv2.INTER_AREA)
    if small.std() <= 0.01 * small.mean():
        return None
    lowest = cv2.dct(small)[:16, :16].ravel()[1:]
    return np.asarray(lowest > np.median(lowest))


def near_duplicates(hashes: NDArray[np.bool_], groups: NDArray[np.str_]) -> Iterator[tuple[int, int]]:
    """Indices of two hashes (n, 255) of different groups (n,) that differ in at most ``NEAR`` bits."""
    signs = hashes.astype(np.float32) * 2 - 1
    # In blocks of rows: a matrix of all pairs would fill the memory.
    for first in range(0, len(signs), 1024):
        equal = signs[first : first + 1024] @ signs[first:].T
        ones, others = np.nonzero(np.triu(equal >= signs.shape[1] - 2 * NEAR, 1))
        for one, other in zip((ones + first).tolist(), (others + first).tolist(), strict=True):
            if groups[one] != groups[other]:
                yield one, other
