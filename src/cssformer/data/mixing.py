"""What one training crop gets from another one of the same size."""

import numpy as np

from cssformer.data.corruptions import rectangle
from cssformer.data.dataset import Sample
from cssformer.data.multilabel import is_class


def cutmix(sample: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """The sample with a rectangle of 10 to 50 % from the same place of the other (Yun et al., ICCV 2019)."""
    mask = np.zeros(sample.image.shape[:2], bool)
    mask[rectangle(mask.shape, rng.uniform(0.1, 0.5), rng)] = True
    return _merged(sample, other, mask)


def paste(sample: Sample, other: Sample, index: int, multilabel: bool = False) -> Sample:
    """The sample with the other's pixels of the class (ClassMix, Olsson et al., WACV 2021, of one class)."""
    assert other.label is not None
    return _merged(sample, other, is_class(other.label, index, multilabel))


def _merged(sample: Sample, other: Sample, mask: np.ndarray) -> Sample:
    assert sample.label is not None and other.label is not None
    image = np.where(mask[..., None], other.image, sample.image)
    return Sample(sample.name, image, np.where(mask, other.label, sample.label))
