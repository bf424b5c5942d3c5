"""The study's picture: mIoU against latency, or against the number of points."""

from pathlib import Path

from cssformer.utils.atomic import atomic_write
from studies.results import Results
from studies.variants import WHOLE


def plot(results: Results, path: Path) -> None:
    """Mean mIoU with its standard deviation over the seeds, each seed as a faint dot.

    Over the points per scale in that study, else over the median latency.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = results.kind == "points"
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    places = []
    for index, variant in enumerate(results.variants):
        place = variant.changes["points"] if points else results.costs[variant.name].milliseconds
        colour = "tab:blue" if points else pyplot.get_cmap("tab20")(2 * index % 20 + index // 10 % 2)
        mean, deviation = 100 * results.mean(variant), 100 * results.deviation(variant)
        marker = "*" if variant == WHOLE else "o"
        axes.errorbar(place, mean, deviation, fmt=marker, ms=9, color=colour, capsize=3, label=variant.title)
        scores = [100 * outcome.miou for outcome in results.of(variant)]
        axes.scatter([place] * len(scores), scores, s=10, color=colour, alpha=0.4)
        places.append(place)
    if points:
        axes.plot(places, [100 * results.mean(variant) for variant in results.variants], color="tab:blue")
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [str(place) for place in places])
        axes.set_xlabel("points per head and scale")
    else:
        axes.set_xlabel("latency (ms a picture)")
        figure.legend(loc="outside right upper")
    axes.set_ylabel("mIoU (%)")
    axes.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
    pyplot.close(figure)
