"""What scoring costs beside the network.

    python benchmarks/evaluation.py labels
    python benchmarks/evaluation.py share --network demo --pictures 24
    python benchmarks/evaluation.py large

``labels``: from class scores at stride 4 to a confusion matrix. For a picture of 2048x1024 pixels: time and additional
memory of our up-sampling, argmax and confusion matrix against the plain way (``F.interpolate``, ``argmax``,
``bincount``), with 19 and 150 classes, for scores as smooth as a network gives and for noise, the worst case. Each
measurement has a process of its own, because memory is read off its peak (Linux only).

``share``: all that ``cssformer evaluate`` does on pictures of 2048x1024 with 19 classes (reading PNGs, network, labels,
scores, contours), as a share of what the network alone takes for them, in turns of a few pictures each. Networks are
untrained: ``demo`` is that of the demonstration, ``paper`` the paper's on Swin-T.

``large``: seconds and peak memory of ``predict`` and ``evaluate`` for one picture of 12000x9000, the demonstration's
network sliding over it, each in a process of its own (Linux only).
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cssformer import CSSFormer
from cssformer.data import DatasetInfo, SegmentationFolder
from cssformer.data.dataset_info import distinct_colours
from cssformer.inference import predict, predict_files
from cssformer.inference.labels import Segmentation, View, assembled, segment
from cssformer.metrics import Scorer, evaluate
from cssformer.metrics.confusion import confusion

HEIGHT, WIDTH = 1024, 2048
REPEATS = 5
CLASSES = 19
NETWORKS = {
    "demo": {"backbone": "resnet10t", "channels": 64, "heads": 4, "points": 4},
    "paper": {"backbone": "swin_tiny_patch4_window7_224"},
}
LARGE = (9000, 12000)


def plain(coarse: Tensor, label: Tensor) -> Tensor:
    classes = coarse.shape[1]
    prediction = F.interpolate(coarse, scale_factor=4, mode="bilinear")[..., :HEIGHT, :WIDTH].argmax(1)
    scored = label >= 0
    pairs = label[scored] * classes + prediction[scored]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def segmentation(coarse: Tensor, confidence: bool) -> Segmentation:
    view = View(lambda first, last, row: iter([coarse]), (HEIGHT, WIDTH), (HEIGHT, WIDTH), coarse.device)
    return assembled(segment([view], confidence), HEIGHT, WIDTH)


def ours(coarse: Tensor, label: Tensor) -> Tensor:
    return confusion(segmentation(coarse, confidence=False).labels, label, coarse.shape[1])


def plain_confidence(coarse: Tensor, label: Tensor) -> Tensor:
    return F.interpolate(coarse, scale_factor=4, mode="bilinear").softmax(1).max(1).values


def our_confidence(coarse: Tensor, label: Tensor) -> Tensor | None:
    return segmentation(coarse, confidence=True).confidence


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


def labels() -> None:
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


def prepare(root: Path, size: tuple[int, int], count: int, regions: tuple[int, int]) -> SegmentationFolder:
    """A validation split whose labels are ``regions`` blobs down and across, some with an ignored part."""
    height, width = size
    colours = np.array(distinct_colours(CLASSES), np.uint8)
    for kind in ("images", "labels"):
        (root / "val" / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        best, label = np.full(size, -9, np.float32), np.zeros(size, np.uint8)
        for candidate in range(CLASSES):
            score = cv2.resize(rng.standard_normal(regions, np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
            label[score > best] = candidate
            np.maximum(best, score, out=best)
        image = cv2.add(colours[label] // 2, rng.integers(0, 16, (height, width, 1), np.uint8).repeat(3, 2))
        label[-height // 10 :] = 255
        suffix = "jpg" if height > HEIGHT else "png"
        cv2.imwrite(str(root / "val" / "images" / f"{index}.{suffix}"), image)
        cv2.imwrite(str(root / "val" / "labels" / f"{index}.png"), label)
    DatasetInfo(tuple(map(str, range(CLASSES))), distinct_colours(CLASSES)).save(root)
    return SegmentationFolder(root, "val")


class Part:
    """Some pictures of a split."""

    def __init__(self, whole: SegmentationFolder, first: int, count: int) -> None:
        self.whole, self.first, self.count, self.info = whole, first, count, whole.info

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple:
        return self.whole[self.first + index]


def build(network: str) -> CSSFormer:
    torch.manual_seed(0)
    return CSSFormer(num_classes=CLASSES, aux=False, **NETWORKS[network]).eval()


def seconds(function: Callable[[], object]) -> np.ndarray:
    """On the clock, and of the processor on all threads."""
    clock, processor = time.perf_counter(), time.process_time()
    function()
    return np.array((time.perf_counter() - clock, time.process_time() - processor))


def share(network: str, pictures: int, turn: int) -> None:
    model = build(network)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder), (HEIGHT, WIDTH), pictures, (12, 24))
        scorer = Scorer(data.info)

        def alone(images: list[Tensor]) -> None:
            with torch.inference_mode():
                for image in images:
                    model.forward_logits(image.float() / 255)

        alone_s, all_s = [], []
        for first in range(0, pictures, turn):
            part = Part(data, first, min(turn, pictures - first))
            images = [torch.from_numpy(part[index].image[None]).permute(0, 3, 1, 2) for index in range(len(part))]
            if first == 0:
                evaluate(model, Part(data, 0, 1)).as_dict()  # compiles kernels, takes memory
            alone_s.append(seconds(lambda images=images: alone(images)))
            all_s.append(seconds(lambda part=part: evaluate(model, part).as_dict()))
        clock, processor = 100 * (np.sum(all_s, 0) / np.sum(alone_s, 0) - 1)
        turns = sorted(100 * (whole[0] / only[0] - 1) for whole, only in zip(all_s, alone_s, strict=True))
        print(
            f"{network}: {pictures} pictures of {WIDTH}x{HEIGHT}, {CLASSES} classes, {torch.get_num_threads()} threads"
        )
        print(f"network alone {1000 * np.sum(alone_s, 0)[0] / pictures:8.0f} ms a picture")
        print(f"evaluate      {1000 * np.sum(all_s, 0)[0] / pictures:8.0f} ms a picture")
        print(f"added         {clock:8.1f} % of the clock (median turn {turns[len(turns) // 2]:.1f} %)")
        print(f"              {processor:8.1f} % of the processor")
        _, image, label = data[0]
        prediction = predict(model, torch.from_numpy(image).permute(2, 0, 1)).labels.numpy()
        distance = scorer.distance(label)
        for title, work in (
            ("reading picture and label", lambda: data[0]),
            ("distances from the truth's contours", lambda: scorer.distance(label)),
            ("counting, contours of the prediction", lambda: scorer.count(prediction, label, distance)),
        ):
            print(f"  {title:38}{1000 * min(seconds(work)[0] for _ in range(REPEATS)):6.1f} ms")


def large() -> None:
    height, width = LARGE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder / "data", LARGE, 1, (30, 40))
        build("demo").save_pretrained(folder / "model")
        pixels = height * width
        print(f"{width}x{height}: the picture takes {3 * pixels / 2**20:.0f} MB, {torch.get_num_threads()} threads")
        context = multiprocessing.get_context("spawn")
        for title, function in (
            ("predict a picture of 2000x1500", predict_small),
            ("predict", predict_large),
            ("predict --overlay --confidence", predict_large_drawn),
            ("evaluate", evaluate_large),
        ):
            with context.Pool(1) as pool:
                took, peak = pool.apply(peak_of, (function, folder))
            print(f"{title:50}{took:8.0f} s {peak:8.0f} MB", flush=True)


def peak_of(function: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """Seconds, and the peak of this process's memory in MB."""
    start = time.perf_counter()
    function(folder)
    return time.perf_counter() - start, memory("VmHWM")


def predict_small(folder: Path) -> None:
    """What libraries and windows take, whatever the picture's size."""
    cv2.imwrite(str(folder / "small.png"), np.zeros((1500, 2000, 3), np.uint8))
    predict_files(str(folder / "model"), [folder / "small.png"], folder / "out", mode="slide", crop=(512, 512))


def predict_large(folder: Path, drawn: bool = False) -> None:
    picture, model = folder / "data" / "val" / "images" / "0.jpg", str(folder / "model")
    options = {"overlay": drawn, "confidence": drawn}
    predict_files(model, [picture], folder / "out", mode="slide", crop=(512, 512), **options)


def predict_large_drawn(folder: Path) -> None:
    predict_large(folder, drawn=True)


def evaluate_large(folder: Path) -> None:
    model = CSSFormer.from_pretrained(folder / "model")
    evaluate(model, SegmentationFolder(folder / "data", "val"), mode="slide", crop=(512, 512)).as_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("labels", "share", "large"))
    parser.add_argument("--network", choices=tuple(NETWORKS), default="demo")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--turn", type=int, default=8, help="pictures until the other one's turn comes")
    options = parser.parse_args()
    if options.what == "share":
        share(options.network, options.pictures, options.turn)
    else:
        {"labels": labels, "large": large}[options.what]()


if __name__ == "__main__":
    sys.exit(main())
