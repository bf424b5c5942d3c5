"""What the networks of a study cost, measured side by side in one process."""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from cssformer.metrics.profile import TITLES, multiply_adds
from cssformer.model import CSSFormer, SegmentationNetwork
from cssformer.utils.atomic import atomic_json
from cssformer.utils.device import best_device, device_name, synchronize
from cssformer.weights.run_files import SCORES
from studies.baselines.networks import BaselineNetwork
from studies.grid import Run

ROUNDS, WARM_UP = 15, 2


@dataclass(frozen=True)
class Cost:
    """Of one network on one picture of the crop's size, without the auxiliary head.

    Attributes:
        parameters: of the whole network.
        decoder_multiply_adds: of all but the backbone.
        multiply_adds: of the whole network.
        milliseconds: median time, up-sampling to the picture included.
        ratio: median over the rounds of its time to that of the first network in the same round.
    """

    parameters: int
    decoder_multiply_adds: int
    multiply_adds: int
    milliseconds: float
    ratio: float


def load(run: Run) -> SegmentationNetwork:
    """The trained network of a finished run."""
    return (BaselineNetwork if run.variant.peer else CSSFormer).from_pretrained(run.folder)


def measured(runs: Sequence[Run], path: Path, console: Console) -> dict[str, Cost]:
    """The cost of each run's network, by the variant's name.

    Kept in ``path``; measured anew for other runs, newer ones, another device or another number of threads.

    Args:
        runs: finished ones, one for each variant, the network that others are compared with first.
        path: a JSON file.
        console: where a word of progress goes.
    """
    of = {
        "runs": [run.name for run in runs],
        "device": device_name(best_device()),
        "threads": torch.get_num_threads(),
    }
    if path.exists() and all((run.folder / SCORES).stat().st_mtime <= path.stat().st_mtime for run in runs):
        kept = json.loads(path.read_text(encoding="utf-8"))
        costs = kept.pop("costs", None)
        if kept == of:
            return {name: Cost(**cost) for name, cost in costs.items()}
    console.print(f"Measuring {len(runs)} networks, in turns.")
    costs = measure({run.variant.name: load(run) for run in runs}, runs[0].recipe.augment.crop)
    atomic_json(path, {**of, "costs": {name: asdict(cost) for name, cost in costs.items()}})
    return costs


def measure(models: dict[str, SegmentationNetwork], size: tuple[int, int]) -> dict[str, Cost]:
    """Count and time networks on one picture of the size; in turns, so that whatever else the machine does meets all.

    Args:
        models: by name; the first one is what ``ratio`` compares with.
        size: height and width in pixels.
    """
    device = best_device()
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    counts = {name: multiply_adds(model, size) for name, model in models.items()}
    for model in models.values():
        model.to(device).eval()
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(WARM_UP + ROUNDS):
            for name, model in models.items():
                synchronize(device)
                begin = time.perf_counter()
                model(images)
                synchronize(device)
                seconds[name].append(time.perf_counter() - begin)
    first = next(iter(seconds.values()))[WARM_UP:]
    costs = {}
    for name, model in models.items():
        taken = seconds[name][WARM_UP:]
        products = sum(counts[name][part] for part in TITLES)
        costs[name] = Cost(
            parameters=sum(
                parameter.numel() for key, parameter in model.named_parameters() if not key.startswith("aux_head.")
            ),
            decoder_multiply_adds=products - counts[name]["backbone"],
            multiply_adds=products,
            milliseconds=1e3 * statistics.median(taken),
            ratio=statistics.median(own / other for own, other in zip(taken, first, strict=True)),
        )
    return costs
