"""Scores and inference: from a trained network to label maps, and from label maps to the figures of the field."""

from cssformer.evaluation.confusion import ConfusionMatrix, Scores
from cssformer.evaluation.evaluate import evaluate, evaluate_predictions, submit
from cssformer.evaluation.inference import predict
from cssformer.evaluation.predictions import PredictionFolder, Submission
from cssformer.evaluation.report import contact_sheet, write_report
from cssformer.evaluation.scoring import Evaluation, Scorer
from cssformer.evaluation.upsampling import Segmentation, segment_coarse

__all__ = [
    "ConfusionMatrix",
    "Evaluation",
    "PredictionFolder",
    "Scorer",
    "Scores",
    "Segmentation",
    "Submission",
    "contact_sheet",
    "evaluate",
    "evaluate_predictions",
    "predict",
    "segment_coarse",
    "submit",
    "write_report",
]
