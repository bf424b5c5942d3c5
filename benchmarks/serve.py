"""`cssformer serve` under load: clients that ask as fast as they are answered.

    python benchmarks/serve.py                       # eight clients for two minutes, a small untrained network
    python benchmarks/serve.py runs/mine --clients 20 --seconds 30 --side 512

The queue holds half of the clients, so that the others are told that the server is busy and come again. Told is how
many pictures a second were labelled, how often "busy" was said, the waiting times of those who were not, and the
server's memory (resident, in MB) over time. It ends with exit code 1 after any answer but 200 and 503.
"""

import argparse
import io
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from cssformer import CSSFormer
from cssformer.data import SyntheticScenes
from cssformer.utils.console import show


def resident(process: int) -> float:
    """MB of main memory that a process holds (Linux)."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmRSS:\s*(\d+) kB", status)[0]) / 1024


def ask(address: str, picture: bytes) -> int:
    """The status of the answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}predict", picture), timeout=120) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        error.read()
        return error.code
    except OSError as error:
        print(f"no answer: {error}")
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="as for cssformer serve; else an untrained ResNet-10-T")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--side", type=int, default=320, help="of the square pictures")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.model is None:
            CSSFormer(backbone="resnet10t", num_classes=21, channels=64, aux=False).save_pretrained(folder)
        command = ["-m", "cssformer.cli", "serve", given.model or folder, "--port=0", f"--queue={given.clients // 2}"]
        server = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        address = re.findall(r"http\S+:\d+/", server.stdout.readline())[0]
        pictures = []
        for scene in SyntheticScenes(8, (given.side, given.side)):
            file = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(scene.image)).save(file, "JPEG")
            pictures.append(file.getvalue())
        statuses: Counter[int] = Counter()
        waits: list[float] = []
        memory: list[float] = []
        lock, end = threading.Lock(), time.monotonic() + given.seconds

        def client(number: int) -> None:
            while (begun := time.monotonic()) < end:
                status = ask(address, pictures[number % len(pictures)])
                with lock:
                    statuses[status] += 1
                    if status == 200:
                        waits.append(time.monotonic() - begun)
                if status == 503:
                    time.sleep(0.2)

        ask(address, pictures[0])
        clients = [threading.Thread(target=client, args=(number,)) for number in range(given.clients)]
        for each in clients:
            each.start()
        while any(each.is_alive() for each in clients):
            memory.append(resident(server.pid))
            time.sleep(1)
        server.send_signal(signal.SIGINT)
        code = server.wait()
    settled = memory[len(memory) // 4 :]
    show(
        [
            ("pictures labelled", f"{statuses[200]}, {statuses[200] / given.seconds:.1f} a second"),
            ("told to come again", str(statuses[503])),
            ("other answers", str(sum(statuses.values()) - statuses[200] - statuses[503])),
            ("waiting time", f"median {np.median(waits):.2f} s, longest {max(waits):.2f} s"),
            ("memory", f"{memory[0]:.0f} MB at first, {settled[0]:.0f} after a quarter, {settled[-1]:.0f} at the end"),
            ("exit code after Ctrl-C", str(code)),
        ]
    )
    return int(bool(set(statuses) - {200, 503}) or not statuses[200])


if __name__ == "__main__":
    sys.exit(main())
