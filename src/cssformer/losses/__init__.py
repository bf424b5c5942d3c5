"""Losses for segmentation, above all for rare classes; the paper's own is :mod:`cssformer.model.loss`.

All take logits (B, C, H, W) of any float type and labels (B, H, W) int64, and give a scalar of float32 (float64 for
float64 logits). Pixels of the ``ignore_index`` count for nothing and have a gradient of exactly 0; where all are
ignored the loss is 0. Class weights (C,) are relative: all twice as large give the same loss.
"""

from cssformer.losses.boundary import boundary_loss, signed_distances
from cssformer.losses.class_weights import class_weights
from cssformer.losses.pixel import cross_entropy, focal_loss
from cssformer.losses.region import dice_loss, lovasz_softmax_loss, tversky_loss
from cssformer.losses.weighted_sum import SegmentationLoss

__all__ = [
    "SegmentationLoss",
    "boundary_loss",
    "class_weights",
    "cross_entropy",
    "dice_loss",
    "focal_loss",
    "lovasz_softmax_loss",
    "signed_distances",
    "tversky_loss",
]
