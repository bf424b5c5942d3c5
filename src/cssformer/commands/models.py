"""The command ``cssformer models``, and what commands that take a model say of it."""

import textwrap
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from cssformer.commands.command import Command, write_json
from cssformer.utils.console import percentage, show
from cssformer.utils.errors import UserError
from cssformer.weights.run_files import RUN_CHECKPOINTS, RUN_MODEL, SCORES

MODEL = "A run or model folder, a bundled model (`cssformer models`), or a Hugging Face model id."


def note_unfinished(model: str) -> None:
    """Say that a run folder's model may still get better."""
    run = Path(model)
    if (run / RUN_CHECKPOINTS).is_dir() and (run / RUN_MODEL).is_dir() and not (run / SCORES).exists():
        print(f"{model} has not finished its training; this is its best network so far.")


def _add_models(parser: ArgumentParser) -> None:
    parser.add_argument("--hub", type=bool, default=False, help="Also ask the Hugging Face hub for models of others.")


def _models(options: Namespace) -> int:
    from cssformer.weights.bundled import bundled_models, describe

    found = {name: describe(folder) for name, folder in bundled_models().items()}
    for name, model in found.items():
        low, high = map(percentage, model["miou_interval"])
        print(f"{name}: {textwrap.fill(', '.join(model['classes']), 100, subsequent_indent='    ')}")
        score = f"{percentage(model['miou'])} mIoU (95 %: {low} to {high}) on {model['pictures']} pictures"
        print(f"    {score}; {model['megabytes']} MB; {model['licence']}")
    if not found:
        print("No model is bundled.")
    hub = _on_the_hub() if options.hub else None
    if hub is not None:
        show([(name, f"{downloads} downloads") for name, downloads in hub.items()] or [("The hub has none.",)])
    write_json(options, {"bundled": found, "hub": hub})
    return 0


def _on_the_hub() -> dict[str, int]:
    """Model id -> downloads of the last month, of networks that ``push_to_hub`` wrote."""
    from huggingface_hub import HfApi, constants

    try:
        return {model.id: model.downloads or 0 for model in HfApi().list_models(filter="cssformer")}
    except Exception as error:  # of whatever library the hub's client is built on
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{constants.ENDPOINT} cannot be asked ({reason}); leave out --hub.") from error


MODELS = Command("List the models that come with the package.", _add_models, _models)
