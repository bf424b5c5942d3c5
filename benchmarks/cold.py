"""From the shell to the picture: ``cssformer predict MODEL photo.jpg`` in new processes, beside what it imports.

    python benchmarks/cold.py
    python benchmarks/cold.py --against ../before --rounds 5

In turns, each in a process of its own: ``import torch, timm``; the command for the first time, with nothing compiled
yet; the command later. With ``--against`` the same of another checkout. The network is the demonstration's, untrained,
the photograph of 500x375 random. Then each stage's share, and each kernel's that is compiled, within a process of this
checkout.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parents[1]
COMMAND = "import sys; from cssformer.cli import main; sys.exit(main(sys.argv[1:]))"
NETWORK = """
import torch
from cssformer import CSSFormer
torch.manual_seed(0)
options = {"backbone": "resnet10t", "channels": 64, "heads": 4, "points": 4}
CSSFormer(num_classes=19, aux=False, **options).save_pretrained("model")
"""
STAGES = """
import time
last = time.process_time()
def stage(name):
    global last
    now = time.process_time()
    print(f"  {name:34}{now - last:6.2f}")
    last = now
import torch; stage("import torch")
import cssformer.inference; stage("import timm and the package")
import cssformer.accelerate; stage("import numba")
from numba.core import event
begun = []
class Compiled(event.Listener):
    def on_start(self, event):
        begun.append(time.process_time())
    def on_end(self, event):
        taken = time.process_time() - begun.pop()
        if not begun:  # else it is part of the kernel that calls it
            print(f"    {event.data['dispatcher'].py_func.__name__:32}{taken:6.2f}")
event.register("numba:compile", Compiled())
network = cssformer.model.SegmentationNetwork.from_pretrained("model").eval(); stage("load")
cssformer.accelerate.accelerate_cpu(network); stage("accelerate: kernels, their proof")
predictor = cssformer.Predictor(network, "cpu"); stage("accelerate again")
found = predictor("photo.jpg", confidence=False); stage("predict")
found.save("labels.png"); stage("write")
"""


def run(folder: Path, tree: Path, program: str, *arguments: str, cache: str = "warm") -> np.ndarray:
    """Seconds on the clock, and of the processor."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "NUMBA_CACHE_DIR": str(folder / cache)}
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    told = None if program == STAGES else subprocess.DEVNULL
    subprocess.run([sys.executable, "-c", program, *arguments], cwd=folder, env=environment, check=True, stdout=told)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return np.array((time.perf_counter() - clock, used))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        trees = {"": HERE, **({"of the other checkout, " if options.against else "": options.against or HERE})}
        found: dict[str, list[np.ndarray]] = {}
        for turn in range(options.rounds):
            for index, (title, tree) in enumerate(trees.items()):
                folder = Path(name) / str(index)
                if turn == 0:
                    folder.mkdir()
                    noise = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
                    Image.fromarray(noise).save(folder / "photo.jpg")
                    run(folder, tree.resolve(), NETWORK)
                found.setdefault("import torch, timm", []).append(run(folder, tree, "import torch, timm"))
                for when, cache in (("first", f"cold{turn}"), ("later", f"cold{turn}")):
                    arguments = ("predict", "model", "photo.jpg", "--output", f"out-{when}-{turn}")
                    taken = run(folder, tree.resolve(), COMMAND, *arguments, cache=cache)
                    found.setdefault(f"{title}{when}", []).append(taken)
        imports = np.median(found["import torch, timm"], 0)
        print(f"{'':34}  clock  processor  of the imports'")
        for title, each in found.items():
            clock, processor = np.median(each, 0)
            print(f"{title:34}{clock:7.2f}{processor:11.2f}{processor / imports[1]:17.2f}")
        for title, cache in (("first", "stages"), ("later", "stages")):
            print(f"{title}, processor:", flush=True)
            run(Path(name) / "0", HERE, STAGES, cache=cache)


if __name__ == "__main__":
    main()
