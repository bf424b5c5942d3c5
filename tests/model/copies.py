"""Copies of the package, each run in a process that is forked once the libraries, which are alike, are imported."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import cssformer

FORKED = """
import os, sys
import cv2, huggingface_hub, lightning.pytorch, numba, timm, torch
for folder in sys.argv[1:]:
    if os.fork() == 0:
        sys.path.insert(0, folder)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), stream)
        break
else:
    sys.exit(any([os.wait()[1] for _ in sys.argv[1:]]))
exec(open(f"{folder}/program.py").read())
"""


def copied(folder: Path, without: str = "") -> Path:
    """A folder with a copy of the package, and what Python and numba have compiled, which takes half a minute."""
    ignored = shutil.ignore_patterns(without) if without else None
    shutil.copytree(Path(cssformer.__file__).parent, folder / "cssformer", ignore=ignored)
    return folder


def run(programs: Mapping[Path, str]) -> list[tuple[str, str]]:
    """What the program of each folder prints with the folder's package, and its log; ``folder`` is its name there."""
    for folder, program in programs.items():
        (folder / "program.py").write_text(program, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", FORKED, *programs], env=environment, capture_output=True, text=True)
    told = [((folder / "out").read_text(), (folder / "err").read_text()) for folder in programs]
    assert done.returncode == 0, (done.stderr, told)
    return told
