"""An average of the weights of many steps, which is scored and kept in their place."""

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from cssformer.training.non_finite import NonFinite
from cssformer.training.recipe import TrainingConfig


class Average(WeightAveraging):
    """The moving average (EMA), or the mean since a step (SWA; Izmailov et al., UAI 2018), of weights and statistics.

    A step that was left out does not count. What is no number of the network, such as Swin's indices of relative
    positions, stays as it is.

    Args:
        training: with ``ema`` or ``swa_after``.
        non_finite: knows whether the last step was left out.
    """

    def __init__(self, training: TrainingConfig, non_finite: NonFinite) -> None:
        super().__init__(avg_fn=self._averaged)
        self.decay, self.after, self.non_finite = training.ema, training.swa_after or 0, non_finite

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and not self.non_finite.in_a_row

    @torch.no_grad()
    def _averaged(self, average: Tensor, current: Tensor, steps: Tensor) -> Tensor:
        """The average after ``steps`` others."""
        if not average.is_floating_point():
            return current
        if self.decay is not None:
            return average.lerp(current, 1 - self.decay)
        # Up to that step it is the weights themselves.
        share = 1 / (steps - self.after + 1).clamp(min=1)
        return average.lerp(current, share.to(average.dtype))
