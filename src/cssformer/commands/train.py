"""The command ``cssformer train``, and what it tells without training."""

import json
import os
import shlex
import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from cssformer.commands.command import LOADING, Command, write_json
from cssformer.commands.evaluate import show_scores
from cssformer.training.recipe import Recipe
from cssformer.utils.console import show
from cssformer.utils.errors import UserError
from cssformer.utils.options import ConfigFile
from cssformer.weights.family import FAMILY
from cssformer.weights.run_files import RECIPE, SCORES


def _add_train(parser: ArgumentParser) -> None:
    parser.add_argument("--resume", type=bool, default=False, help="Continue the run in --output, by its recipe.")
    parser.add_argument(
        "--find_lr",
        type=bool,
        default=False,
        help="Try rising learning rates for a hundred steps, and tell which to take.",
    )
    parser.add_argument(
        "--suggest", type=bool, default=False, help="Only read --data and tell which recipe to take, why, its cost."
    )
    parser.add_argument(
        "--config",
        action=ConfigFile,
        help="binary, cpu, demo, few_pictures, large_pictures, photos, rare_classes, vit or a YAML file; nano, "
        "small and base are the decoder's size alone; later recipes win, and options over them all.",
    )
    parser.add_class_arguments(Recipe)


def _presets(options: Namespace) -> list[str]:
    if options.resume:
        # Whatever is given besides may repeat what the run was begun with.
        own = Path(options.output) / RECIPE
        return ["--config", str(own), f"--output={options.output}"] if own.is_file() else []
    # A size is of the network alone.
    named = set(options.config or ())
    sizes = named & set(FAMILY)
    if named - sizes or options.suggest or (options.data is None and options.model.init is None):
        return []
    from cssformer.training.presets import preset_words

    return preset_words(None if options.data is None else Path(options.data), options.model.init, sizes)


def _train(options: Namespace) -> int:
    from cssformer.utils.stop import Interrupted, Stop, signals_later

    recipe = Recipe.from_options(options)
    # Where the user's own augment.custom lies, as with `python -m`.
    sys.path.append(os.getcwd())
    if options.find_lr:
        return _find_lr(recipe, options)
    if options.suggest:
        return _suggest(options)
    try:
        with Stop().listening():
            # An import that is interrupted may leave half a library.
            with signals_later():
                from cssformer.training.train import train
            evaluation = train(recipe, options.resume)
    except Interrupted as interrupted:
        done = f" after {interrupted.step} of {recipe.training.steps} steps" if interrupted.step else ""
        from cssformer.training.run_folder import LAST

        begun = (Path(recipe.output) / LAST).exists()
        again = f"cssformer train --output {shlex.quote(recipe.output)} --resume"
        print(f"Stopped{done}; {f'continue with: {again}' if begun else 'nothing is kept yet.'}", file=sys.stderr)
        return interrupted.code
    if evaluation is None:
        scores = Path(recipe.output) / SCORES
        if options.resume and scores.is_file():
            write_json(options, json.loads(scores.read_text(encoding="utf-8")))
        return 0
    show_scores(evaluation)
    print(f"Run folder: {recipe.output} (model/, pictures.png, worst.png, metrics.csv, scores.json, classes.csv, ...)")
    write_json(options, evaluation.as_dict())
    return 0


def _find_lr(recipe: Recipe, options: Namespace) -> int:
    from cssformer.training.find_lr import find_lr

    found = find_lr(recipe)
    show(found.table())
    print(f"--training.lr {found.suggested:g} is suggested, a tenth of the rate at which the loss is least.")
    write_json(options, found.as_dict())
    return 0


def _suggest(options: Namespace) -> int:
    if options.data is None:
        raise UserError("--suggest looks at a prepared data folder; give --data DIR.")
    if options.config:
        raise UserError("--suggest chooses a recipe by the data; leave out --config.")
    from cssformer.training.suggest import suggest

    found = suggest(Path(options.data))
    print(*found.sentences(), sep="\n")
    write_json(options, found.as_dict())
    return 0


TRAIN = Command("Train a network and score it.", _add_train, _train, _presets, begins=LOADING)
