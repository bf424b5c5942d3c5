"""Faster inference on CPUs; the package works without this folder."""
