"""Every check and figure of a GPU in one file: the tests marked gpu, the sampling kernels, networks, training steps.

    make bench-gpu                       # or: python benchmarks/gpu.py --output gpu.txt

Each part runs in a process of its own and is stopped after its share of eight minutes; the file tells which were. The
sampling kernels stand beside transformers' deformable attention.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
FAMILY = ["--networks", "base", "small", "nano"]
PEERS = ["smp-fpn", "smp-segformer", "smp-upernet", "upernet", "mask2former"]
PARTS = {
    "the tests marked gpu": (100, ["-m", "pytest", "-m", "gpu", "-rfEs", str(HERE.parent / "tests")]),
    "sampling, float32": (70, [str(HERE / "sampling.py"), "--device", "cuda"]),
    "sampling, bfloat16": (50, [str(HERE / "sampling.py"), "--device", "cuda", "--dtype", "bfloat16"]),
    "networks": (110, [str(HERE / "network.py"), "--device", "cuda", *FAMILY, "backbone", *PEERS, "maskformer"]),
    "networks, eight pictures": (60, [str(HERE / "network.py"), "--device", "cuda", *FAMILY, *PEERS, "--batches", "8"]),
    "training steps": (90, [str(HERE / "training.py"), "--device", "cuda", *FAMILY, *PEERS, "--batches", "8x512"]),
}
"""Title: seconds at most, and Python's arguments."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.txt"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: There is no CUDA device here; run this on a machine with one.")
    begun = time.perf_counter()
    with options.output.open("w", encoding="utf-8") as file:

        def tell(text: str) -> None:
            print(text, flush=True)
            print(text, file=file, flush=True)

        tell(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
        failed = []
        for title, (most, arguments) in PARTS.items():
            start = time.perf_counter()
            try:
                command = [sys.executable, *arguments]
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=most
                )
                said, how = done.stdout, "done" if done.returncode == 0 else f"FAILED ({done.returncode})"
            except subprocess.TimeoutExpired as stopped:
                said, how = (stopped.stdout or b"").decode(errors="replace"), f"STOPPED after {most} s"
            failed += [] if how == "done" else [title]
            tell(f"\n== {title}: {how}, {time.perf_counter() - start:.0f} s\n{said.strip()}")
        words = f"not whole: {', '.join(failed)}" if failed else "all parts done"
        tell(f"\n{words}, {time.perf_counter() - begun:.0f} s")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
