"""Semantic segmentation with the Cross-Scale Sampling Transformer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cssformer.inference import Predictor
    from cssformer.model import CSSFormer, Metadata
    from cssformer.training.recipe import Recipe
    from cssformer.training.train import train

__all__ = ["CSSFormer", "Metadata", "Predictor", "Recipe", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the heavy parts only when they are first asked for."""
    homes = {
        "CSSFormer": "cssformer.model",
        "Metadata": "cssformer.model",
        "Predictor": "cssformer.inference",
        "Recipe": "cssformer.training.recipe",
        "train": "cssformer.training.train",
    }
    if name in homes:
        return getattr(import_module(homes[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
