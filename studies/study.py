"""A whole study: its runs, then its tables and pictures."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cssformer.training.assemble import build_model
from cssformer.training.best import require_score
from cssformer.training.datasets import datasets
from cssformer.training.recipe import Recipe
from cssformer.utils.console import plain_console
from cssformer.utils.device import best_device, device_name
from cssformer.utils.errors import UserError
from studies.baselines.networks import build_baseline
from studies.grid import Run, execute, plan
from studies.measure import load, measured
from studies.pictures import write_sheet
from studies.plots import plot
from studies.results import Results, outcome
from studies.variants import BASELINE, Kind, Variant, choose


def study(
    kind: Kind,
    variants: Sequence[Variant],
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    parallel: int = 1,
    reference: str | None = None,
    console: Console | None = None,
) -> Results:
    """Run a study to its end, from wherever it stands.

    The folder ``recipe.output`` then holds the runs, in ``VARIANT/SEED``, and the study's CSV, Markdown table, plot and
    sheet of pictures. Studies of one recipe may share a folder: what one has trained the other takes.

    Args:
        kind: names the files.
        variants: what is compared.
        recipe: of every run, but for what the study varies.
        seeds: each variant is trained with each.
        parallel: runs at one time; 0 trains nothing and tells of what is finished.
        reference: see :class:`studies.results.Results`.
        console: where progress goes; the terminal by default.

    Raises:
        UserError: the recipe, a variant or a name asks for what cannot be; runs failed (what the others found is
            written all the same); nothing is finished; or a package is missing.
        Interrupted: someone asked to stop; the same call goes on.
    """
    console = console or plain_console()
    if reference is not None:
        choose(variants, [reference])
    runs = plan(recipe, variants, seeds)
    failure = None
    if parallel:
        _require_buildable(runs)
        try:
            execute(runs, parallel, console)
        except UserError as error:
            failure = error
    finished = [run for run in runs if run.finished]
    if not finished:
        raise failure or UserError(f"No run of this study is finished in {recipe.output}.")
    if failure and reference not in [run.variant.name for run in finished]:
        # What failed is to be told, not that it cannot be compared with.
        reference = None
    results = _report(kind, variants, finished, Path(recipe.output), reference, console)
    if failure:
        raise failure
    return results


def _require_buildable(runs: Sequence[Run]) -> None:
    """Build each network once, before hours of training, but for weights that would be downloaded.

    Raises:
        UserError: a network cannot be built, data are missing, or the variants' data have different classes.
    """
    built: list[tuple[str | None, Any]] = []
    classes = None
    for run in runs:
        recipe = run.recipe
        train_data, _ = datasets(recipe)
        if train_data.info.classes != (classes := classes or train_data.info.classes):
            raise UserError(f"A study compares networks of the same classes; those of {recipe.data} are others.")
        require_score(recipe.training.best, train_data.info)
        if run.finished or (run.variant.peer, recipe.model) in built:
            continue
        built.append((run.variant.peer, recipe.model))
        local = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, pretrained=False))
        if run.variant.peer:
            build_baseline(run.variant.peer, local, train_data)
        else:
            build_model(local, train_data)


def _report(
    kind: Kind,
    variants: Sequence[Variant],
    runs: Sequence[Run],
    folder: Path,
    reference: str | None,
    console: Console,
) -> Results:
    """Write table, plot and sheet of finished runs, in the order of the variants."""
    first = {run.variant: run for run in reversed(runs)}
    variants = [variant for variant in variants if variant in first]
    order = sorted(variants, key=lambda variant: variant != BASELINE)
    kept = folder / f"{kind}_costs.json"
    costs = measured([first[variant] for variant in order], kept, console)
    ordered = sorted(runs, key=lambda run: (variants.index(run.variant), run.recipe.seed))
    results = Results(kind, [outcome(run) for run in ordered], costs, reference)
    results.write_csv(folder / f"{kind}.csv")

    recipes = [run.recipe for run in ordered]
    crops = ("{1}×{0}".format(*recipe.augment.crop) for recipe in recipes)
    results.write_markdown(
        folder / f"{kind}.md",
        "Scores in percent, mean ± standard deviation over the seeds; "
        f"{_all(recipe.training.steps for recipe in recipes)} steps of "
        f"{_all(recipe.training.batch_size for recipe in recipes)} crops of {_all(crops)}, "
        f"{_all(recipe.model.backbone for recipe in recipes)}. Differences are paired by seed, the interval is that of "
        "the paired t-test. Costs on one picture of the crop's size without the auxiliary head; "
        f"1 GFLOP = 10⁹ multiply-adds; latency on {device_name(best_device())}, {torch.get_num_threads()} threads, all "
        f"networks in turns in one process; its ratio, to {order[0].title}, is the median over the rounds. Training "
        "time without validation.",
    )
    plot(results, folder / f"{kind}.png")
    sheet = folder / f"{kind}_pictures.png"
    if len(variants) == 1:
        # It would show other networks than the table.
        sheet.unlink(missing_ok=True)
    # Costs are measured anew whenever there are other networks.
    elif not (sheet.exists() and sheet.stat().st_mtime >= kept.stat().st_mtime):
        console.print("Looking for the pictures on which the networks disagree most.")
        models = {variant.title: load(first[variant]) for variant in variants}
        validation = datasets(first[variants[0]].recipe)[1]
        write_sheet(models, validation, validation.info, sheet, console)
    return results


def _all(values: Iterable[Any]) -> str:
    return " or ".join(dict.fromkeys(map(str, values)))
