"""Many small pictures: ``cssformer predict`` and ``evaluate`` beside the bare network on tensors of the same size.

    python benchmarks/predict.py --network demo --pictures 1000
    python benchmarks/predict.py --network paper --pictures 120 --turn 40

Pictures are JPEGs of 640x480. ``predict`` reads them, labels them and writes PNGs (with ``--drawn`` overlays and
confidence too), ``evaluate`` reads and scores them, contours too; each loads the model in every turn. The bare network
is the same accelerated network on one tensor after the other, to class scores at the pictures' size. All take turns.
Networks are untrained: ``demo`` is that of the demonstration, ``paper`` the paper's on Swin-T.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cssformer import CSSFormer, Predictor
from cssformer.data import DatasetInfo, SegmentationFolder, SyntheticScenes
from cssformer.data.dataset_info import distinct_colours
from cssformer.inference import predict_files
from cssformer.metrics import evaluate
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
        drawn = SyntheticScenes(SCENES, (HEIGHT, WIDTH))
        scenes = [drawn[index] for index in range(SCENES)]
        tensors = [torch.from_numpy(each.image.copy()).permute(2, 0, 1)[None].to(device) / 255 for each in scenes]
        turns = [range(first, options.pictures)[: options.turn] for first in range(0, options.pictures, options.turn)]
        for turn, part in enumerate(turns):
            root = folder / f"turn{turn}"
            for kind in ("images", "labels"):
                (root / "val" / kind).mkdir(parents=True)
            for index in part:
                scene = scenes[index % SCENES]
                Image.fromarray(scene.image).save(root / "val" / "images" / f"{index}.jpg", quality=92)
                label = np.where(scene.label < 0, 255, scene.label).astype(np.uint8)
                Image.fromarray(label).save(root / "val" / "labels" / f"{index}.png")
            DatasetInfo(tuple(map(str, range(CLASSES))), distinct_colours(CLASSES)).save(root)

        @torch.inference_mode()
        def bare(part: Sequence[int]) -> None:
            for index in part:
                logits = predictor.model(tensors[index % SCENES])
            logits[0, 0, 0, 0].item()

        def files(turn: int) -> None:
            predict_files(
                str(folder / "model"),
                [folder / f"turn{turn}" / "val" / "images"],
                folder / f"out{turn}",
                overlay=options.drawn,
                confidence=options.drawn,
                device=options.device,
            )

        def scores(turn: int) -> None:
            model = Predictor.from_pretrained(folder / "model", options.device)
            evaluate(model, SegmentationFolder(folder / f"turn{turn}", "val"))

        bare(range(2))
        taken = {"network alone": [], "predict": [], "evaluate": []}
        for turn, part in enumerate(turns):
            taken["network alone"].append(seconds(lambda part=part: bare(part)))
            taken["predict"].append(seconds(lambda turn=turn: files(turn)))
            taken["evaluate"].append(seconds(lambda turn=turn: scores(turn)))
    print(
        f"{options.network}: {options.pictures} pictures of {WIDTH}x{HEIGHT}, {device}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{'':16}{'pictures a second':>20}{'processor, s':>16}{'the network takes of the clock, the processor':>48}")
    alone = np.sum(taken["network alone"], 0)
    for title, each in taken.items():
        clock, processor = whole = np.sum(each, 0)
        share = " %".join(f"{percent:8.1f}" for percent in 100 * alone / whole)
        print(f"{title:16}{options.pictures / clock:20.2f}{processor:16.2f}{share + ' %':>48}")


if __name__ == "__main__":
    main()
