"""What lower precision of exported files costs in mIoU, and what it saves in time and size.

    cssformer export animals --output 32.onnx
    cssformer export animals --output 16.onnx --precision 16
    cssformer export animals --output int8.onnx --precision int8
    cssformer export animals --output calibrated.onnx --precision int8 --calibration data/animals/train/images
    python benchmarks/export_precision.py data/animals animals 32.onnx 16.onnx int8.onnx calibrated.onnx

The models, whatever ``predict`` takes, label the first pictures of the split ``val`` in turns, picture by picture. Told
is the CPU time of a picture on one thread, from pixels to labels at its own size.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from cssformer.data import SegmentationFolder
from cssformer.inference import Predictor
from cssformer.metrics import Scorer
from cssformer.metrics.confusion import percent
from cssformer.utils.console import show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+", help="the first is what the others are compared with")
    parser.add_argument("--pictures", type=int, default=75)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = SegmentationFolder(options.data, "val")
    predictors = {model: Predictor.from_pretrained(model, "cpu") for model in options.models}
    scorers = {model: Scorer(data.info) for model in predictors}
    times, equal = {model: [] for model in predictors}, {model: [] for model in predictors}
    for index in range(min(options.pictures, len(data))):
        name, image, truth = data[index]
        labels = {}
        for model, predictor in predictors.items():
            start = time.process_time()
            labels[model] = predictor(image, confidence=False).labels
            times[model].append(time.process_time() - start)
            scorers[model].add(name, scorers[model].count(labels[model], truth))
            equal[model].append(np.mean(labels[model] == labels[options.models[0]]))
    rows = [
        (
            model,
            percent(scorer.result().scores.miou),
            f"{100 * np.mean(equal[model]):.2f} %",
            f"{np.median(times[model]):.3f}",
            f"{Path(model).stat().st_size / 1e6:.1f}" if Path(model).is_file() else "-",
        )
        for model, scorer in scorers.items()
    ]
    show([("model", "mIoU", "equal labels", "seconds", "MB"), *rows])


if __name__ == "__main__":
    main()
