"""The data that a recipe names."""

from cssformer.data import SegmentationFolder, SyntheticScenes
from cssformer.training.recipe import Recipe

Dataset = SyntheticScenes | SegmentationFolder


def datasets(recipe: Recipe) -> tuple[Dataset, Dataset]:
    """The training and the validation split that the recipe names.

    Raises:
        UserError: no such folder.
    """
    if recipe.data is not None:
        return SegmentationFolder(recipe.data, "train"), SegmentationFolder(recipe.data, "val")
    scenes = recipe.scenes
    # Held-out scenes come from another seed.
    return SyntheticScenes(scenes.count, scenes.size, recipe.seed), SyntheticScenes(
        scenes.val_count, scenes.size, 1_000_000 + recipe.seed
    )
