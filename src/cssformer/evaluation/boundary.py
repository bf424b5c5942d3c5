"""Boundary IoU (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021).

Of each class only the pixels near its contour count: those within d pixels of a pixel of another class or of the
picture's edge, where d is 2 % of the picture's diagonal. Boundary IoU is the IoU of these bands of truth and
prediction.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from cssformer.data import IGNORE

DILATION_RATIO = 0.02
"""Width of the band as a share of the picture's diagonal, as in the paper."""

OUTSIDE = -1000


def boundary_band(label: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels within d of their class's contour: class indices (H, W) -> (H, W) bool.

    The paper's implementation erodes each class's mask d times by 3x3 pixels and takes what vanishes. That is where
    the smallest and the largest class index within d pixels differ, for all classes at one time.
    """
    height, width = label.shape
    distance = max(1, round(DILATION_RATIO * math.hypot(height, width)))
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    label = np.ascontiguousarray(label, dtype=np.int16)
    smallest = cv2.erode(label, window, borderType=cv2.BORDER_CONSTANT, borderValue=(OUTSIDE,))
    return smallest != cv2.dilate(label, window)


def boundary_areas(
    prediction: NDArray[np.integer], label: NDArray[np.integer], band: NDArray[np.bool_], classes: int
) -> NDArray[np.int64]:
    """Pixels of each class in both bands with the same class, in the truth's band, and in the prediction's: (3, C).

    Ignored pixels belong to no class, in truth and in prediction, so that both have a contour around them.

    Args:
        prediction: class indices (H, W).
        label: the truth (H, W), with ``IGNORE``.
        band: the truth's :func:`boundary_band`.
        classes: C.
    """
    scored = label != IGNORE
    predicted_band = boundary_band(np.where(scored, prediction, IGNORE)) & scored
    true_band = band & scored
    both = true_band & predicted_band & (prediction == label)
    return np.stack(
        [
            np.bincount(label[both], minlength=classes),
            np.bincount(label[true_band], minlength=classes),
            np.bincount(prediction[predicted_band], minlength=classes),
        ]
    )
