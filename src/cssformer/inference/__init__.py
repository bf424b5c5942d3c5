"""A trained network at work: on a picture in Python, on files and folders from the command line."""

from cssformer.inference.explain import Explanation, SamplingMap, explain
from cssformer.inference.files import predict_files
from cssformer.inference.labels import Segmentation
from cssformer.inference.prediction import Prediction
from cssformer.inference.predictor import Predictor
from cssformer.inference.views import predict

__all__ = [
    "Explanation",
    "Prediction",
    "Predictor",
    "SamplingMap",
    "Segmentation",
    "explain",
    "predict",
    "predict_files",
]
