"""The sum of losses that a recipe asks for."""

from functools import partial

from torch import Tensor, nn

from cssformer.losses import pixel, region
from cssformer.losses.boundary import boundary_loss
from cssformer.losses.multilabel import mean_over_classes
from cssformer.model.loss import SegmentationOutput


class SegmentationLoss(nn.Module):
    """Losses of both heads, summed by weight. As it stands it is the paper's: CE(head) + 0.4 · CE(aux).

    Args:
        cross_entropy, focal, dice, tversky, lovasz, boundary: the weight of each loss in the sum, one at least above 0.
        class_weights: (C,) for all of them; all 1 if None.
        label_smoothing, ohem: of the cross-entropy.
        focal_gamma: of the focal loss.
        tversky_beta: of the Tversky loss.
        auxiliary_weight: the share of the auxiliary head, whose loss is the same sum.
        multilabel: labels are bit fields; each loss is that of :func:`cssformer.losses.multilabel.mean_over_classes`.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        cross_entropy: float = 1.0,
        focal: float = 0.0,
        dice: float = 0.0,
        tversky: float = 0.0,
        lovasz: float = 0.0,
        boundary: float = 0.0,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        ohem: float = 1.0,
        focal_gamma: float = 2.0,
        tversky_beta: float = 0.7,
        auxiliary_weight: float = 0.4,
        multilabel: bool = False,
    ) -> None:
        super().__init__()
        of_pixels = (
            (cross_entropy, partial(pixel.cross_entropy, label_smoothing=label_smoothing, ohem=ohem)),
            (focal, partial(pixel.focal_loss, gamma=focal_gamma)),
        )
        of_regions = (
            (dice, region.dice_loss),
            (tversky, partial(region.tversky_loss, beta=tversky_beta)),
            (lovasz, region.lovasz_softmax_loss),
            (boundary, boundary_loss),
        )
        self.terms = [
            (weight, partial(mean_over_classes, loss, terms is of_regions) if multilabel else loss)
            for terms in (of_pixels, of_regions)
            for weight, loss in terms
            if weight
        ]
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.auxiliary_weight = auxiliary_weight

    def forward(self, output: Tensor | SegmentationOutput, labels: Tensor) -> Tensor:
        """What the network gives in training mode and labels (B, H, W) int64, -100 where ignored -> a scalar."""
        if isinstance(output, Tensor):
            return self.of_head(output, labels)
        return self.of_head(output.logits, labels) + self.auxiliary_weight * self.of_head(output.aux, labels)

    def of_head(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum for logits (B, C, H, W)."""
        first, *others = (weight * loss(logits, labels, self.class_weights) for weight, loss in self.terms)
        return sum(others, first)
