"""The study's picture: mIoU against latency, or against the number that the study varies."""

from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from cssformer.utils.atomic import atomic_write
from studies.results import Results
from studies.variants import WHOLE


def plot(results: Results, path: Path) -> None:
    """Write :func:`draw`'s figure."""
    with atomic_write(path) as temporary:
        draw(results).savefig(temporary, dpi=150)


def draw(results: Results) -> Figure:
    """Mean mIoU with its standard deviation over the seeds, each seed as a faint dot.

    Over the number that makes the variants, as in the study of points, if it is a single one; else over the median
    latency.
    """
    varied = _varied(results)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    places = []
    for index, variant in enumerate(results.variants):
        place = variant.changes[varied] if varied else results.costs[variant.name].milliseconds
        colour = "tab:blue" if varied else colormaps["tab20"](2 * index % 20 + index // 10 % 2)
        mean, deviation = 100 * results.mean(variant), 100 * results.deviation(variant)
        marker = "*" if variant == WHOLE else "o"
        axes.errorbar(place, mean, deviation, fmt=marker, ms=9, color=colour, capsize=3, label=variant.title)
        scores = [100 * outcome.miou for outcome in results.of(variant)]
        axes.scatter([place] * len(scores), scores, s=10, color=colour, alpha=0.4)
        places.append(place)
    if varied:
        means = [100 * results.mean(variant) for variant in results.variants]
        axes.plot(*zip(*sorted(zip(places, means, strict=True)), strict=True), color="tab:blue")
        if min(places) > 0:
            axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
        axes.set_xlabel("points per head and scale" if results.kind == "points" else varied)
    else:
        axes.set_xlabel("latency (ms a picture)")
        figure.legend(loc="outside right upper")
    axes.set_ylabel("mIoU (%)")
    axes.grid(alpha=0.3)
    return figure


def _varied(results: Results) -> str | None:
    """The one key of the recipe in which the variants differ, if its values are numbers."""
    changes = [variant.changes for variant in results.variants]
    keys = {key for each in changes for key in each if any(other.get(key) != each[key] for other in changes)}
    numbers = all(type(each.get(key)) in (int, float) for each in changes for key in keys)
    return keys.pop() if len(keys) == 1 and numbers else None
