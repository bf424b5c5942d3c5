"""A trained network as a file that other runtimes read, each proved to compute what the network computes."""

from cssformer.export.export import export_model
from cssformer.export.runtime import ExportedNetwork

__all__ = ["ExportedNetwork", "export_model"]
