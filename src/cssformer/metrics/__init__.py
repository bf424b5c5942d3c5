"""From label maps to the figures of the field: confusion matrix, IoU, Boundary IoU, reports."""

from cssformer.metrics.confusion import ConfusionMatrix, Scores
from cssformer.metrics.evaluate import evaluate, evaluate_predictions, submit
from cssformer.metrics.predictions import PredictionFolder, Submission
from cssformer.metrics.report import contact_sheet, write_report
from cssformer.metrics.scoring import Evaluation, Scorer

__all__ = [
    "ConfusionMatrix",
    "Evaluation",
    "PredictionFolder",
    "Scorer",
    "Scores",
    "Submission",
    "contact_sheet",
    "evaluate",
    "evaluate_predictions",
    "submit",
    "write_report",
]
