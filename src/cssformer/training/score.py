"""What a run or a model is scored on."""

from pathlib import Path
from typing import Any

from cssformer.data import SegmentationFolder
from cssformer.inference import Predictor
from cssformer.training.datasets import Dataset, datasets
from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError
from cssformer.weights.run_files import RECIPE


def open_model(
    model: str, folder: Path | None, split: str, device: str, **views: Any
) -> tuple[Predictor, Dataset, Path | None]:
    """The predictor of a model, the split that it is scored on, and the folder of these data if they have one.

    Raises:
        UserError: the model or its data are missing.
    """
    saved = Path(model) / RECIPE
    recipe = Recipe.load(saved) if saved.is_file() else Recipe()
    predictor = Predictor.from_pretrained(model, device, **views)
    folder = folder or (Path(recipe.data) if recipe.data else None)
    if folder is not None:
        return predictor, SegmentationFolder(folder, split), folder
    if not saved.is_file():
        raise UserError(f"{model} is no run folder, so its data is not known; give --data DIR.")
    if split != "val":
        raise UserError(f"Generated scenes have no split {split!r} to score; take val.")
    return predictor, datasets(recipe)[1], None


def about(scored: str | Path, data: str | Path | None, split: str = "val") -> dict[str, str]:
    """What a score is of: the model and the data."""
    return {"model": str(scored), "data": str(data or "generated scenes"), "split": split}
