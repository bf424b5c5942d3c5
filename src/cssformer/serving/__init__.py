"""A trained network at work: on a picture in Python, on files and folders from the command line."""

from cssformer.serving.explain import Explanation, Look, explain
from cssformer.serving.files import predict_files
from cssformer.serving.predictor import Prediction, Predictor

__all__ = ["Explanation", "Look", "Prediction", "Predictor", "explain", "predict_files"]
