"""What stands below the paper's network: timm's models as pyramids, and the weights that they start from."""

import importlib.metadata

import torch

from cssformer.utils.errors import UserError
from cssformer.utils.lean_import import without_compiler

try:
    with without_compiler():
        from timm.layers import Conv2dSame

        from cssformer.backbones.adapter import ViTAdapter
        from cssformer.backbones.create import create_body, first_licence
        from cssformer.backbones.lora import add_lora, merged
        from cssformer.backbones.outline import layers_above
        from cssformer.backbones.pyramid import SimpleFeaturePyramid, trunk
except RuntimeError as error:
    # What torchvision says whose compiled part cannot be loaded; pip sees nothing wrong in the pair.
    if "operator torchvision::" not in str(error):
        raise
    place = " --index-url https://download.pytorch.org/whl/cpu" if torch.__version__.endswith("+cpu") else ""
    raise UserError(
        f"torchvision {importlib.metadata.version('torchvision')} was built for another PyTorch than the installed "
        f"{torch.__version__}; install both from one place: pip install --force-reinstall torch torchvision{place}"
    ) from error

__all__ = [
    "Conv2dSame",
    "SimpleFeaturePyramid",
    "ViTAdapter",
    "add_lora",
    "create_body",
    "first_licence",
    "layers_above",
    "merged",
    "trunk",
]
