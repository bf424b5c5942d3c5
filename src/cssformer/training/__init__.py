"""Training: the recipe, the steps, the run folder. Nothing heavy is imported here."""
