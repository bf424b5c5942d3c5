"""Batches for the examples beside this file: generated pictures, so that nothing has to be downloaded."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cssformer.data import SyntheticScenes


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Pictures (3, H, W) in [0, 1] and labels (H, W) int64, -100 where ignored; yours may come from anywhere."""

    def __init__(self, count: int, size: int = 128, seed: int = 0) -> None:
        self.scenes = SyntheticScenes(count, (size, size), seed)
        self.info = self.scenes.info

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        _, image, label = self.scenes[index]
        return torch.from_numpy(image).permute(2, 0, 1) / 255, torch.from_numpy(label).long()
