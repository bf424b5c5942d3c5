"""The options of ``cssformer study``, and what they do."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from cssformer.training.recipe import Recipe
from cssformer.utils.console import show
from cssformer.utils.options import ConfigFile, Natural, Points, Workers
from studies.variants import POINTS, Kind


def add_arguments(parser: ArgumentParser, kind: Kind) -> None:
    """The options of a study."""
    parser.add_argument(
        "--seeds",
        type=list[Natural] | None,
        help="Every variant is trained with each; by default with the recipe's seed and the two that follow it.",
    )
    if kind == "points":
        papers = " ".join(map(str, POINTS))
        parser.add_argument(
            "--points", type=list[Points] | None, help=f"What is compared; by default the paper's {papers}."
        )
    else:
        parser.add_argument("--variants", type=str, nargs="+", help="Only these rows of the table; all by default.")
    parser.add_argument(
        "--parallel", type=Workers, default=1, help="Runs at one time, which share the cores; 0 trains nothing more."
    )
    compared = {
        "modules": "the baseline",
        "points": "16 points",
        "decoders": "the best of the peers with the most seeds",
    }
    parser.add_argument(
        "--reference", type=str | None, help=f"Differences are taken to this variant, by default {compared[kind]}."
    )
    parser.add_argument("--config", action=ConfigFile, help="A YAML recipe; options on the command line win over it.")
    parser.add_class_arguments(Recipe)
    parser.set_defaults(output=f"runs/{kind}")


def run(options: Namespace, kind: Kind) -> dict[str, Any]:
    """Do the study, print its table; its results for JSON."""
    from studies.study import study

    recipe = Recipe.from_options(options)
    results = study(
        kind,
        recipe,
        options.seeds or [recipe.seed, recipe.seed + 1, recipe.seed + 2],
        names=options.get("variants"),
        points=options.get("points"),
        parallel=options.parallel,
        reference=options.reference,
    )
    heading, *rows = results.summary()
    show(rows, heading)
    names = (f"{kind}{end}" for end in (".md", ".csv", ".png", "_pictures.png"))
    left = ", ".join(name for name in names if (Path(options.output) / name).exists())
    print(f"Study folder: {options.output} ({left})")
    return results.as_dict()
