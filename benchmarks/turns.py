"""What benchmarks of whole networks share: the networks on one Swin-T, and processes that take turns.

Each contender lives in a process of its own, so that what else the machine does meets all of them and its peak memory
is its own.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 150
SWIN = "swin_tiny_patch4_window7_224"
OURS = {"base": "CSSFormer base", "small": "CSSFormer small", "nano": "CSSFormer nano"}
SMP = {"smp-fpn": "FPN (smp)", "smp-segformer": "Segformer (smp)", "smp-upernet": "UPerNet (smp)"}
TRANSFORMERS = {
    "upernet": "UperNet (transformers)",
    "mask2former": "Mask2Former (transformers)",
    "maskformer": "MaskFormer (transformers)",
    "eomt": "EoMT, ViT-S (transformers)",
}
NETWORKS = {**OURS, "backbone": "Swin-T alone, timm's", **SMP, **TRANSFORMERS}
DFINE = {f"dfine-{size}": f"D-FINE-seg {size.upper()}" for size in "nsmlx"}
YOLO = {f"yolo26{size}-sem": f"YOLO26{size}-sem (ultralytics)" for size in "nsmlx"}
OPTIONAL = {**DFINE, **YOLO}
PACKAGES = {"dfine_seg": (DFINE, "dfine-seg==0.6.2 loguru"), "ultralytics": (YOLO, "ultralytics==8.4.190")}
"""What these networks need beyond the tests, as pip is told without dependencies; ultralytics is AGPL-3.0."""


def build(name: str, size: int, backbone: str = SWIN) -> Any:
    """The network, float32, random weights; transformers' have a Swin-T, EoMT a ViT-S of their own.

    D-FINE-seg and YOLO26-sem have their own backbones too, and merged layers, as their libraries' export and prediction
    have them.
    """
    if name in OURS or name == "backbone":
        from cssformer import CSSFormer

        network = (
            CSSFormer.preset(name, CLASSES, backbone=backbone)
            if name in ("small", "nano")
            else CSSFormer(backbone, CLASSES)
        )
        return network.backbone if name == "backbone" else network
    if name in SMP:
        import segmentation_models_pytorch as smp

        kind = {"smp-upernet": smp.UPerNet, "smp-fpn": smp.FPN, "smp-segformer": smp.Segformer}[name]
        sized = {"img_size": size} if backbone == SWIN else {}
        return kind(f"tu-{backbone}", encoder_weights=None, classes=CLASSES, **sized)
    if name in DFINE:
        from dfine_seg.model.dfine import build_model

        return build_model(name[-1], CLASSES, False, "cpu", [size, size], task="sem_seg").deploy()
    if name in YOLO:
        from ultralytics.nn.tasks import SemanticSegmentationModel

        return SemanticSegmentationModel(f"{name}.yaml", nc=CLASSES, verbose=False).fuse(verbose=False)
    import transformers

    if name == "eomt":  # the paper's for ADE20K, but a ViT-S
        config = transformers.EomtConfig(
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            num_blocks=3,
            num_queries=100,
            num_labels=CLASSES,
            image_size=size,
        )
        network = transformers.EomtForUniversalSegmentation(config)
        network.attn_mask_probs.zero_()  # where training ends: attention without masks
        return network
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


def as_trained(network: nn.Module) -> nn.Module:
    """With all biases 0 a shifted window's padding makes denormal numbers, which are slow."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.02)
    return network


def resident(field: str) -> float:
    """MiB of this process, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def answer(call: Callable[[], Any], device: str, count: Callable[[], float] = lambda: 0.0) -> None:
    """The child's side: one call for each line on standard input, answered by its seconds.

    At the end come the MiB that it added and what ``count`` gives, whose own memory so is not counted.

    Seconds are of the clock and, single-threaded and beside other programs the better measure, of the processor.
    """
    if device == "cpu":  # loading may have held more than running will, and what it freed would hide what running takes
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = torch.cuda.memory_allocated() / 2**20 if device == "cuda" else resident("VmRSS")
    call()
    print("ready", flush=True)
    for _ in sys.stdin:
        starts = time.perf_counter(), time.process_time()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        print(time.perf_counter() - starts[0], time.process_time() - starts[1], flush=True)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else resident("VmHWM")
    print(peak - before, count(), flush=True)


class Child:
    """A contender; ``error`` is why there is none.

    Args:
        program: a file that calls :func:`answer` when it is given ``--serve`` and the contender as JSON.
        contender: what it is to run.
        source: the ``src`` of another version's checkout.
    """

    def __init__(self, program: str, contender: dict[str, Any], source: Path | None = None) -> None:
        self.contender = contender
        self.clock: list[float] = []
        self.processor: list[float] = []
        environment = os.environ if source is None else {**os.environ, "PYTHONPATH": str(source)}
        self.process = subprocess.Popen(
            [sys.executable, program, "--serve", json.dumps(contender)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        ready = any(line == "ready\n" for line in self.process.stdout)
        self.error = "" if ready else self.last_words()

    def last_words(self) -> str:
        said = self.process.stderr.read().strip().splitlines()
        return (said or [f"ended with {self.process.wait()}, -9 where memory is short"])[-1][-200:]

    def numbers(self) -> tuple[float, float]:
        """The two of its next line; not numbers, and an ``error``, where it has ended."""
        line = self.process.stdout.readline().split()
        if not line:
            self.error = self.last_words()
            return float("nan"), float("nan")
        return float(line[0]), float(line[1])

    def turn(self) -> None:
        # Until the OpenMP threads of the one before have stopped spinning.
        time.sleep(0.1)
        with suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        clock, processor = self.numbers()
        self.clock.append(clock)
        self.processor.append(processor)

    def end(self) -> tuple[float, float]:
        """MiB and the count; ends the process."""
        self.process.stdin.close()
        return self.numbers()


def in_turns(children: list[Child], rounds: int) -> list[tuple[Child, float, float]]:
    """Those that run to their end, with the MiB that each added, and its count."""
    for _ in range(rounds):
        for child in children:
            if not child.error:
                child.turn()
    ended = [(child, *child.end()) for child in children if not child.error]
    for child in children:
        if child.error:
            print(f"{child.contender}: does not run ({child.error})")
    return [found for found in ended if not found[0].error]


def parser_of(
    about: str | None, networks: Sequence[str], rounds: int, optional: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """The options that all of these benchmarks have, ``networks`` run unless others are named."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS, *optional], default=list(networks))
    parser.add_argument("--against", type=Path, help="another version's checkout")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser


def serve_or_compare(
    options: argparse.Namespace,
    serve: Callable[..., None],
    compare: Callable[[argparse.Namespace, tuple[Path | None, ...]], list[dict[str, Any]]],
) -> None:
    """Serve as a child, or compare the versions of these sources and write the rows."""
    if options.serve:
        serve(**json.loads(options.serve))
        return
    for module, (names, packages) in PACKAGES.items():
        asked = [name for name in options.networks if name in names]
        if asked and find_spec(module) is None:
            how = f"leave it out or run: pip install --no-deps {packages}"
            sys.exit(f"error: {asked[0]} needs {module}, which is not installed; {how}")
    rows = compare(options, (None, *([options.against.resolve() / "src"] if options.against else [])))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def product_rate(dtype: torch.dtype, threads: int, device: str) -> float:
    """Multiply-adds per second of this machine's matrix products, by the faster of PyTorch's two libraries."""
    torch.set_num_threads(threads)
    rows, weight = (torch.randn(side, 1024, device=device, dtype=dtype) for side in (4096, 1024))
    ways: list[Callable[[], Tensor]] = [lambda: F.linear(rows, weight)]
    if device == "cpu":
        laid = torch.ops.mkldnn._reorder_linear_weight(weight, len(rows))
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(rows, laid, None, "none", [], "none"))
    best = float("inf")
    for way in ways:
        for _ in range(8):
            start = time.perf_counter() if device == "cuda" or threads > 1 else time.process_time()
            way()
            if device == "cuda":
                torch.cuda.synchronize()
            end = time.perf_counter() if device == "cuda" or threads > 1 else time.process_time()
            best = min(best, end - start)
    return rows.numel() * weight.shape[0] / best
