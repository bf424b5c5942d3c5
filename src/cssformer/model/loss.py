"""The multi-task loss (paper section 3.6): cross-entropy of the head plus that of the auxiliary head."""

import torch.nn.functional as F
from torch import Tensor

from cssformer.model.interpolate import upsample


def segmentation_loss(
    coarse: Tensor, auxiliary: Tensor | None, labels: Tensor, auxiliary_weight: float = 0.4
) -> Tensor:
    """CE(head) + 0.4 · CE(aux), a scalar; each is the mean over the pixels that are not ignored (0 if there is none).

    Args:
        coarse: the head's logits (B, classes, h, w) at stride 4.
        auxiliary: the auxiliary head's logits (B, classes, h', w') at stride 16, or None.
        labels: (B, H, W) int64 class indices, -100 where ignored.
        auxiliary_weight: the share of the auxiliary loss.
    """
    loss = cross_entropy(upsample(coarse.float(), 4, labels.shape[1:]), labels)
    if auxiliary is not None:
        loss = loss + auxiliary_weight * cross_entropy(upsample(auxiliary.float(), 16, labels.shape[1:]), labels)
    return loss


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, classes, H, W) over the labels (B, H, W) that are not ignored; 0 if all are."""
    total = F.cross_entropy(logits, labels, reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)
