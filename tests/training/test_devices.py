"""Several devices share the declared batch, score the whole validation split, and write one run folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_processes_on_the_cpu_make_one_run(tmp_path: Path) -> None:
    options = {
        "output": tmp_path / "run",
        "training.devices": 2,
        "training.steps": 4,
        "training.batch_size": 4,
        "training.validate_every": 2,
        "training.workers": 0,
        "model.channels": 16,
        "model.heads": 2,
        "scenes.val_count": 3,
        "scenes.size": "[64,64]",
        "augment.crop": "[64,64]",
    }
    # Lightning starts the second process by the words of the first.
    command = [Path(sys.executable).with_name("cssformer"), "train"]
    done = subprocess.run(
        [*command, *(f"--{name}={value}" for name, value in options.items())],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Run folder:") == 1
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert '"pictures": 3' in (tmp_path / "run" / "scores.json").read_text()
