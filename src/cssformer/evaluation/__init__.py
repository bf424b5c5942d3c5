"""Scores and inference: from a trained network to label maps, and from label maps to the figures of the field."""

from cssformer.evaluation.confusion import ConfusionMatrix, Scores, confusion
from cssformer.evaluation.inference import predict
from cssformer.evaluation.upsampling import Segmentation, labels_from_coarse

__all__ = ["ConfusionMatrix", "Scores", "Segmentation", "confusion", "labels_from_coarse", "predict"]
