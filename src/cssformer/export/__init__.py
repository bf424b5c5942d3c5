"""A trained network as a file that other runtimes read, each proved to compute what the network computes."""

import os

# Before ONNX Runtime is imported, which from 1.32 on tells its maker of its use, also on Linux.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from cssformer.export.export import export_model
from cssformer.export.runtime import ExportedNetwork

__all__ = ["ExportedNetwork", "export_model"]
