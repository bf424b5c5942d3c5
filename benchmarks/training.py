"""One training step, forward, loss, backward and AdamW: CSSFormer's family beside others on the same Swin-T.

    python benchmarks/training.py                                   # 2 pictures of 512x512, 8 of 256x256, float32
    python benchmarks/training.py --networks small smp-fpn --precisions 32 autocast
    python benchmarks/training.py --networks small --precisions autocast --backbone convnext_tiny --batches 2x256

As benchmarks/network.py: each network in a process of its own, all in turns, least times and peak memory, which holds
gradients and moments too. Every network's own loss: cross-entropy, CSSFormer's with its auxiliary head's, transformers'
UperNet as its library has it, Mask2Former's matching of masks. Pictures hold about ten classes each.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from turns import (
    CLASSES,
    NETWORKS,
    OURS,
    SWIN,
    TRANSFORMERS,
    Child,
    answer,
    build,
    in_turns,
    parser_of,
    serve_or_compare,
)

DEFAULT = ("base", "small", "nano", "smp-fpn", "smp-segformer", "smp-upernet", "upernet", "mask2former")


def loss_of(name: str, network: Any, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    if name in OURS:
        from cssformer.losses import SegmentationLoss

        loss = SegmentationLoss()
        return lambda: loss(network(images), labels)
    if name not in TRANSFORMERS:
        return lambda: F.cross_entropy(network(images).float(), labels)
    if name == "upernet":
        return lambda: network(images, labels=labels).loss
    classes = [picture.unique() for picture in labels]
    masks = [(picture == there[:, None, None]).float() for picture, there in zip(labels, classes, strict=True)]
    return lambda: network(images, mask_labels=masks, class_labels=classes).loss


def load_kernels(name: str, device: str) -> None:
    """So that the compiler's own memory, the same for every picture and batch, is not counted as the step's."""
    from cssformer import CSSFormer
    from cssformer.model import segmentation_loss

    network = CSSFormer.preset(name, 2, backbone="test_resnet").to(device)
    segmentation_loss(
        network(torch.rand(1, 3, 64, 64, device=device)), torch.zeros(1, 64, 64).long().to(device)
    ).backward()


def serve(name: str, backbone: str, precision: str, size: int, batch: int, threads: int, device: str) -> None:
    from cssformer.utils.malloc import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if name in OURS:
        load_kernels(name, device)
    network = build(name, size, backbone).train().to(device)
    if name in OURS:
        # As `cssformer train` prepares it.
        from cssformer.training.module import SegmentationTask
        from cssformer.training.recipe import Recipe

        SegmentationTask(network, Recipe())
    optimizer = torch.optim.AdamW(network.parameters(), 1e-5, fused=device == "cpu")
    blocks = (
        torch.randint(CLASSES, (batch, 3, 3)).repeat_interleave(size // 3 + 1, 1).repeat_interleave(size // 3 + 1, 2)
    )
    labels = blocks[:, :size, :size].contiguous().to(device)
    loss = loss_of(name, network, torch.rand(batch, 3, size, size, device=device), labels)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "autocast"):
            value = loss()
        value.backward()
        optimizer.step()

    answer(step, device)


def compare(options: argparse.Namespace, sources: tuple[Path | None, ...]) -> list[dict[str, Any]]:
    """Print a table for each precision and batch; its rows for JSON."""
    rows = []
    for precision, pictures in itertools.product(options.precisions, options.batches):
        batch, size = map(int, pictures.split("x"))
        common = {"precision": precision, "size": size, "batch": batch, "threads": options.threads}
        # One after the other, because the memory of all would be too much for many machines.
        print(f"\nA step of {batch} x {size}x{size}, {precision}, {options.device}, {options.threads} threads")
        print(f"{'':34}{'clock s':>11}{'processor':>11}{'times':>11}{'MiB':>11}", flush=True)
        first = 0.0
        for name, source in itertools.product(options.networks, sources):
            contender = {"name": name, "backbone": options.backbone, **common, "device": options.device}
            for child, memory, _ in in_turns([Child(__file__, contender, source)], options.rounds):
                clock, processor = min(child.clock), min(child.processor)
                first = first or processor
                title = NETWORKS[name] + (", there" if source else "")
                print(f"{title:34}{clock:11.3f}{processor:11.3f}{processor / first:11.2f}{memory:11.0f}", flush=True)
                rows.append({**contender, "title": title, "clock": clock, "processor": processor, "mebibytes": memory})
    return rows


def main() -> None:
    parser = parser_of(__doc__, DEFAULT, rounds=3)
    parser.add_argument("--precisions", nargs="+", choices=("32", "autocast"), default=["32"])
    parser.add_argument("--backbone", default=SWIN, help="timm's name; not of transformers' networks")
    parser.add_argument("--batches", nargs="+", default=["2x512", "8x256"], help="pictures and their side, as 2x512")
    serve_or_compare(parser.parse_args(), serve, compare)


if __name__ == "__main__":
    main()
