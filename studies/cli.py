"""The options of ``cssformer study``, and what they do."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from cssformer.training.recipe import Recipe
from cssformer.utils.console import show
from cssformer.utils.options import ConfigFile, Natural, Points, Workers
from studies.variants import DECODERS, MODULES, POINTS, Kind, choose, grid_variants, points_variants

REFERENCES = {
    "modules": "the baseline",
    "points": "16 points",
    "decoders": "the best of the peers with the most seeds",
    "grid": "the first",
}


def add_arguments(parser: ArgumentParser, kind: Kind) -> None:
    """The options of a study."""
    parser.add_argument(
        "--seeds",
        type=list[Natural] | None,
        help="Every variant is trained with each; by default with the recipe's seed and the two that follow it.",
    )
    if kind == "grid":
        parser.add_argument(
            "--vary",
            type=str,
            nargs="+",
            required=True,
            help="Keys of the recipe with their values, as training.lr=1e-3,3e-4 model.points=4,16; each with each.",
        )
    elif kind == "points":
        papers = " ".join(map(str, POINTS))
        parser.add_argument(
            "--points", type=list[Points] | None, help=f"What is compared; by default the paper's {papers}."
        )
    else:
        parser.add_argument("--variants", type=str, nargs="+", help="Only these rows of the table; all by default.")
    parser.add_argument(
        "--parallel", type=Workers, default=1, help="Runs at one time, which share the cores; 0 trains nothing more."
    )
    parser.add_argument(
        "--reference", type=str | None, help=f"Differences are taken to this variant, by default {REFERENCES[kind]}."
    )
    parser.add_argument("--config", action=ConfigFile, help="A YAML recipe; options on the command line win over it.")
    parser.add_class_arguments(Recipe)
    parser.set_defaults(output=f"runs/{kind}")


def run(options: Namespace, kind: Kind) -> dict[str, Any]:
    """Do the study, print its table; its results for JSON."""
    from studies.study import study

    recipe = Recipe.from_options(options)
    if kind == "grid":
        variants = grid_variants(options.vary)
    elif kind == "points":
        variants = points_variants(options.points or POINTS)
    else:
        variants = choose(MODULES if kind == "modules" else DECODERS, options.variants)
    seeds = options.seeds or [recipe.seed, recipe.seed + 1, recipe.seed + 2]
    results = study(kind, variants, recipe, seeds, parallel=options.parallel, reference=options.reference)
    show(results.summary())
    names = (f"{kind}{end}" for end in (".md", ".csv", ".png", "_pictures.png"))
    left = ", ".join(name for name in names if (Path(options.output) / name).exists())
    print(f"Study folder: {options.output} ({left})")
    return results.as_dict()
