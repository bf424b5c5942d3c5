"""Any loss of classes that exclude each other, for classes of which a pixel may have several.

Each class is a problem of two: with the logits 0 and z, softmax gives sigmoid(z), and cross-entropy is the binary one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cssformer.data.multilabel import presence
from cssformer.losses.pixel import at_least_float32, ratio

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def mean_over_classes(
    loss: Loss, of_regions: bool, logits: Tensor, labels: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """The mean of a loss over the classes, each against its absence.

    A loss of pixels is over all classes, and a class's weight is that of the pixels that have it, against 1 of those
    that do not (PyTorch's ``pos_weight``, divided by the weights' sum). A loss of regions is that of the class's own
    region, the mean over the classes that the labels hold, by their weights.

    Args:
        loss: of two classes, with weights for them.
        of_regions: whether it is one of regions.
        logits: (B, C, H, W).
        labels: bit fields (B, H, W) int64, see :mod:`cssformer.data.multilabel`, ``IGNORE`` where ignored.
        class_weights: (C,); all 1 if None.
    """
    logits = at_least_float32(logits)
    given = logits.new_ones(logits.shape[1]) if class_weights is None else class_weights.to(logits)
    losses, weights = [], []
    for index, weight in enumerate(given):
        own, here, one = logits[:, index : index + 1], presence(labels, index), torch.ones_like(weight)
        pair = torch.stack([0 * one, one] if of_regions else [one, weight])
        losses.append(loss(torch.cat([torch.zeros_like(own), own], 1), here, pair))
        weights.append(weight * (here == 1).any() if of_regions else one)
    means, shares = torch.stack(losses), torch.stack(weights)
    return ratio((shares * means).sum(), shares.sum())
