"""Losses of each class's region as a whole: what is compared is an overlap, so a small class counts as a large one.

Regions are those of all pictures of the batch together. The mean is over the classes that the labels hold, because
without a true pixel the overlap is 0 whatever is predicted; there is no smoothing term, which none of these needs.
"""

import torch
from torch import Tensor

from cssformer.data.dataset import IGNORE
from cssformer.losses.pixel import at_least_float32, ratio


def tversky_loss(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    beta: float = 0.7,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Mean of 1 - TP / (TP + α·FP + β·FN) over the classes present, with α = 1 - β (Salehi et al., MLMI 2017).

    TP, FP and FN are sums of probabilities: p of the true pixels, p of the others, 1 - p of the true ones.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) int64.
        class_weights: (C,), of the mean over the classes.
        beta: from 0 to 1; above a half, missed pixels cost more than wrongly found ones.
        ignore_index: label of pixels that count for nothing.
    """
    probabilities, truth = _flat(logits, labels, ignore_index)
    found = probabilities.sum(1)
    hit = torch.zeros_like(found).index_add(0, truth, probabilities.gather(0, truth[None])[0])
    true = truth.bincount(minlength=len(found))
    losses = 1 - ratio(hit, hit + (1 - beta) * (found - hit) + beta * (true - hit))
    weights = (true > 0) * (1 if class_weights is None else class_weights.to(losses))
    return ratio((weights * losses).sum(), weights.sum())


def dice_loss(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, ignore_index: int = IGNORE
) -> Tensor:
    """Mean of 1 - 2·Σ p·y / (Σ p + Σ y) over the classes present: soft Dice (Milletari et al., 3DV 2016, unsquared).

    It is the Tversky loss with β = 1/2; arguments as there.
    """
    return tversky_loss(logits, labels, class_weights, 0.5, ignore_index)


def lovasz_softmax_loss(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, ignore_index: int = IGNORE
) -> Tensor:
    """Lovász-softmax (Berman et al., CVPR 2018): the convex surrogate of 1 - IoU, mean over the classes present.

    The errors m of a class, 1 - p at its pixels and p elsewhere, are sorted downwards; the loss is Σ m_k · (J_k -
    J_{k-1}), where J_k is 1 - IoU of a prediction that is wrong in the k worst pixels.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) int64.
        class_weights: (C,), of the mean over the classes.
        ignore_index: label of pixels that count for nothing.
    """
    probabilities, truth = _flat(logits, labels, ignore_index)
    # Of the logits, so that there is a gradient, 0, where all pixels are ignored.
    total, weight = probabilities.sum() * 0, 0.0
    rows = probabilities.unbind()
    for index in truth.unique().tolist():
        inside = truth == index
        errors, order = (inside.to(probabilities) - rows[index]).abs().sort(descending=True)
        inside = inside[order]
        # In whole numbers, and J_k - J_{k-1} solved: float32 loses both in the pixels of a large batch.
        intersection = (inside.sum() - inside.cumsum(0)).to(errors)
        union = (inside.sum() + (~inside).cumsum(0)).to(errors)
        slope = torch.where(inside, 1 / union, intersection / (union * (union - 1)).clamp(min=1))
        share = 1.0 if class_weights is None else float(class_weights[index])
        total, weight = total + share * (errors * slope).sum(), weight + share
    return total / weight if weight else total


def _flat(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Probabilities (C, P) and classes (P,) of the labelled pixels."""
    labelled = labels != ignore_index
    return at_least_float32(logits).transpose(0, 1)[:, labelled].softmax(0), labels[labelled]
