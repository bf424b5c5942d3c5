"""The network of the paper, one file per part."""

from cssformer.model.cssformer import CSSFormer, SegmentationNetwork
from cssformer.model.loss import segmentation_loss

__all__ = ["CSSFormer", "SegmentationNetwork", "segmentation_loss"]
