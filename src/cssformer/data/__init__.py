"""Pictures and labels: synthetic scenes and prepared folders, with one face."""

from cssformer.data.check import CheckReport
from cssformer.data.class_pixels import verify_labels
from cssformer.data.dataset import IGNORE, Sample, SegmentationFolder
from cssformer.data.dataset_info import DatasetInfo
from cssformer.data.synthetic import SyntheticScenes

__all__ = [
    "IGNORE",
    "CheckReport",
    "DatasetInfo",
    "Sample",
    "SegmentationFolder",
    "SyntheticScenes",
    "verify_labels",
]
