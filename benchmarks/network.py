"""Whole networks: time and memory of a forward, CSSFormer's family beside others, most on the same Swin-T.

    python benchmarks/network.py                              # 512x512, 150 classes, float32 and bfloat16; some minutes
    python benchmarks/network.py --sizes 256 512 1024 2048 --batches 1 8 --precisions 32 bf16
    python benchmarks/network.py --networks base small --engines eager accelerated compile onnx
    python benchmarks/network.py --networks small dfine-m yolo26l-sem     # of dfine-seg and ultralytics, if installed
    python benchmarks/network.py --networks base --against ../before      # beside another version's checkout

Each network lives in a process of its own, with random weights, in eval mode; they take turns. Told is the least time
of the clock and of the processor, as multiples of the first network's, seconds and MiB per million pixels, and how
many times the machine's bound the time is: the network's multiply-adds at the rate of large matrix products, measured
in the same run. A forward ends where the network's own ends: class scores at the picture's size for CSSFormer, UperNet,
segmentation_models_pytorch (smp) and D-FINE-seg, at an eighth of it for YOLO26-sem, masks and classes of 100 queries at
a quarter for Mask2Former, MaskFormer and EoMT. D-FINE-seg, YOLO26-sem and EoMT have backbones of their own. CSSFormer
and its backbone alone run accelerated unless ``--engines`` says otherwise, the others as their libraries have them. All
processes keep what they free (:mod:`cssformer.utils.malloc`), as the command line's do. Memory is what the process had
at its peak beyond what it held before the first picture.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from turns import (
    NETWORKS,
    OPTIONAL,
    OURS,
    Child,
    answer,
    as_trained,
    build,
    in_turns,
    parser_of,
    product_rate,
    serve_or_compare,
)

TITLES = {**NETWORKS, **OPTIONAL}
ENGINES = ("eager", "accelerated", "compile", "onnx")
PRECISIONS = {"32": "float32", "autocast": "bfloat16 by autocast", "bf16": "all bfloat16"}


def multiply_adds(network: nn.Module, images: Tensor) -> float:
    """Of matrix products and convolutions, attention's included."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(images)
    return counter.get_total_flops() / 2


class Tensors(nn.Module):
    """A network with nothing but tensors for an answer, all of them: an exporter drops what leads to none."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = self.network(images)
        if isinstance(found, Tensor):
            return found
        return tuple(value for value in found.values() if isinstance(value, Tensor))


def in_onnx_runtime(name: str, network: nn.Module, images: Tensor) -> Callable[[], Any]:
    """The exported network; ours ends at cells of 4x4 pixels there."""
    from cssformer.export.formats import OPSET, write
    from cssformer.export.graph import AnySize, Deployment
    from cssformer.export.runtime import open_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        if name in OURS:
            facts = {"config": json.dumps(network.saved_config())}
            write(Deployment(network).eval(), path, None, "gather", False, facts)
        else:
            with torch.no_grad(), AnySize():
                torch.onnx.export(Tensors(network).eval(), (images,), path, dynamo=False, opset_version=OPSET)
        run = open_onnx(path)[0]
    return lambda: run(images.numpy())


def serve(name: str, engine: str, precision: str, size: int, batch: int, threads: int, device: str) -> None:
    with suppress(ImportError):  # an older version's checkout may not have it
        from cssformer.utils.malloc import keep_freed_memory

        keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network, images = as_trained(build(name, size).eval()), torch.rand(batch, 3, size, size)
    plain = network

    def count() -> float:
        # Ours without numbers: unaccelerated it wants five times the memory of what was timed.
        place = "meta" if name in OURS else "cpu"
        return batch * multiply_adds(plain.to(place, torch.float32), torch.rand(1, 3, size, size, device=place))

    if engine == "onnx":
        answer(in_onnx_runtime(name, network, images), device, count)
        return
    network, images = network.to(device), images.to(device)
    if engine == "accelerated":
        with suppress(ImportError):
            from cssformer.accelerate import accelerate_cpu

            network = accelerate_cpu(network)
    if precision == "bf16":
        network, images = network.bfloat16(), images.bfloat16()
    call = torch.compile(network) if engine == "compile" else network
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=precision == "autocast"):
        answer(lambda: call(images), device, count)


def engine_of(name: str, engines: list[str] | None, device: str) -> list[str]:
    fast = (name in OURS or name == "backbone") and device == "cpu"
    if engines is None:
        return ["accelerated" if fast else "eager"]
    return [engine for engine in engines if fast or engine != "accelerated"]


def compare(options: argparse.Namespace, sources: tuple[Path | None, ...]) -> list[dict[str, Any]]:
    """Print a table for each precision, size and batch; its rows for JSON."""
    rows = []
    for precision, size, batch in itertools.product(options.precisions, options.sizes, options.batches):
        rate = product_rate(torch.float32 if precision == "32" else torch.bfloat16, options.threads, options.device)
        common = {"precision": precision, "size": size, "batch": batch, "threads": options.threads}
        children = [
            Child(__file__, {"name": name, "engine": engine, **common, "device": options.device}, source)
            for name in options.networks
            for engine in engine_of(name, options.engines, options.device)
            for source in sources
        ]
        print(
            f"\n{batch} x {size}x{size}, {PRECISIONS[precision]}, {options.device}, {options.threads} threads, "
            f"{options.rounds} rounds, {rate / 1e9:.0f} G multiply-adds/s"
        )
        head = ("clock s", "times", "processor", "times", "MiB", "s/Mpixel", "MiB/Mpixel", "bounds")
        print(f"{'':34}" + "".join(f"{word:>11}" for word in head))
        first: Child | None = None
        for child, memory, count in in_turns(children, options.rounds):
            first = first or child
            clock, processor, pixels = min(child.clock), min(child.processor), batch * size**2 / 1e6
            there = options.against and child in children[1::2]
            # An older version's products may not be seen. One thread is judged by the processor's time, which other
            # programs do not lengthen as much.
            bounds = float("nan") if there else (processor if options.threads == 1 else clock) * rate / count
            numbers = (clock, clock / min(first.clock), processor, processor / min(first.processor))
            numbers += (memory, clock / pixels, memory / pixels, bounds)
            title = f"{TITLES[child.contender['name']]}, {child.contender['engine']}"
            title += ", there" if there else ""
            print(f"{title:34}" + "".join(f"{number:11.3f}" for number in numbers), flush=True)
            rows.append({**child.contender, "title": title, **dict(zip(("clock", "times"), numbers, strict=False))})
            rows[-1] |= {"processor": processor, "mebibytes": memory, "multiply_adds": count, "bounds": numbers[-1]}
    return rows


def main() -> None:
    parser = parser_of(__doc__, list(NETWORKS), rounds=5, optional=list(OPTIONAL))
    parser.add_argument("--engines", nargs="+", choices=ENGINES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["32", "autocast"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[512])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    serve_or_compare(parser.parse_args(), serve, compare)


if __name__ == "__main__":
    main()
