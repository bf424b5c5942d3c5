"""Metrics for one's own loop, fed batch by batch: ``update``, ``compute``, ``reset``, as torchmetrics' are."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cssformer.data import IGNORE
from cssformer.metrics.boundary import DILATION_RATIO, count_by_distance
from cssformer.metrics.confusion import intersection_over_union, mean_of_present

Absent = Literal["skip", "one", "zero"]


class MeanIoU:
    """mIoU over all pixels of all batches, in [0, 1]; docs/evaluation.md tells how other libraries count.

    Args:
        num_classes: C.
        ignore_index: pixels of the truth that do not count; where a prediction has it, the pixel has no class.
        absent: what a class counts for that is in neither truth nor prediction: it is left out (``skip``, as of
            Cityscapes' scripts, mmsegmentation and torchmetrics' ``MulticlassJaccardIndex``), ``one`` (as of
            segmentation_models_pytorch) or ``zero`` (as of ADE20K's program).
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, absent: Absent = "skip") -> None:
        self.num_classes, self.ignore_index, self.absent = num_classes, ignore_index, absent
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.areas = np.zeros((3, self.num_classes), np.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: class indices (B, H, W), or scores (B, C, H, W) whose largest one is taken.
            target: class indices (B, H, W) with ``ignore_index``.

        Raises:
            ValueError: the shapes do not fit, or a class index lies outside [0, C).
        """
        if prediction.is_floating_point():
            if prediction.ndim != 4 or prediction.shape[1] != self.num_classes:
                raise ValueError(f"scores must be (B, {self.num_classes}, H, W), not {tuple(prediction.shape)}.")
            prediction = prediction.argmax(1)
        if prediction.shape != target.shape or target.ndim != 3:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must be (B, H, W) alike."
            )
        said, true = (torch.where(each == self.ignore_index, IGNORE, each.long()) for each in (prediction, target))
        self.areas += self._count(said.to(true.device), true)

    def _count(self, said: Tensor, true: Tensor) -> NDArray[np.int64]:
        """Pixels of each class in both, in the truth, in the prediction: (B, H, W) with ``IGNORE`` -> (3, C)."""
        scored = true != IGNORE
        told = scored & (said != IGNORE)
        parts = [true[told & (said == true)], true[scored], said[told]]
        if any(part.numel() and (part.min() < 0 or part.max() >= self.num_classes) for part in parts):
            raise ValueError(f"class indices must lie in [0, {self.num_classes}), or be {self.ignore_index}.")
        return torch.stack([part.bincount(minlength=self.num_classes) for part in parts]).cpu().numpy()

    def per_class(self) -> Tensor:
        """IoU of each class (C,) over the batches of all processes, NaN for one that ``absent`` leaves out."""
        areas = [self.areas]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            areas = [self.areas] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(areas, self.areas)
        iou = intersection_over_union(np.sum(areas, axis=0))
        return torch.from_numpy(iou if self.absent == "skip" else np.nan_to_num(iou, nan=self.absent == "one"))

    def compute(self) -> float:
        """The mean over classes; NaN if there is none."""
        return float(mean_of_present(self.per_class().numpy()))


class BoundaryIoU(MeanIoU):
    """Mean Boundary IoU (Cheng et al., CVPR 2021): as :class:`MeanIoU`, of the pixels near each class's contours.

    Args:
        num_classes, ignore_index, absent: of :class:`MeanIoU`.
        dilation_ratio: width of the bands as a share of the picture's diagonal.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        absent: Absent = "skip",
        dilation_ratio: float = DILATION_RATIO,
    ) -> None:
        super().__init__(num_classes, ignore_index, absent)
        self.dilation_ratio = dilation_ratio

    def _count(self, said: Tensor, true: Tensor) -> NDArray[np.int64]:
        areas = np.zeros_like(self.areas)
        for prediction, label in zip(said.int().cpu().numpy(), true.int().cpu().numpy(), strict=True):
            areas += count_by_distance(prediction, label, self.num_classes, self.dilation_ratio)[1]
        return areas
