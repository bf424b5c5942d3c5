"""What the files of a run folder are called that tell of its training and its score."""

RECIPE, SCORES = "recipe.yaml", "scores.json"
