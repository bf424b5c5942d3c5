"""The proof that an exported file computes what the network computes, at other sizes than the traced one."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cssformer.export.formats import pictures
from cssformer.export.graph import Deployment
from cssformer.export.runtime import Run

SIZES = ((1, 64, 97), (3, 131, 160), (1, 257, 385))
"""Pictures, height and width: none is the traced one."""

DIFFERENCE, EQUAL, EQUAL_ROUNDED, EQUAL_CALIBRATED = 1e-3, 0.999, 0.9, 0.97
"""The most by which values may differ, as a share of the largest; the least share of equal labels, that of a file of
lower precision, whose values may differ by any amount, which is told, and that on the pictures of its calibration."""


def compare(run: Run, deployment: Deployment, calibration: Sequence[Tensor] = ()) -> list[dict[str, Any]]:
    """Run the file and the network on the same pictures; a row for each of ``SIZES``, and one for the calibration.

    Returns:
        "batch", how many pictures; "height" and "width", None for the calibration's; "difference", the largest one
        between two values as a share of the largest value, None where labels alone are returned; "equal", the share of
        the pixels with one label, a mean over the calibration's pictures; "seconds" of the file and "eager_seconds" of
        the network in PyTorch, the best of three or the calibration's sum.
    """
    rows = []
    for batch, height, width in SIZES:
        found = _compared(run, deployment, pictures(deployment, batch, height, width), repeats=3)
        rows.append({"batch": batch, "height": height, "width": width, **found})
    if calibration:
        several = [_compared(run, deployment, images, repeats=1) for images in calibration]
        merge: dict[str, Callable[..., Any]] = {
            "difference": np.max,
            "equal": np.mean,
            "seconds": np.sum,
            "eager_seconds": np.sum,
        }
        columns = {name: [row[name] for row in several] for name in merge}
        merged = {name: None if None in columns[name] else float(how(columns[name])) for name, how in merge.items()}
        rows.append({"batch": len(several), "height": None, "width": None, **merged})
    return rows


def fault(rows: list[dict[str, Any]], rounded: bool) -> str:
    """What is wrong with a file of these rows, in words; empty if it is as the network."""
    for row in rows:
        difference, equal = row["difference"] or 0.0, 1.0 if row["equal"] is None else row["equal"]
        where, least = f"at {row['height']}x{row['width']}", EQUAL_ROUNDED if rounded else EQUAL
        if row["height"] is None:
            where, least = "on the pictures of the calibration", EQUAL_CALIBRATED
        if not (equal >= least and (math.isfinite(difference) if rounded else difference <= DIFFERENCE)):
            return (
                f"{where} its values differ from the network's by {difference:.1e} of the largest, and "
                f"{100 * equal:.2f} % of the labels are equal (at least {100 * least:g} % must be)"
            )
    return ""


def table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The rows as text, the heading first."""
    heading = ("pictures", "largest difference", "equal labels", "seconds", "beside PyTorch")
    return [
        heading,
        *(
            (
                f"{row['batch']} of " + ("calibration" if row["height"] is None else f"{row['height']}x{row['width']}"),
                "-" if row["difference"] is None else f"{row['difference']:.1e}",
                "-" if row["equal"] is None else f"{100 * row['equal']:.3f} %",
                f"{row['seconds']:.3f}",
                f"{row['seconds'] / row['eager_seconds']:.2f} times",
            )
            for row in rows
        ),
    ]


def _compared(run: Run, deployment: Deployment, images: Tensor, repeats: int) -> dict[str, Any]:
    found, seconds = _timed(run, images.numpy(), repeats)
    with torch.inference_mode():
        results, eager_seconds = _timed(deployment, images, repeats)
    multilabel = deployment.network.metadata.multilabel
    named = list(zip(deployment.returns, found, (value.numpy() for value in results), strict=True))
    differences = [_difference(one, other) for name, one, other in named if name != "labels"]
    return {
        "difference": max(differences, default=None),
        "equal": min((_equal(*pair, multilabel) for pair in named if pair[0] != "confidence"), default=None),
        "seconds": seconds,
        "eager_seconds": eager_seconds,
    }


def _timed(compute: Callable[[Any], Any], images: Any, repeats: int) -> tuple[Any, float]:
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        result = compute(images)
        best = min(best, time.perf_counter() - start)
    return result, best


def _difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    if one.shape != other.shape:
        return math.inf
    # Not Python's max and comparisons, which lose NaN.
    return float(np.abs(one - other).max() / np.abs(other).max())


def _equal(name: str, one: NDArray[Any], other: NDArray[Any], multilabel: bool) -> float:
    if one.shape != other.shape:
        return 0.0
    if multilabel:
        one, other = (each > (0.5 if name == "probabilities" else 0) for each in (one, other))
    elif name != "labels":
        one, other = one.argmax(1), other.argmax(1)
    return float((one == other).mean())
