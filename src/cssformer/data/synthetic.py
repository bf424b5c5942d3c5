"""Generated pictures as a data set, for the demonstration and for tests."""

from collections.abc import Iterator

import numpy as np

from cssformer.data.dataset import Sample
from cssformer.data.dataset_info import DatasetInfo
from cssformer.data.scene import CLASSES, Scene
from cssformer.utils.errors import UserError


class SyntheticScenes:
    """``count`` generated pictures of ``size`` (height, width); picture i depends on (seed, i, size) alone.

    It has the face of ``SegmentationFolder``: ``info``, ``names``, ``len()`` and ``[i] -> Sample``.

    Raises:
        UserError: ``count`` is less than 1 or a side is less than 32.
    """

    def __init__(self, count: int, size: tuple[int, int] = (128, 128), seed: int = 0) -> None:
        if count < 1 or min(size) < 32:
            raise UserError(
                f"SyntheticScenes need a count of at least 1 and sides of at least 32; got {count} of {size}."
            )
        self.size, self.seed = size, seed
        self.info = DatasetInfo(
            classes=tuple(CLASSES),
            colours=tuple(CLASSES.values()),
            mapping={str(index): index for index in range(len(CLASSES))},
            counts={"generated": count},
        )
        self.names = [f"scene{index:05d}" for index in range(count)]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        scene = Scene(self.size, np.random.default_rng((self.seed, index % len(self))))
        scene.land()
        scene.water()
        scene.ways()
        scene.buildings()
        scene.sheep()
        scene.small_things()
        scene.power_line()
        scene.weather()
        return Sample(name, scene.finished(), scene.label)
