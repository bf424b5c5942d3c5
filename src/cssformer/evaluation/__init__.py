"""Scores and inference: from a trained network to label maps, and from label maps to the figures of the field."""

from cssformer.evaluation.confusion import ConfusionMatrix, Scores
from cssformer.evaluation.evaluate import Evaluation, Scorer, evaluate
from cssformer.evaluation.inference import predict
from cssformer.evaluation.report import contact_sheet, write_report
from cssformer.evaluation.upsampling import Segmentation, segment_coarse

__all__ = [
    "ConfusionMatrix",
    "Evaluation",
    "Scorer",
    "Scores",
    "Segmentation",
    "contact_sheet",
    "evaluate",
    "predict",
    "segment_coarse",
    "write_report",
]
