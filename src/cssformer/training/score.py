"""Score a run or a model on the data they are for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cssformer.data import SegmentationFolder
from cssformer.inference import Predictor
from cssformer.metrics import Evaluation, evaluate, submit
from cssformer.metrics.scoring import groups_of
from cssformer.training.datasets import Dataset, datasets
from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError
from cssformer.weights.run_files import RECIPE


def score_model(
    model: str,
    folder: Path | None,
    split: str,
    *,
    submission: Path | None = None,
    scored: bool = False,
    dilation_ratio: float,
    regions: bool = False,
    group_by: str | None = None,
    device: str,
    **views: Any,
) -> tuple[Evaluation, Dataset] | int:
    """Score a trained network on a split of prepared data, or of the data that its run was trained on.

    Args:
        model: a run or model folder, a bundled model or a Hugging Face model id.
        folder: the prepared data; by default the run's own.
        split: of the data.
        submission: also write the predictions into this folder.
        scored: refuse a split without labels.
        dilation_ratio: width of Boundary IoU's bands as a share of the picture's diagonal.
        regions: also count the regions of each size, see :class:`cssformer.metrics.Scorer`.
        group_by: of :func:`cssformer.metrics.scoring.groups_of`.
        device, views: of :class:`cssformer.inference.Predictor`.

    Returns:
        The evaluation and its data, or how many files of a submission were written where there are no labels.

    Raises:
        UserError: the model or its data are missing, do not belong together, or make no such groups.
    """
    predictor, data, folder = open_model(model, folder, split, device, **views)
    if submission is not None and isinstance(data, SegmentationFolder) and data.labels is None:
        if scored:
            raise UserError(f"The split {split} has no labels, so there are no scores for --output.")
        return submit(predictor, data, submission)
    groups = groups_of(data.names, group_by)
    evaluation = evaluate(predictor, data, dilation_ratio=dilation_ratio, regions=regions, submission=submission)
    return replace(evaluation, about=about(model, folder, split), groups=groups), data


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
