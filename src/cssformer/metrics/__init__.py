"""From label maps to the figures of the field: confusion matrix, IoU, Boundary IoU, reports."""

from cssformer.metrics.compare import Comparison
from cssformer.metrics.confusion import ConfusionMatrix, Scores
from cssformer.metrics.evaluate import evaluate, evaluate_predictions, submit
from cssformer.metrics.label_files import LabelSet, open_truth
from cssformer.metrics.metric import BoundaryIoU, MeanIoU
from cssformer.metrics.predictions import Predictions, Submission
from cssformer.metrics.report import contact_sheet, write_report
from cssformer.metrics.scoring import Evaluation, Scorer

__all__ = [
    "BoundaryIoU",
    "Comparison",
    "ConfusionMatrix",
    "Evaluation",
    "LabelSet",
    "MeanIoU",
    "Predictions",
    "Scorer",
    "Scores",
    "Submission",
    "contact_sheet",
    "evaluate",
    "evaluate_predictions",
    "open_truth",
    "submit",
    "write_report",
]
