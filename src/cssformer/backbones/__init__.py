"""What stands below the paper's network: timm's models as pyramids, and the weights that they start from."""

from cssformer.utils.lean_import import without_compiler

with without_compiler():
    from cssformer.backbones.adapter import ViTAdapter
    from cssformer.backbones.create import create_body, first_licence
    from cssformer.backbones.lora import add_lora, merged
    from cssformer.backbones.outline import layers_above
    from cssformer.backbones.pyramid import SimpleFeaturePyramid, trunk

__all__ = [
    "SimpleFeaturePyramid",
    "ViTAdapter",
    "add_lora",
    "create_body",
    "first_licence",
    "layers_above",
    "merged",
    "trunk",
]
