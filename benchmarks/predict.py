"""A folder of small pictures: ``cssformer predict`` beside the bare network on tensors of the same size.

    python benchmarks/predict.py --network demo --pictures 1000
    python benchmarks/predict.py --network paper --pictures 120 --turn 40

Pictures are JPEGs of 640x480. ``predict`` reads them, labels them and writes PNGs (with ``--drawn`` overlays and
confidence too), loading the model included. The bare network is the same accelerated network on one tensor after the
other, to class scores at the pictures' size. Both take turns. Networks are untrained: ``demo`` is that of the
demonstration, ``paper`` the paper's on Swin-T.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cssformer import CSSFormer, Predictor
from cssformer.data import SyntheticScenes
from cssformer.inference import predict_files
from cssformer.utils.malloc import keep_freed_memory

HEIGHT, WIDTH = 480, 640
CLASSES = 19
SCENES = 40
NETWORKS = {
    "demo": {"backbone": "resnet10t", "channels": 64, "heads": 4, "points": 4},
    "paper": {"backbone": "swin_tiny_patch4_window7_224"},
}


def seconds(function: Callable[[], object]) -> np.ndarray:
    """On the clock, and of the processor on all threads."""
    clock, processor = time.perf_counter(), time.process_time()
    function()
    return np.array((time.perf_counter() - clock, time.process_time() - processor))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=tuple(NETWORKS), default="demo")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--turn", type=int, default=250, help="pictures until the other one's turn comes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--drawn", action="store_true", help="write overlays and confidence too")
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        CSSFormer(num_classes=CLASSES, aux=False, **NETWORKS[options.network]).save_pretrained(folder / "model")
        predictor = Predictor.from_pretrained(folder / "model", options.device)
        device = next(predictor.model.parameters()).device
        scenes = SyntheticScenes(SCENES, (HEIGHT, WIDTH))
        pictures = [scenes[index].image for index in range(SCENES)]
        tensors = [torch.from_numpy(each.copy()).permute(2, 0, 1)[None].to(device) / 255 for each in pictures]
        for index in range(options.pictures):
            path = folder / f"turn{index // options.turn}" / f"{index}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pictures[index % SCENES]).save(path, quality=92)

        @torch.inference_mode()
        def bare(tensors: list[Tensor]) -> None:
            for tensor in tensors:
                logits = predictor.model(tensor)
            logits[0, 0, 0, 0].item()

        def files(turn: int) -> None:
            predict_files(
                str(folder / "model"),
                [folder / f"turn{turn}"],
                folder / f"out{turn}",
                overlay=options.drawn,
                confidence=options.drawn,
                device=options.device,
            )

        bare(tensors[:2])
        alone, whole = [], []
        for turn, first in enumerate(range(0, options.pictures, options.turn)):
            part = [tensors[i % SCENES] for i in range(first, min(first + options.turn, options.pictures))]
            alone.append(seconds(lambda part=part: bare(part)))
            whole.append(seconds(lambda turn=turn: files(turn)))
    clock, processor = np.sum(alone, 0) / np.sum(whole, 0)
    print(
        f"{options.network}: {options.pictures} pictures of {WIDTH}x{HEIGHT}, {device}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"network alone {options.pictures / np.sum(alone, 0)[0]:8.2f} pictures a second")
    print(f"predict       {options.pictures / np.sum(whole, 0)[0]:8.2f} pictures a second")
    print(f"ratio         {100 * clock:8.1f} % of the clock, {100 * processor:.1f} % of the processor")


if __name__ == "__main__":
    main()
