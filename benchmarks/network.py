"""Whole networks on a CPU: time and memory of one picture, CSSFormer beside others on the same Swin-T.

    python benchmarks/network.py                    # every network, 512x512, 150 classes, float32 and bfloat16
    python benchmarks/network.py --scaling          # CSSFormer from 256x256 to 2048x2048
    python benchmarks/network.py --networks cssformer backbone upernet
    python benchmarks/network.py --networks cssformer --against ../before   # beside another version's checkout

Each network lives in a process of its own, with random weights, in eval mode. The processes take turns, one picture at
a time, so that what else the machine does meets all of them; told is the best and the median time, and the best as a
multiple of CSSFormer's. A forward ends where the network's own ends: class scores at the picture's size for CSSFormer,
UperNet and segmentation_models_pytorch, masks and classes of 100 queries at a quarter of the size for Mask2Former and
MaskFormer. bfloat16 comes in two ways, torch.autocast and the whole network cast. All the processes keep what they free
(:mod:`cssformer.utils.malloc`), as the command line's do. Memory is what the process had at its peak beyond what
it held before the first picture.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CLASSES = 150
SWIN = "swin_tiny_patch4_window7_224"
NETWORKS = {
    "cssformer": "CSSFormer",
    "backbone": "Swin-T alone (timm, as CSSFormer runs it)",
    "upernet": "UperNet (transformers)",
    "mask2former": "Mask2Former (transformers)",
    "maskformer": "MaskFormer (transformers)",
    "smp-upernet": "UPerNet (segmentation_models_pytorch)",
    "smp-fpn": "FPN (segmentation_models_pytorch)",
    "smp-segformer": "Segformer (segmentation_models_pytorch)",
}

PRECISIONS = {"32": "float32", "autocast": "bfloat16 by autocast", "bf16": "all bfloat16"}


def build(name: str, size: int):
    """The network, float32, random weights."""
    if name in ("cssformer", "backbone"):
        from cssformer import CSSFormer

        network = CSSFormer(SWIN, CLASSES)
        return network.backbone if name == "backbone" else network
    if name.startswith("smp-"):
        import segmentation_models_pytorch as smp

        kind = {"smp-upernet": smp.UPerNet, "smp-fpn": smp.FPN, "smp-segformer": smp.Segformer}[name]
        return kind(f"tu-{SWIN}", encoder_weights=None, classes=CLASSES, img_size=size)
    import transformers

    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = transformers.SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], out_features=stages)
    if name == "upernet":
        config = transformers.UperNetConfig(backbone_config=swin, num_labels=CLASSES, use_auxiliary_head=False)
        return transformers.UperNetForSemanticSegmentation(config)
    if name == "mask2former":
        config = transformers.Mask2FormerConfig(backbone_config=swin, num_labels=CLASSES)
        return transformers.Mask2FormerForUniversalSegmentation(config)
    return transformers.MaskFormerForInstanceSegmentation(
        transformers.MaskFormerConfig(backbone_config=swin, num_labels=CLASSES)
    )


def serve(name: str, precision: str, size: int, threads: int) -> None:
    """The child: one forward for each line on standard input, answered by its seconds; at the end its memory."""
    import torch

    from cssformer.utils.malloc import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network, picture = build(name, size).eval(), torch.rand(1, 3, size, size)
    for parameter_name, parameter in network.named_parameters():
        # As after training: with all biases 0 a shifted window's padding makes denormal numbers, which are slow.
        if parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
    if name in ("cssformer", "backbone"):
        from cssformer.accelerate import accelerate_cpu

        network = accelerate_cpu(network)
    if precision == "bf16":
        network, picture = network.bfloat16(), picture.bfloat16()
    before = resident("VmRSS")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        network(picture)
        print("ready", flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            network(picture)
            print(time.perf_counter() - start, flush=True)
    print(resident("VmHWM") - before, flush=True)


def resident(field: str) -> float:
    """MiB of this process, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


class Child:
    """A network in a process of its own; ``error`` is why there is none."""

    def __init__(self, name: str, precision: str, size: int, threads: int, checkout: Path | None = None) -> None:
        self.name, self.precision = name, precision
        self.seconds: list[float] = []
        program, environment = __file__, None
        if checkout is not None:
            program, environment = (
                str(checkout / "benchmarks/network.py"),
                {**os.environ, "PYTHONPATH": str(checkout / "src")},
            )
        command = [sys.executable, program, "--serve", name, precision, "--size", str(size), "--threads", str(threads)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.error = "" if self.process.stdout.readline() == "ready\n" else self.process.stderr.read().strip()[-200:]

    def turn(self) -> None:
        # Until the OpenMP threads of the one before have stopped spinning.
        time.sleep(0.1)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(float(self.process.stdout.readline()))

    def memory(self) -> float:
        """MiB; ends the process."""
        self.process.stdin.close()
        return float(self.process.stdout.readline())


def measure(
    names: list[str], precision: str, size: int, threads: int, rounds: int
) -> dict[str, tuple[float, float, float]]:
    """Best and median seconds and MiB of each network."""
    children = [Child(name, precision, size, threads) for name in names]
    for child in children:
        if child.error:
            print(f"{NETWORKS[child.name]}, {PRECISIONS[precision]}: does not run ({child.error.splitlines()[-1]})")
    running = [child for child in children if not child.error]
    for _ in range(rounds):
        for child in running:
            child.turn()
    return {child.name: (min(child.seconds), statistics.median(child.seconds), child.memory()) for child in running}


def compare(names: list[str], size: int, threads: int, rounds: int) -> None:
    for precision in PRECISIONS:
        results = measure(names, precision, size, threads, rounds)
        print(f"\n{size}x{size}, {PRECISIONS[precision]}, {threads} threads, {rounds} rounds")
        print(f"{'':44}{'best':>9}{'median':>9}{'memory':>11}{'CSSFormer is':>16}")
        for name, (best, median, memory) in results.items():
            ratio = f"{best / results['cssformer'][0]:.2f}x as fast" if "cssformer" in results else ""
            print(f"{NETWORKS[name]:44}{best:8.3f}s{median:8.3f}s{memory:8.0f}MiB{ratio:>16}")
        if {"cssformer", "backbone"} <= results.keys():
            backbone = results["backbone"][0]
            print(f"CSSFormer's decoder takes {results['cssformer'][0] / backbone - 1:.2f} times the backbone's time.")


def against(checkout: Path, size: int, threads: int, rounds: int) -> None:
    """CSSFormer of this checkout and of another one, in turns."""
    for precision, title in PRECISIONS.items():
        here, there = (Child("cssformer", precision, size, threads, root) for root in (None, checkout.resolve()))
        for _ in range(rounds):
            here.turn()
            there.turn()
        times, memory = [min(child.seconds) for child in (here, there)], [child.memory() for child in (here, there)]
        print(
            f"{title:22} {times[0]:.3f} s here, {times[1]:.3f} s there: {times[1] / times[0]:.2f} times as fast,",
            end=" ",
        )
        print(f"{memory[0]:.0f} MiB against {memory[1]:.0f}: {memory[0] / memory[1]:.2f} of it")


def scale(sizes: list[int], threads: int, rounds: int) -> None:
    for precision in PRECISIONS:
        print(f"\nCSSFormer, {PRECISIONS[precision]}, {threads} threads: per picture, and per million pixels")
        for size in sizes:
            best, _, memory = measure(["cssformer"], precision, size, threads, max(2, rounds * 512**2 // size**2))[
                "cssformer"
            ]
            million = size**2 / 1e6
            print(f"{size:5}x{size:<5}{best:9.3f} s{memory:9.0f} MiB{best / million:9.3f} s{memory / million:9.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--against", type=Path, help="another version's checkout")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve, options.size, options.threads)
    elif options.against:
        against(options.against, options.size, options.threads, options.rounds)
    elif options.scaling:
        scale([256, 512, 1024, 2048], options.threads, options.rounds)
    else:
        compare(options.networks, options.size, options.threads, options.rounds)


if __name__ == "__main__":
    main()
