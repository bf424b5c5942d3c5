"""Losses of each pixel for itself: cross-entropy with its variants, and the focal loss."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cssformer.data.dataset import IGNORE


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    ohem: float = 1.0,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Mean cross-entropy Σ w_y · -log p_y / Σ w_y over the labelled pixels.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) int64.
        class_weights: w (C,); all 1 if None.
        label_smoothing: ε; the target is 1 - ε + ε/C for the true class and ε/C for the others (Szegedy et al., CVPR
            2016).
        ohem: only this share of the labelled pixels counts, those of the greatest loss, at least one (online hard
            example mining: Shrivastava et al., CVPR 2016; for pixels Wu et al., arXiv 1604.04339).
        ignore_index: label of pixels that count for nothing.
    """
    logits = at_least_float32(logits)
    class_weights = None if class_weights is None else class_weights.to(logits)
    losses = log_loss(logits, labels, class_weights, ignore_index, label_smoothing)
    weights = pixel_weights(labels, class_weights, ignore_index)
    if ohem < 1:
        labelled = labels.flatten() != ignore_index
        hardness = losses.detach().flatten().masked_fill(~labelled, -1)
        hardest = hardness.topk(math.ceil(ohem * int(labelled.sum()))).indices
        losses, weights = losses.flatten()[hardest], weights.flatten()[hardest]
    return ratio(losses.sum(), weights.sum())


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    gamma: float = 2.0,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Mean focal loss Σ w_y · -(1 - p_y)^γ · log p_y / Σ w_y of the softmax (Lin et al., ICCV 2017; w is their α).

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) int64.
        class_weights: w (C,); all 1 if None.
        gamma: the greater, the less those pixels count that are right already; 0 is the cross-entropy.
        ignore_index: label of pixels that count for nothing.
    """
    logits = at_least_float32(logits)
    surprise = log_loss(logits, labels, ignore_index=ignore_index)
    # Below 1, a power has no gradient at 0.
    doubt = (1 - (-surprise).exp()).clamp(min=torch.finfo(logits.dtype).eps)
    weights = pixel_weights(labels, None if class_weights is None else class_weights.to(logits), ignore_index)
    return ratio((weights * doubt**gamma * surprise).sum(), weights.sum())


def log_loss(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    ignore_index: int = IGNORE,
    label_smoothing: float = 0.0,
) -> Tensor:
    """w_y · -log p_y of each pixel (B, H, W), 0 where it is ignored; like ``F.cross_entropy``."""
    rows = labels
    if logits.stride(1) == 1:  # a pixel's classes lie side by side, which is faster as rows, and slower else
        logits, rows = logits.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
    losses = F.cross_entropy(
        logits, rows, class_weights, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )
    return losses.view(labels.shape)


def at_least_float32(logits: Tensor) -> Tensor:
    """The logits, those of half precision as float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def pixel_weights(labels: Tensor, class_weights: Tensor | None, ignore_index: int) -> Tensor:
    """The weight of each pixel's class, 0 where it is ignored: like the labels, bool without class weights."""
    labelled = labels != ignore_index
    if class_weights is None:
        return labelled
    return class_weights[labels.masked_fill(~labelled, 0)] * labelled


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 with a gradient of 0 where the whole is 0."""
    whole = whole.to(part)
    return part * (whole > 0) / whole.clamp(min=torch.finfo(part.dtype).tiny)
