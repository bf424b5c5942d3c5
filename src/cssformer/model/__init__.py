"""The network of the paper, one file per part."""

from cssformer.model.loss import segmentation_loss
from cssformer.model.network import CSSFormer, SegmentationNetwork

__all__ = ["CSSFormer", "SegmentationNetwork", "segmentation_loss"]
