"""Preparing a COCO export, relative to decoding and encoding the same files, and the memory it takes.

    TMPDIR=/dev/shm python benchmarks/prepare_coco.py [--pictures 5000]

Photograph-like JPEGs of 640x480 with 7 annotations each, as many as COCO has on average: polygons, and one run-length
mask. The yardstick decodes each picture and its label, encodes the label and writes both, on as many threads. Median of
three runs, run in turn. Preparing waits at its end until all is on the disk, the yardstick does not; so TMPDIR, which
needs room for four copies of the files, is best in memory.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask

from cssformer.data.image_io import encode_png
from cssformer.prepare.coco import read
from cssformer.prepare.export import prepare_export

HEIGHT, WIDTH, REPEATS = 480, 640, 3


def make(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        small = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
        picture = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"images/{number:06}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
        images.append({"id": number, "file_name": f"{number:06}.jpg", "width": WIDTH, "height": HEIGHT})
        for index in range(7):
            angles, (x, y) = np.sort(rng.uniform(0, 2 * np.pi, 24)), rng.uniform((50, 50), (WIDTH - 50, HEIGHT - 50))
            radii = rng.uniform(0.7, 1) * rng.choice([20, 40, 80, 160]) * rng.uniform(0.7, 1, 24)
            points = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1).clip(0, (WIDTH, HEIGHT))
            polygon = [points.round(2).ravel().tolist()]
            runs = mask.merge(mask.frPyObjects(polygon, HEIGHT, WIDTH))
            packed = {"size": runs["size"], "counts": runs["counts"].decode()}
            own = {"id": len(annotations), "image_id": number, "category_id": 1 + index % 5}
            annotations.append({**own, "segmentation": packed if index == 0 else polygon})
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 6)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def yardstick(pictures: list[Path], labels: list[Path], output: Path) -> None:
    output.mkdir()

    def work(pair: tuple[Path, Path]) -> None:
        image, label = (path.read_bytes() for path in pair)
        cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
        values = cv2.imdecode(np.frombuffer(label, np.uint8), cv2.IMREAD_UNCHANGED)
        (output / pair[0].name).write_bytes(image)
        (output / pair[1].name).write_bytes(encode_png(values))

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(work, zip(pictures, labels, strict=True)))


def prepare(folder: Path, output: Path) -> tuple[int, int]:
    """Prepare; how many MiB the process had taken at most before, and has now."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prepare_export(read, [folder], output)
    return before // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Of the clock and of the processor."""
    start, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=5000)
    count = parser.parse_args().pictures
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In processes of their own, so that the peak is that of preparing alone.
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as alone:
            alone.submit(make, folder / "in", count).result()
            before, peak = alone.submit(prepare, folder / "in", folder / "first").result()
        pictures = sorted(folder.glob("first/*/images/*"))
        labels = sorted(folder.glob("first/*/labels/*"))
        plain, ours = [], []
        for _ in range(REPEATS):
            plain.append(seconds(lambda: yardstick(pictures, labels, folder / "plain")))
            shutil.rmtree(folder / "plain")
            ours.append(seconds(lambda: prepare(folder / "in", folder / "ours")))
            shutil.rmtree(folder / "ours")
        size = (folder / "in/annotations.json").stat().st_size / 2**20
    print(f"{count} pictures, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for kind, spent in (("decoding and encoding", plain), ("preparing", ours)):
        clock, used = (statistics.median(each) for each in zip(*spent, strict=True))
        base = [statistics.median(each) for each in zip(*plain, strict=True)]
        print(
            f"{kind:22} {count / clock:6.0f} pictures/s ({base[0] / clock:.2f} of the first), "
            f"{1000 * used / count:.2f} ms of the processor each ({base[1] / used:.2f})"
        )
    print(f"peak {peak} MiB: {before} before, and annotations of {size:.0f} MiB")


if __name__ == "__main__":
    main()
