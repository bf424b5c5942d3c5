"""How much there is of each class in each picture."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cssformer.data.dataset import IGNORE, Samples, SegmentationFolder, require_same_size
from cssformer.data.dataset_info import DatasetInfo
from cssformer.data.files import require_whole_file
from cssformer.data.image_io import read_size
from cssformer.data.multilabel import with_class
from cssformer.utils.parallel import in_parallel


def class_pixels(dataset: Samples) -> NDArray[np.int64]:
    """The pixels of each class in each picture of a data set, (n, C) as of :func:`count_classes`; reads every label.

    Raises:
        UserError: a label cannot be read or has an id outside the classes.
    """

    def count(index: int) -> NDArray[np.int64]:
        # A prepared folder reads a label without its picture.
        label = dataset.label(index) if isinstance(dataset, SegmentationFolder) else dataset[index].label
        assert label is not None
        return count_classes(label, dataset.info)

    return np.stack(in_parallel(count, range(len(dataset)), "Counting classes"))


def verify_labels(folder: str | Path, splits: tuple[str, ...] = ("train", "val")) -> dict[str, NDArray[np.int64]]:
    """Read every label and the ends of every picture of ``splits``, so that training does not stop in the middle.

    Returns:
        For each split what :func:`class_pixels` gives.

    Raises:
        UserError: a split, a picture's label or ``dataset.yaml`` is missing, a label is unreadable or has an id
            outside the classes, a picture is truncated, or their sizes differ; the first such file is named.
    """
    return {split: _verified(SegmentationFolder(folder, split)) for split in splits}


def _verified(dataset: SegmentationFolder) -> NDArray[np.int64]:
    labels = dataset.labels
    assert labels is not None

    def verify(index: int) -> NDArray[np.int64]:
        picture, path = dataset.images[dataset.names[index]], labels[dataset.names[index]]
        label = dataset.label(index)
        assert label is not None
        require_whole_file(picture)
        width, height = read_size(picture)
        require_same_size(picture, (height, width), path, label.shape)
        return count_classes(label, dataset.info)

    return np.stack(in_parallel(verify, range(len(dataset)), f"Verifying {dataset.split}"))


def count_classes(label: NDArray[np.int32], info: DatasetInfo) -> NDArray[np.int64]:
    """How many pixels of each class a label holds, (C,); of multi-label data those without and with it, (C, 2)."""
    there = pixels_of(label, info)
    return np.stack([np.count_nonzero(label != IGNORE) - there, there], axis=1) if info.multilabel else there


def pixels_of(label: NDArray[np.integer], info: DatasetInfo) -> NDArray[np.int64]:
    """How many pixels of each class a label of either kind holds, (C,)."""
    known, classes = label[label != IGNORE], len(info.classes)
    if not info.multilabel:
        return np.bincount(known, minlength=classes)
    return np.array([np.count_nonzero(known >> index & 1) for index in range(classes)])


def class_shares(pixels: NDArray[np.integer]) -> NDArray[np.float64]:
    """The share of each class in all labelled pixels, (C,), of what :func:`class_pixels` gives."""
    total = pixels[:, 0].sum() if pixels.ndim == 3 else pixels.sum()
    return with_class(pixels).sum(axis=0) / max(1, total)
