"""Preparing a COCO export, relative to decoding and encoding the same files, and the memory it takes.

    python benchmarks/prepare_coco.py [--pictures 400]

Photograph-like JPEGs of 640x480 with 7 annotations each, as many as COCO has on average: polygons, and one run-length
mask. The yardstick decodes each picture and encodes its label, on as many threads. Median of three runs, run in turn.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=400)
    count = parser.parse_args().pictures
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "in", count)
        prepare_export(read, [folder / "in"], folder / "first")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        pictures = sorted(folder.glob("first/*/images/*"))
        labels = sorted(folder.glob("first/*/labels/*"))
        plain, ours = [], []
        for _ in range(REPEATS):
            start = time.perf_counter()
            yardstick(pictures, labels, folder / "plain")
            plain.append(time.perf_counter() - start)
            shutil.rmtree(folder / "plain")
            start = time.perf_counter()
            prepare_export(read, [folder / "in"], folder / "ours")
            ours.append(time.perf_counter() - start)
            shutil.rmtree(folder / "ours")
        base, median = statistics.median(plain), statistics.median(ours)
        load = os.getloadavg()[0]
        print(f"{count} pictures, {os.cpu_count()} cores, load {load:.1f}")
        print(f"decoding and encoding {count / base:6.0f} pictures/s")
        print(
            f"prepared              {count / median:6.0f} pictures/s, {base / median:.2f} of the first; peak {peak} MiB"
        )


if __name__ == "__main__":
    main()
