"""Faster inference on CPUs; nothing in ``model``, ``ops`` and ``weights`` knows it."""

from cssformer.accelerate.swaps import accelerate_cpu

__all__ = ["accelerate_cpu"]
