"""What preparing a benchmark costs beside merely decoding and encoding the same files on the same cores.

    python benchmarks/preparing.py ../shared/samples

The folder holds real samples, ``ade20k`` and ``cityscapes`` in their official layouts; copies of them under further
names make a set of some size, as a folder, a .zip and a .tar.gz. The yardsticks read the same files from the folder
with as many threads, decode picture and label, encode the label as PNG, and map and check nothing; the second also
writes the picture and the label, since making two files may take longer than all the rest. Runs alternate; the figures
are medians, a speed is yardstick / preparing. All files are in the folder for temporary files: TMPDIR=/dev/shm keeps
the disk out.
"""

import argparse
import os
import re
import shutil
import statistics
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice, repeat
from pathlib import Path

import cv2
import numpy as np

from cssformer.prepare import ade20k, cityscapes
from cssformer.prepare.benchmark import prepare_benchmark

REPEATS = 5
SETS = {
    "ade20k": (ade20k.BENCHMARK, 1000, r"ADE_train_(\d{8})", "ADE_train_{:08}"),
    "cityscapes": (cityscapes.BENCHMARK, 100, r"aachen_(\d{6})_000019", "aachen_{:06}_000019"),
}


def replicate(samples: Path, folder: Path, count: int, pattern: str, name: str) -> list[tuple[Path, Path]]:
    """Copy the training pairs of ``samples`` under ``count`` names; return the pairs of files."""
    pairs: dict[str, list[Path]] = {}
    for path in sorted(samples.rglob("*")):
        if path.is_file() and "instanceIds" not in path.name and (found := re.search(pattern, path.name)):
            pairs.setdefault(found[1], []).append(path)
    made = []
    for number, pair in enumerate(islice(cycle(pairs.values()), count)):
        copies = []
        for path in pair:
            copy = folder / path.relative_to(samples).with_name(re.sub(pattern, name.format(number), path.name))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
            copies.append(copy)
        image, label = sorted(copies, key=lambda path: "annotations" in path.parts or "gtFine" in path.parts)
        made.append((image, label))
    return made


def decode_and_encode(pair: tuple[Path, Path], output: Path | None) -> None:
    image, label = (np.frombuffer(path.read_bytes(), np.uint8) for path in pair)
    cv2.imdecode(image, cv2.IMREAD_COLOR)
    encoded = cv2.imencode(".png", cv2.imdecode(label, cv2.IMREAD_UNCHANGED))[1]
    if output is not None:
        (output / pair[0].name).write_bytes(image)
        (output / pair[1].with_suffix(".label.png").name).write_bytes(encoded)


def yardstick(pairs: list[tuple[Path, Path]], output: Path | None = None) -> None:
    if output is not None:
        output.mkdir()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(decode_and_encode, pairs, repeat(output)))


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(title: str, samples: Path, folder: Path) -> None:
    benchmark, count, pattern, name = SETS[title]
    source = folder / "source"
    pairs = replicate(samples / title, source, count, pattern, name)
    with zipfile.ZipFile(folder / "source.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("*")):
            archive.write(path, path.relative_to(source))
    with tarfile.open(folder / "source.tar.gz", "w:gz") as tar:
        tar.add(source, ".")
    sources = [source, folder / "source.zip", folder / "source.tar.gz"]
    yardstick(pairs)  # the files are in the system's cache from here on
    output = folder / "output"
    plain: list[float] = []
    written: list[float] = []
    ours: dict[Path, list[float]] = {path: [] for path in sources}
    for _ in range(REPEATS):
        plain.append(seconds(partial(yardstick, pairs)))
        written.append(seconds(partial(yardstick, pairs, output)))
        shutil.rmtree(output)
        for path in sources:
            ours[path].append(seconds(partial(prepare_benchmark, benchmark, [path], output, partial=True)))
            shutil.rmtree(output)
    base, with_files = statistics.median(plain), statistics.median(written)
    print(f"{title}, {count} pictures")
    print(f"  decoding and encoding    {count / base:7.0f} pictures/s")
    print(f"  these and writing        {count / with_files:7.0f} pictures/s")
    for path in sources:
        median = statistics.median(ours[path])
        kind = path.name.removeprefix("source") or "folder"
        ratios = f"{base / median:8.2f} of the first, {with_files / median:.2f} of the second"
        print(f"  prepared from {kind:11}{count / median:7.0f} pictures/s{ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, help="folder with ade20k/ and cityscapes/")
    samples = parser.parse_args().samples
    print(f"{os.cpu_count()} cores, OpenCV {cv2.__version__}")
    for title in SETS:
        with tempfile.TemporaryDirectory() as folder:
            measure(title, samples, Path(folder))


if __name__ == "__main__":
    main()
