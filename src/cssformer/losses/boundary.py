"""The boundary loss: what is wrong costs the more the farther it lies from the true contour."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cssformer.data.dataset import IGNORE
from cssformer.losses.pixel import at_least_float32, ratio


def boundary_loss(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, ignore_index: int = IGNORE
) -> Tensor:
    """Mean of Σ_q φ_c(q)·p_c(q) / |pixels| over pictures and their classes (Kervadec et al., MIDL 2019).

    φ is the class's :func:`signed_distances` as a share of the picture's diagonal. The loss of a perfect prediction is
    negative. Add it to another loss: alone it may be caught where all pixels are one class. The distances are computed
    on the CPU, of each class in each picture.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) int64.
        class_weights: (C,), of the mean.
        ignore_index: label of pixels that count for nothing.
    """
    probabilities = at_least_float32(logits).softmax(1)
    _, classes, height, width = logits.shape
    truth = labels.cpu().numpy()
    distances = torch.from_numpy(np.stack([signed_distances(one, classes, ignore_index) for one in truth]))
    level = distances.to(probabilities) / (height**2 + width**2) ** 0.5
    labelled = labels != ignore_index
    costs = (level * probabilities).sum((2, 3)) / labelled.sum((1, 2)).clamp(min=1)[:, None]
    present = torch.stack([(labels == index).flatten(1).any(1) for index in range(classes)], 1)
    weights = present * (1 if class_weights is None else class_weights.to(costs))
    return ratio((weights * costs).sum(), weights.sum())


def signed_distances(labels: NDArray[np.integer], classes: int, ignore_index: int = IGNORE) -> NDArray[np.float32]:
    """How far each pixel of one picture lies outside each class, (H, W) -> (C, H, W) in pixels, below 0 inside.

    Outside it is the distance to the nearest pixel of the class; inside, 1 less than that to the nearest pixel of
    another class, with a minus. Ignored pixels have 0, and there is no contour around them. A class that is absent, or
    has all labelled pixels, has 0 everywhere.
    """
    labelled = labels != ignore_index
    distances = np.zeros((classes, *labels.shape), np.float32)
    for index in np.unique(labels[labelled]):
        inside = labels == index
        outside = labelled & ~inside
        if outside.any():
            distances[index][outside] = _distance_to(inside)[outside]
            distances[index][inside] = 1 - _distance_to(outside)[inside]
    return distances


def _distance_to(region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """From each pixel to the nearest one of the region (H, W)."""
    distance = cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squares are whole numbers; OpenCV's last bit changes with the memory that it happens to get.
    return np.sqrt(np.rint(np.square(distance, dtype=np.float64))).astype(np.float32)
