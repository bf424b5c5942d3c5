"""Weights of the classes by how often they occur."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ClassWeighting = Literal["balanced", "sqrt", "effective"]


def class_weights(pixels: NDArray[np.integer], weighting: ClassWeighting) -> Tensor:
    """A weight (C,) for each class, float32 with mean 1 over the classes that occur; 1 for one that does not.

    Of multi-label data a class's weight is that of its presence over that of its absence, as of two classes.

    Args:
        pixels: how many of each class each training picture holds, (n, C), or without and with it (n, C, 2), of
            :func:`cssformer.data.class_pixels.class_pixels`.
        weighting: ``balanced``: 1/f with f the class's share of the pixels. ``sqrt``: 1/√f, the
            milder one. ``effective``: 1/E with the effective number E = (1 - β^m)/(1 - β) of the m pictures that hold
            the class, β = 1 - 1/n (Cui et al., CVPR 2019). Pictures are counted there, because neighbouring pixels are
            nearly the same sample.
    """
    if pixels.ndim == 3:
        pairs = torch.stack([class_weights(pixels[:, index], weighting) for index in range(pixels.shape[1])])
        return pairs[:, 1] / pairs[:, 0]
    if weighting in ("balanced", "sqrt"):
        counts = pixels.sum(axis=0) ** (1.0 if weighting == "balanced" else 0.5)
    else:
        beta = 1 - 1 / len(pixels)
        counts = (1 - beta ** (pixels > 0).sum(axis=0)) / (1 - beta)
    there = counts > 0
    weights = np.ones(len(counts))
    weights[there] = 1 / counts[there]
    weights[there] /= weights[there].mean()
    return torch.from_numpy(weights.astype(np.float32))
