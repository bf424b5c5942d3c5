"""The command ``cssformer profile``."""

from argparse import SUPPRESS
from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from cssformer.commands.command import Command, write_json
from cssformer.training.recipe import Recipe
from cssformer.utils.console import show
from cssformer.utils.errors import UserError
from cssformer.utils.options import Batch, ConfigFile, Side, add_device
from cssformer.weights.family import decoder_of
from cssformer.weights.run_files import RECIPE

PAPERS = {
    "backbone": "swin_tiny_patch4_window7_224",
    **{name: value for name, value in decoder_of("base").items() if name in ("channels", "heads", "points")},
}
"""The paper's network, where neither a config nor an option says otherwise."""

OTHERS = {field.name for field in fields(Recipe)} - {"model"}
"""What else a recipe holds."""


def _add_profile(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path | None, nargs="?", help="A run folder, whose recipe's network is taken.")
    parser.add_argument("--size", type=list[Side], default=[480], help="The picture's height and width in pixels.")
    parser.add_argument("--classes", type=Batch, default=150, help="How many classes are told apart.")
    add_device(parser, "cpu")
    parser.add_argument("--config", action=ConfigFile, help="A YAML recipe; by default the network is the paper's.")
    parser.add_class_arguments(Recipe)
    for action in parser._actions:
        # A config is a whole recipe, of which the network alone is looked at.
        if action.dest.partition(".")[0] in OTHERS:
            action.help = SUPPRESS
    parser.set_defaults({f"model.{name}": None for name in PAPERS})


def _own_recipe(options: Namespace) -> list[str]:
    if options.run is None:
        return []
    if not (options.run / RECIPE).is_file():
        raise UserError(f"{options.run} is no run folder, it holds no {RECIPE}; give one, or --config FILE.")
    return ["--config", str(options.run / RECIPE)]


def _profile(options: Namespace) -> int:
    from cssformer.metrics.profile import profile

    if len(options.size) > 2:
        raise UserError("--size takes a height and a width.")
    for name, value in PAPERS.items():
        if getattr(options.model, name) is None:
            setattr(options.model, name, getattr(Recipe().model, name) if options.config else value)
    model = Recipe.from_options(options).model.untrained().build(options.classes)
    found = profile(model, options.size[0], options.size[-1], options.device)
    for table in found.tables():
        show(table)
        print()
    write_json(options, found.as_dict())
    return 0


PROFILE = Command("Count and time each part of a network.", _add_profile, _profile, _own_recipe)
