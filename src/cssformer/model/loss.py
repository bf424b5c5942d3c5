"""The multi-task loss (paper section 3.6): cross-entropy of the head plus that of the auxiliary head."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class SegmentationOutput(NamedTuple):
    """What a network in training mode gives: the logits of its two heads, both (B, classes, H, W)."""

    logits: Tensor
    aux: Tensor


def segmentation_loss(output: Tensor | SegmentationOutput, labels: Tensor, auxiliary_weight: float = 0.4) -> Tensor:
    """CE(head) + 0.4 · CE(aux), a scalar; each is the mean over the pixels that are not ignored (0 if there is none).

    Args:
        output: what the network gives in training mode: logits (B, classes, H, W), with those of the auxiliary head
            where it has one.
        labels: (B, H, W) int64 class indices, -100 where ignored.
        auxiliary_weight: the share of the auxiliary loss.
    """
    if isinstance(output, Tensor):
        return cross_entropy(output, labels)
    return cross_entropy(output.logits, labels) + auxiliary_weight * cross_entropy(output.aux, labels)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, classes, H, W) over the labels (B, H, W) that are not ignored; 0 if all are."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none")  # on GPUs no other sum is deterministic
    return losses.sum() / (labels != -100).sum().clamp(min=1)
