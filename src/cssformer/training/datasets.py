"""The data that a recipe names."""

import hashlib

from cssformer.data import SegmentationFolder, SyntheticScenes
from cssformer.data.stream import Samples
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


def fingerprint(*splits: Samples) -> str:
    """A digest of the classes of prepared folders and of the names and sizes of their files, wherever they lie."""
    hasher = hashlib.sha256()
    for data in splits:
        if isinstance(data, SegmentationFolder):
            hasher.update(repr((data.info.classes, data.info.ignore)).encode())
            for name in data.names:
                files = [data.images[name], *([data.labels[name]] if data.labels else [])]
                hasher.update(repr([(path.name, path.stat().st_size) for path in files]).encode())
    return hasher.hexdigest()
