"""The page of a network on the Hugging Face hub: what it is for, what it learnt from, and how well it does."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from cssformer.utils.console import percentage
from cssformer.utils.errors import UserError
from cssformer.weights.run_files import RECIPE, SCORES

if TYPE_CHECKING:
    from cssformer.model.cssformer import SegmentationNetwork

PAPER = "https://doi.org/10.3233/JIFS-220976"


def model_card(
    model: "SegmentationNetwork",
    name: str,
    run: str | Path | None = None,
    licence: str | None = None,
    data_licence: str | None = None,
) -> ModelCard:
    """The card of a network.

    Args:
        model: with its metadata.
        name: the model id.
        run: the folder of the training, whose recipe and scores the card tells.
        licence: of the weights, as the hub abbreviates it. By default that of the weights that the backbone began with;
            without those none is stated, because it is the author's to choose.
        data_licence: of pictures and labels of the training, in words.

    Raises:
        UserError: the run cannot be read.
    """
    recipe = _read(run, RECIPE) if run is not None else None
    scores = _read(run, SCORES) if run is not None and (Path(run) / SCORES).exists() else None
    began = model.metadata.backbone_licence
    stated = licence or began
    if licence is None and began not in (None, "apache-2.0"):
        stated = "other"
    data = ModelCardData(
        license=stated,
        license_name=began if stated == "other" else None,
        library_name="cssformer",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation"],
    )
    classes = model.metadata.classes
    parts = [
        f"# {name.rpartition('/')[2]}",
        f"Labels every pixel of a picture with one of {model.num_classes} classes"
        + (f": {', '.join(classes)}." if classes else "."),
        f"```python\nfrom cssformer import Predictor\n\npredictor = Predictor.from_pretrained({name!r})\n"
        'predictor("photo.jpg").overlay()\n```',
        "## Scores\n\n" + (_scores(scores) if scores else "Not measured, or not told."),
        "## Data\n\n" + _data(recipe, scores),
        "## Recipe\n\n" + (f"```yaml\n{yaml.safe_dump(recipe, sort_keys=False)}```" if recipe else "Not told."),
        "## Intended use\n\nPictures like those it learnt from: the same subjects, cameras and sizes. How it does on "
        "others is not known; score it on some of yours with `cssformer evaluate` before you rely on it. It knows no "
        "class but those above, and gives each pixel one of them.",
        "## Licences\n\n"
        f"- Weights: {licence or began or 'not stated'}.\n"
        f"- Weights that the backbone began with: {began or 'none; it began with random numbers'}.\n"
        f"- Data of the training: {data_licence or 'not stated'}.",
        f"The network is {type(model).__name__} on `{model.hparams['backbone']}` ([paper]({PAPER})).",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _read(run: str | Path, name: str) -> dict[str, Any]:
    path = Path(run) / name
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text) if name == RECIPE else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read; give the folder of a training as the run.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no table; give the folder of a training as the run.")
    # Folders are of one's own machine: their names tell enough, and strangers need not know the rest.
    found.pop("output", None)
    # A model.init that is no such path is a hub id.
    for table, key in ((found, "data"), (found.get("model") or {}, "weights"), (found.get("model") or {}, "init")):
        if isinstance(table.get(key), str) and (key != "init" or Path(table[key]).is_absolute()):
            table[key] = Path(table[key]).name
    return found


def _scores(scores: dict[str, Any]) -> str:
    low, high = map(_share, scores["miou_interval"])
    heading = (
        f"**{_share(scores['miou'])} mIoU** (95 %: {low} to {high}) on {scores['pictures']} pictures. "
        "The interval is a bootstrap over pictures: it tells what other pictures might give, not what another training "
        "might."
    )
    rows = [
        f"| {name} | {_share(found['iou'])} | {_share(found['boundary_iou'])} |"
        for name, found in scores["classes"].items()
    ]
    return "\n".join([heading, "", "| class | IoU | Boundary IoU |", "|---|---|---|", *rows])


def _share(value: float | None) -> str:
    return "none" if value is None else percentage(value)


def _data(recipe: dict[str, Any] | None, scores: dict[str, Any] | None) -> str:
    if recipe is None:
        return "Not told."
    name = recipe.get("data")
    words = f"The folder `{name}` of the author." if name else "Pictures that `cssformer` generates by itself."
    return words + (f" Scored on {scores['pictures']} of them that were not trained on." if scores else "")
