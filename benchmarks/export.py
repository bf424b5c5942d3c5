"""Exported files on a CPU: time and memory of one picture beside the network in PyTorch; peers' files beside theirs.

    python benchmarks/export.py                                  # Swin-T, 512x512, 150 classes, random weights
    python benchmarks/export.py --backbone resnet10t --channels 128 --side 320 --threads 2

Each contender has a process of its own and ends at the logits of cells of 4x4 pixels, UPerNet's at those of pixels.
Ours take turns, and so do each peer and its file. Told is the median CPU time, also as a multiple of the same network's
in PyTorch (ours: the accelerated one), and what the process held at its peak beyond what it held before the first
picture (Linux only).
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from cssformer import CSSFormer
from cssformer.accelerate import accelerate_cpu
from cssformer.export.formats import OPSET, write
from cssformer.export.graph import AnySize, Deployment
from cssformer.export.runtime import open_onnx, open_openvino
from cssformer.utils.console import show
from turns import Child, answer, in_turns

OURS = ("accelerated", "eager", "gather.onnx", "gridsample.onnx", "gather.xml")
PEERS = ("fpn", "upernet", "segformer")


def peer(name: str, classes: int) -> torch.nn.Module:
    """On a backbone of about Swin-T's size."""
    if name == "segformer":
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        # B2: 25 million parameters in the backbone, Swin-T 28.
        widths, depths = [64, 128, 320, 512], [3, 4, 6, 3]
        config = SegformerConfig(hidden_sizes=widths, depths=depths, decoder_hidden_size=768, num_labels=classes)
        return SegformerForSemanticSegmentation(config)
    import segmentation_models_pytorch as smp

    kind = {"fpn": smp.FPN, "upernet": smp.UPerNet}[name]
    return kind("resnet50", encoder_weights=None, classes=classes)


class Logits(torch.nn.Module):
    """A peer's network with a tensor for an answer."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.network(images)
        return getattr(found, "logits", found)


def contender(name: str, folder: Path, classes: int):
    """What takes a picture (1, 3, side, side)."""
    if name.endswith(".onnx"):
        return open_onnx(folder / name)[0]
    if name.endswith(".xml"):
        return open_openvino(folder / name)[0]
    if name in PEERS:
        network = Logits(peer(name, classes)).eval()
        return lambda images: network(torch.from_numpy(images))
    network = CSSFormer.from_pretrained(folder)
    network = accelerate_cpu(network) if name == "accelerated" else network
    return lambda images: network.forward_logits(torch.from_numpy(images))


def serve(name: str, folder: str, side: int, threads: int, classes: int) -> None:
    torch.set_num_threads(threads)
    run = contender(name, Path(folder), classes)
    images = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    with torch.inference_mode():
        answer(lambda: run(images), "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="swin_tiny_patch4_window7_224")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.serve:
        serve(**json.loads(options.serve))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        network = CSSFormer(options.backbone, options.classes, channels=options.channels).eval()
        network.save_pretrained(folder)
        deployment = Deployment(network).eval()
        facts = {"config": json.dumps(network.saved_config())}
        for sampling in ("gather", "gridsample"):
            write(deployment, folder / f"{sampling}.onnx", None, sampling, False, facts)
        write(deployment, folder / "gather.xml", folder / "gather.bin", "gather", False, facts)
        images = torch.rand(1, 3, options.side, options.side)
        for name in PEERS:
            with torch.no_grad(), AnySize():
                network = Logits(peer(name, options.classes)).eval()
                torch.onnx.export(network, (images,), folder / f"{name}.onnx", dynamo=False, opset_version=OPSET)
        rows = []
        common = {"folder": temporary, "side": options.side, "threads": options.threads, "classes": options.classes}
        for group in (OURS, *((name, f"{name}.onnx") for name in PEERS)):
            children = [Child(__file__, {"name": name, **common}) for name in group]
            found = [(np.median(child.processor), memory) for child, memory, _ in in_turns(children, options.rounds)]
            for name, (seconds, memory) in zip(group, found, strict=True):
                rows.append((name, f"{seconds:.2f}", f"{seconds / found[0][0]:.2f}", f"{memory / 1024:.2f}"))
    show([("contender", "seconds", "times PyTorch", "GB"), *rows])


if __name__ == "__main__":
    main()
