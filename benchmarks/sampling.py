"""Time and memory of the sampling functions against their definition and against ``transformers``.

    python benchmarks/sampling.py                    # 256x256 and 512x512 pictures
    python benchmarks/sampling.py --full             # up to 2048x1024; a quarter of an hour
    python benchmarks/sampling.py --dtype bfloat16 --threads 2

Peers, run on the same inputs in the same process:
    definition      cssformer.ops.reference: grid_sample and a weighted sum, as Deformable DETR's fallback does it
    transformers    its MultiScaleDeformableAttention module without compiled kernels (ms_deform_sample only)

``of bound`` is the share of the machine's bound: the bytes of inputs, outputs and gradients over its measured memory
bandwidth, or the multiply-adds over its measured peak, whichever takes longer. ``corners`` compares with reading the
four corners of every sample from the second-level cache, once forward and twice backward. ``memory`` is the peak a call
adds, as a multiple of inputs, outputs and gradients together. A peer that would take more than 60 % of the free memory
is left out, and the table says so.
"""

import argparse
import ctypes
import gc
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cssformer.ops import ms_deform_attend, ms_deform_sample, use_backend

Shapes = tuple[tuple[int, int], ...]


def inputs(
    size: tuple[int, int], batch: int, heads: int, channels: int, points: int, dtype: torch.dtype, device: str
) -> tuple[Shapes, dict[str, Tensor]]:
    """Queries of all scales that look around their own place on every scale, three pixels wide (standard deviation)."""
    torch.manual_seed(0)
    shapes = tuple((size[0] // stride, size[1] // stride) for stride in (4, 8, 16, 32))
    tokens = sum(h * w for h, w in shapes)
    centres = [
        torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1) for h, w in shapes
    ]
    scale = torch.tensor([(w, h) for h, w in shapes])
    here_NL2 = torch.cat(centres)[:, None] * scale - 0.5
    positions = here_NL2[None, :, None, :, None] + 3 * torch.randn(batch, tokens, heads, len(shapes), points, 2)
    weights = torch.randn(batch, tokens, heads, len(shapes) * points).softmax(-1).view(positions.shape[:-1])
    tensors = {name: torch.randn(batch, tokens, heads, channels, dtype=dtype) for name in ("query", "key", "value")}
    tensors |= {"positions": positions, "weights": weights.to(dtype)}
    return shapes, {name: tensor.to(device).requires_grad_() for name, tensor in tensors.items()}


def transformers_sum(shapes: Shapes, device: str) -> Callable[..., Tensor] | None:
    try:
        from transformers.models.deformable_detr import modeling_deformable_detr as detr
    except ImportError as error:
        print(f"transformers is not measured: {error}")
        return None
    module = detr.MultiScaleDeformableAttention()
    sizes = torch.tensor(shapes, device=device)
    starts = torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))

    def call(value: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
        locations = ((positions + 0.5) / sizes.flip(1)[:, None]).to(value.dtype)
        out: Tensor = module(value, sizes, list(shapes), starts, locations, weights, 64)
        return out.view(*positions.shape[:3], -1)

    return call


def entry(file: str, key: str) -> int:
    """An entry of one of Linux's lists in ``/proc``, in bytes, and 0 where there is none."""
    try:
        with open(file) as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
    except (OSError, StopIteration):
        return 0


class Memory:
    """The peak memory added by a block, in bytes, and 0 where the system does not tell."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.added = 0

    def __enter__(self) -> "Memory":
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            try:
                ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed would hide what this one takes
                with open("/proc/self/clear_refs", "w") as reset:
                    reset.write("5")
            except (OSError, AttributeError):
                print("This system does not reset its peak memory; the memory column is not to be trusted.")
            self.before = entry("/proc/self/status", "VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = torch.cuda.max_memory_allocated() if self.cuda else entry("/proc/self/status", "VmHWM")
        self.added = max(0, peak - self.before)


def once(call: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def seconds(call: Callable[[], Any], device: str, budget: float = 2.0) -> float:
    """The shortest of as many runs as fit into ``budget`` seconds, 2 to 20, after one to warm up."""
    runs = int(budget / once(call, device))
    return min(once(call, device) for _ in range(max(2, min(20, runs))))


def machine(device: str) -> tuple[float, float, float]:
    """Measured bytes per second from memory and from the second-level cache, and multiply-adds per second."""
    large = torch.ones(1 << 26, device=device)
    target = torch.empty_like(large)
    memory = 2 * 4 * large.numel() / seconds(lambda: target.copy_(large), device)
    square = torch.ones(2048, 2048, device=device)
    peak = square.shape[0] ** 3 / seconds(lambda: square @ square, device)
    return memory, cache_bandwidth() if device == "cpu" else float("nan"), peak


def cache_bandwidth() -> float:
    import numpy as np
    from numba import njit

    from cssformer.ops.simd import load, store, zero
    from cssformer.ops.threads import run

    @njit(nogil=True)
    def read(floats: Any, out: Any, first: int, last: int) -> None:
        for task in range(first, last):
            a, b, c, d = zero(32), zero(32), zero(32), zero(32)
            for start in range(0, floats.size, 128):
                a += load(floats, start, 32)
                b += load(floats, start + 32, 32)
                c += load(floats, start + 64, 32)
                d += load(floats, start + 96, 32)
            store(out, task * 32, (a + b) + (c + d))

    floats = np.ones(1 << 16, np.float32)  # 256 KiB: beyond the first level, well within the second
    tasks = 2048
    out = np.empty(tasks * 32, np.float32)
    return floats.nbytes * tasks / seconds(lambda: run(read, tasks, 1 << 40, floats, out), "cpu")


def available(device: str) -> float:
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    return float(entry("/proc/meminfo", "MemAvailable") or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def compare(size: tuple[int, int], options: argparse.Namespace, rates: tuple[float, float, float]) -> None:
    device, dtype = options.device, getattr(torch, options.dtype)
    shapes, tensors = inputs(size, options.batch, options.heads, options.channels, options.points, dtype, device)
    B, N, M, L, K, _ = tensors["positions"].shape
    D = options.channels
    samples = B * N * M * L * K
    print(f"\n{size[0]}x{size[1]}: B {B}, N = S {N}, M {M}, D {D}, L {L}, K {K}, {options.dtype}, {device}")
    print(f"{'':44}{'ms':>10}{'slower':>9}{'memory':>9}{'of bound':>10}{'corners':>9}")

    for name in ("sum", "attend"):
        used = ("value", "positions", "weights") if name == "sum" else ("query", "key", "value", "positions")
        leaves = [tensors[key] for key in used]
        maps = 1 if name == "sum" else 2

        def ours(*leaves: Tensor, name: str = name) -> Tensor:
            if name == "sum":
                value, positions, weights = leaves
                return ms_deform_sample(value, shapes, positions, weights)
            query, key, value, positions = leaves
            return ms_deform_attend(query, key, value, shapes, positions)

        calls: dict[str, Callable[..., Tensor] | None] = {"cssformer": ours, "definition": ours}
        if name == "sum":
            calls["transformers"] = transformers_sum(shapes, device)
        for backward in (False, True):
            read = sum(leaf.nbytes for leaf in leaves)
            written = tensors["query"].nbytes
            touched = read + written + (read + written if backward else 0)
            # Forward: 4 corners, and for attention the logit and the weighted sum. Backward: twice as much, and once
            # more to know the attention again.
            adds = samples * D * (4 if name == "sum" else 10) * ((4 if name == "attend" else 3) if backward else 1)
            bound = max(touched / rates[0], adds / rates[2])
            corners = samples * 4 * D * 4 * maps * (3 if backward else 1) / rates[1]
            fastest = 0.0
            for peer, call in calls.items():
                label = f"sample_{name} {'forward + backward' if backward else 'forward'}, {peer}"
                if call is None:
                    continue
                needed = samples * D * 4 * (3.5 if name == "sum" else 5)  # as many copies of all samples at the peak
                if peer != "cssformer" and needed > 0.6 * available(device):
                    free = available(device) / 1e9
                    print(f"{label:44}  left out: it needs about {needed / 1e9:.0f} GB, {free:.0f} GB are free")
                    continue

                def step(
                    call: Callable[..., Tensor] = call, leaves: list[Tensor] = leaves, backward: bool = backward
                ) -> None:
                    with torch.set_grad_enabled(backward):
                        out = call(*leaves)
                    if backward:
                        torch.autograd.grad(out, leaves, torch.ones_like(out))

                with use_backend("reference" if peer == "definition" else "auto"):
                    if peer == "cssformer":
                        step()  # compiles the kernels
                    with Memory(device) as memory:
                        taken = once(step, device)
                    if taken < 2:
                        taken = seconds(step, device)
                fastest = fastest or taken
                print(
                    f"{label:44}{taken * 1e3:10.1f}{taken / fastest:8.1f}x{memory.added / touched:8.2f}x"
                    f"{bound / taken:10.1%}{taken / corners:8.1f}x"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also 1024x1024 and 2048x1024")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--channels", type=int, default=32, help="per head")
    parser.add_argument("--points", type=int, default=16, help="per head and scale")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="only this one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rates = machine(options.device)
    print(f"torch {torch.__version__}, {options.device}, {options.threads} threads")
    print(
        f"Measured: memory {rates[0] / 1e9:.1f} GB/s, second-level cache {rates[1] / 1e9:.0f} GB/s, "
        f"{rates[2] / 1e9:.0f} G multiply-adds/s (float32)"
    )
    sizes = [(256, 256), (512, 512), *([(1024, 1024), (1024, 2048)] if options.full else [])]
    for size in [tuple(options.size)] if options.size else sizes:
        compare(size, options, rates)


if __name__ == "__main__":
    main()
