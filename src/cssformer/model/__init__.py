"""The network of the paper, one file per part."""

from cssformer.model.cssformer import CSSFormer, SegmentationNetwork
from cssformer.model.loss import SegmentationOutput, segmentation_loss
from cssformer.weights.hub import Metadata

__all__ = ["CSSFormer", "Metadata", "SegmentationNetwork", "SegmentationOutput", "segmentation_loss"]
