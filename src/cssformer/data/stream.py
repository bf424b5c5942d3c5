"""The datasets that PyTorch's loaders read."""

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from cssformer.data.dataset import Sample, Samples
from cssformer.data.mixing import cutmix, paste
from cssformer.data.rare_classes import RareClasses
from cssformer.data.transforms import Augment


class TrainingStream(Dataset[dict[str, Tensor]]):
    """``length`` augmented samples in a row, epoch after epoch, each epoch in an order of its own.

    Item k depends on (seed, k) alone, whatever worker makes it and whatever came before, so that an interrupted run
    continues exactly: ``{"image": as the samples' (C, h, w), "label": int16 (h, w)}``.

    ``augment.rare_class_crops`` is how often a picture and window that hold a class drawn by inverse frequency come in
    place of the next picture's, ``augment.paste`` how often the pixels of such a class are pasted in from another
    picture, ``augment.cutmix`` how often a rectangle of another picture.

    Args:
        rare: draws for the first two.
    """

    def __init__(
        self, dataset: Samples, augment: Augment, seed: int, length: int, rare: RareClasses | None = None
    ) -> None:
        self.dataset, self.augment, self.seed, self.length, self.rare = dataset, augment, seed, length, rare
        self._order: tuple[int, np.ndarray] = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        _leave_cores_to_other_workers()
        # Draws of their own, so that the crop's are the same with and without them.
        chance, picture, held = self._drawn(index)
        sample = self.augment(self.dataset[picture], np.random.default_rng((self.seed, 1, index)), held)
        if chance.random() < self.augment.cutmix:
            other = self.dataset[int(chance.integers(len(self.dataset)))]
            sample = cutmix(sample, self.augment(other, chance), chance)
        if self.rare is not None and chance.random() < self.augment.paste:
            picture, held = self.rare.draw(chance)
            sample = paste(sample, self.augment(self.dataset[picture], chance, held), held, self.augment.multilabel)
        return _tensors(sample, len(self.dataset.info.classes))

    def source(self, index: int) -> int:
        """The picture of the data set that item ``index`` shows."""
        return self._drawn(index)[1]

    def _drawn(self, index: int) -> tuple[np.random.Generator, int, int | None]:
        """What further draws come from, the item's picture, and the class that its window must hold."""
        chance = np.random.default_rng((self.seed, 2, index))
        if self.rare is not None and chance.random() < self.augment.rare_class_crops:
            return chance, *self.rare.draw(chance)
        epoch, place = divmod(index, len(self.dataset))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.dataset))
        return chance, int(self._order[1][place]), None


class ValidationSet(Dataset[dict[str, Tensor | str]]):
    """The samples as they are: ``{"image": (C, H, W), "label": int16 (H, W), "name": str}``."""

    def __init__(self, dataset: Samples) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        _leave_cores_to_other_workers()
        sample = self.dataset[index]
        return {**_tensors(sample, len(self.dataset.info.classes)), "name": sample.name}


def _tensors(sample: Sample, classes: int) -> dict[str, Tensor]:
    if sample.label is None:
        raise ValueError(f"{sample.name} has no label.")
    image = np.ascontiguousarray(sample.image.transpose(2, 0, 1))
    # A quarter of int64's bytes on the way from a loader's process.
    label = torch.from_numpy(sample.label).to(torch.int16 if classes < 2**15 else torch.int32)
    return {"image": torch.from_numpy(image), "label": label}


def _leave_cores_to_other_workers() -> None:
    if get_worker_info() is not None:
        cv2.setNumThreads(0)
