"""What stands below the paper's network: timm's models as pyramids, and the weights that they start from."""

from cssformer.backbones.create import create_body
from cssformer.backbones.pyramid import SimpleFeaturePyramid, trunk

__all__ = ["SimpleFeaturePyramid", "create_body", "trunk"]
