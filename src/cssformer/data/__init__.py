"""Pictures and labels: generated scenes and prepared folders, with one face."""

from cssformer.data.check import CheckReport, verify_labels
from cssformer.data.folder import IGNORE, DatasetInfo, Sample, SegmentationFolder
from cssformer.data.prepare import Prepared, prepare_folder
from cssformer.data.scenes import Scenes

__all__ = [
    "IGNORE",
    "CheckReport",
    "DatasetInfo",
    "Prepared",
    "Sample",
    "Scenes",
    "SegmentationFolder",
    "prepare_folder",
    "verify_labels",
]
