"""Pictures and labels: generated scenes and prepared folders, with one face."""

from cssformer.data.check import verify_labels
from cssformer.data.folder import IGNORE, DatasetInfo, Sample, SegmentationFolder
from cssformer.data.scenes import Scenes

__all__ = ["IGNORE", "DatasetInfo", "Sample", "Scenes", "SegmentationFolder", "verify_labels"]
