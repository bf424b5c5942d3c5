"""What scoring costs beside the network: from class scores at stride 4 to a confusion matrix.

    python benchmarks/evaluation.py

For a picture of 2048x1024 pixels: time and additional memory of our up-sampling, argmax and confusion matrix against
the plain way (``F.interpolate``, ``argmax``, ``bincount``), with 19 and 150 classes, for scores as smooth as a network
gives and for noise, the worst case. Each measurement has a process of its own, because memory is read off its peak
(Linux only).
"""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cssformer.evaluation.confusion import confusion
from cssformer.evaluation.upsampling import segment_coarse

HEIGHT, WIDTH = 1024, 2048
REPEATS = 5


def plain(coarse: Tensor, label: Tensor) -> Tensor:
    classes = coarse.shape[1]
    prediction = F.interpolate(coarse, scale_factor=4, mode="bilinear")[..., :HEIGHT, :WIDTH].argmax(1)
    scored = label >= 0
    pairs = label[scored] * classes + prediction[scored]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def ours(coarse: Tensor, label: Tensor) -> Tensor:
    return confusion(segment_coarse(coarse, (HEIGHT, WIDTH)).labels, label, coarse.shape[1])


def plain_confidence(coarse: Tensor, label: Tensor) -> Tensor:
    return F.interpolate(coarse, scale_factor=4, mode="bilinear").softmax(1).max(1).values


def our_confidence(coarse: Tensor, label: Tensor) -> Tensor | None:
    return segment_coarse(coarse, (HEIGHT, WIDTH), confidence=True).confidence


def measure(function: Callable[[Tensor, Tensor], Tensor | None], classes: int, smooth: bool) -> tuple[float, float]:
    """Median seconds, and MB by which the process's peak memory grew."""
    torch.manual_seed(0)
    cells = (HEIGHT // 4, WIDTH // 4)
    if smooth:
        coarse = 5 * F.interpolate(torch.randn(1, classes, 16, 32), size=cells, mode="bicubic")
        coarse += 0.3 * torch.randn(1, classes, *cells)
    else:
        coarse = torch.randn(1, classes, *cells)
    label = torch.randint(classes, (1, HEIGHT, WIDTH)).where(torch.rand(1, HEIGHT, WIDTH) > 0.1, -100)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        function(coarse, label)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])[REPEATS // 2], memory("VmHWM") - before


def memory(field: str) -> float:
    """A figure of this process in MB; VmRSS is the memory in use, VmHWM its peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def main() -> None:
    context = multiprocessing.get_context("spawn")
    print(f"{WIDTH}x{HEIGHT}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':34}{'plain':>18}{'ours':>18}{'time ratio':>12}")
    for title, theirs, our in (
        ("labels and confusion matrix", plain, ours),
        ("confidence", plain_confidence, our_confidence),
    ):
        for classes in (19, 150):
            for smooth in (True, False):
                figures = []
                for function in (theirs, our):
                    with context.Pool(1) as pool:
                        figures.append(pool.apply(measure, (function, classes, smooth)))
                (plain_s, plain_mb), (our_s, our_mb) = figures
                name = f"{title}, {classes}, {'smooth' if smooth else 'noise'}"
                print(
                    f"{name:40}{plain_s:8.3f} s {plain_mb:6.0f} MB{our_s:8.3f} s {our_mb:6.0f} MB{our_s / plain_s:8.3f}"
                )


if __name__ == "__main__":
    main()
