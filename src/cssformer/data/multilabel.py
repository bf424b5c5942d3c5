"""Labels of several classes a pixel: bit k of a label says whether the pixel is of class k; ``IGNORE`` as elsewhere."""

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from cssformer.data.dataset import IGNORE
from cssformer.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Labels = TypeVar("Labels", NDArray[np.int32], "Tensor")


def presence(labels: Labels, index: int) -> Labels:
    """1 where a pixel is of the class, 0 where it is not, ``IGNORE`` where it is ignored: bit fields of any shape."""
    found = labels >> index & 1
    found[labels == IGNORE] = IGNORE
    return found


def is_class(label: NDArray[np.int32], index: int, multilabel: bool) -> NDArray[np.bool_]:
    """Where a label of either kind is of the class."""
    return (label >> index & 1 == 1) & (label != IGNORE) if multilabel else label == index


def with_class(pixels: NDArray[np.integer]) -> NDArray[np.integer]:
    """The pixels of each class in each picture, (n, C), of :func:`cssformer.data.class_pixels.class_pixels`."""
    return pixels[..., 1] if pixels.ndim == 3 else pixels


def require_single_label(multilabel: bool, what: str) -> None:
    """Raise UserError if data or a network are multi-label, for which ``what`` is not made."""
    if multilabel:
        raise UserError(f"{what} needs one class a pixel, but multi-label data and models have several.")
