"""What a run folder holds that others look for: its recipe, its scores, its model and its checkpoints."""

RECIPE, SCORES = "recipe.yaml", "scores.json"
RUN_MODEL, RUN_CHECKPOINTS = "model", "checkpoints"
"""Folders. A run folder may be given wherever a model folder is asked for."""
