"""A GeoTIFF larger than what fits the memory beside a network: peak memory and time of ``cssformer predict``.

    python benchmarks/rasters.py --side 20000
    python benchmarks/rasters.py --side 9000 12000 --network cheap --drawn
    python benchmarks/rasters.py --side 20000 --killed

Each side has a process of its own, because memory is read off its peak (Linux only). The raster is square, of three
bands of 8 bits, tiled and compressed, in a temporary folder that is removed; predictions lie beside it. Networks are
untrained: ``demo`` is that of the demonstration; ``cheap`` only averages the colours of each cell of 4x4 pixels, so
that reading, labelling and writing are left. ``--killed`` predicts once more, kills the process outright half-way,
goes on in another and compares the files.
"""

import argparse
import filecmp
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from torch import Tensor

from cssformer import CSSFormer
from cssformer.inference import predict_files
from cssformer.utils.malloc import keep_freed_memory

CLASSES = 19
LIMIT_MB = 3072
NETWORK = {"backbone": "resnet10t", "channels": 64, "heads": 4, "points": 4}
ROWS = 512


def average(model: CSSFormer, images: Tensor) -> Tensor:
    means = F.avg_pool2d(F.pad(images, (0, -images.shape[3] % 4, 0, -images.shape[2] % 4), mode="replicate"), 4)
    return torch.cat([means * factor for factor in range(CLASSES // 3 + 1)], 1)[:, :CLASSES]


def memory(field: str) -> float:
    """A figure of this process in MB; VmHWM is the peak of its memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def make(path: Path, side: int) -> None:
    """Noise of two scales, a block of rows at a time."""
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8", "photometric": "rgb"}
    profile |= {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6), "nodata": 0}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1}
    rng = np.random.default_rng(0)
    with rasterio.open(path, "w", **profile) as file:
        for top in range(0, side, ROWS):
            rows = min(ROWS, side - top)
            coarse = rng.integers(1, 200, (3, -(-rows // 64), -(-side // 64)), dtype=np.uint8)
            block = coarse.repeat(64, 1).repeat(64, 2)[:, :rows, :side]
            block = block + rng.integers(0, 16, (1, rows, side), dtype=np.uint8)
            file.write(block, window=((top, top + rows), (0, side)))


def run(folder: Path, output: Path, side: int, cheap: bool, drawn: bool) -> tuple[float, float, float, float]:
    """Seconds on the clock and of the processor, and peak memory in MB before the prediction and after."""
    keep_freed_memory()
    if cheap:
        CSSFormer.forward_logits = average
    model = str(folder / "model")
    before, clock, processor = memory("VmHWM"), time.perf_counter(), time.process_time()
    options = {"mode": "slide", "crop": (512, 512), "overlay": drawn, "confidence": drawn}
    predict_files(model, [folder / f"{side}.tif"], output, **options)
    return time.perf_counter() - clock, time.process_time() - processor, before, memory("VmHWM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, nargs="+", default=[20000], help="height and width in pixels")
    parser.add_argument("--network", choices=("demo", "cheap"), default="demo")
    parser.add_argument("--drawn", action="store_true", help="write overlay and confidence too")
    parser.add_argument("--killed", action="store_true", help="kill a second prediction half-way and go on")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print(f"{options.network}, {CLASSES} classes, windows of 512x512, {torch.get_num_threads()} threads")
    for side in options.side:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            torch.manual_seed(0)
            CSSFormer(num_classes=CLASSES, aux=False, **NETWORK).save_pretrained(folder / "model")
            make(folder / f"{side}.tif", side)
            megabytes = (folder / f"{side}.tif").stat().st_size / 2**20
            rest = (side, options.network == "cheap", options.drawn)
            with context.Pool(1) as pool:
                took, processor, before, peak = pool.apply(run, (folder, folder / "whole", *rest))
            if options.killed:
                killed = context.Process(target=run, args=(folder, folder / "killed", *rest))
                killed.start()
                killed.join(took / 2)
                killed.kill()
                killed.join()
                with context.Pool(1) as pool:
                    after, *_ = pool.apply(run, (folder, folder / "killed", *rest))
                files = [path.relative_to(folder / "whole") for path in (folder / "whole").rglob("*") if path.is_file()]
                _, *different = filecmp.cmpfiles(folder / "whole", folder / "killed", files, shallow=False)
                differ = [str(name) for names in different for name in names]
                print(f"killed after {took / 2:.0f} s, {after:.0f} s more; of {len(files)} files differ: {differ}")
        print(
            f"{side}x{side}: file {megabytes:.0f} MB, decoded {3 * side**2 / 2**20:.0f} MB; {took:.0f} s, of the "
            f"processor {processor:.0f} s; peak {peak:.0f} MB, of which {before:.0f} MB imports: "
            f"{'below' if peak < LIMIT_MB else 'ABOVE'} {LIMIT_MB} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
