"""How much there is of each class in each picture."""

import numpy as np
from numpy.typing import NDArray

from cssformer.data.dataset import IGNORE, SegmentationFolder
from cssformer.data.stream import Samples
from cssformer.utils.errors import UserError
from cssformer.utils.parallel import in_parallel


def class_pixels(dataset: Samples) -> NDArray[np.int64]:
    """The pixels of each class in each picture of a data set, (n, C); reads every label.

    Raises:
        UserError: a label cannot be read or has an id outside the classes, or no pixel is labelled.
    """

    def count(index: int) -> NDArray[np.int64]:
        # A prepared folder reads a label without its picture.
        label = dataset.label(index) if isinstance(dataset, SegmentationFolder) else dataset[index].label
        assert label is not None
        return np.bincount(label[label != IGNORE], minlength=len(dataset.info.classes))

    pixels = np.stack(in_parallel(count, range(len(dataset)), "Counting classes"))
    if not pixels.any():
        raise UserError("The training labels hold no labelled pixel, so there are no rare classes to count.")
    return pixels
