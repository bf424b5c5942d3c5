"""A trained network at work: on a picture in Python, on files and folders from the command line."""

from cssformer.serving.files import predict_files
from cssformer.serving.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor", "predict_files"]
