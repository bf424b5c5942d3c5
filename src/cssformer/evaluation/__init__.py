"""Scores and inference: from a trained network to label maps, and from label maps to the figures of the field."""

from cssformer.evaluation.confusion import ConfusionMatrix, Scores, confusion

__all__ = ["ConfusionMatrix", "Scores", "confusion"]
