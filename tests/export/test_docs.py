"""ONNX Runtime: the program of docs/howto/onnx_runtime.md, which needs neither this package nor PyTorch; telemetry."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cssformer import Predictor
from cssformer.export import export_model
from tests.export.test_export import BASELINE, network, picture

pytest.importorskip("onnxruntime")
DOCS = Path(__file__).parents[2] / "docs" / "howto" / "onnx_runtime.md"


def test_it_labels_a_picture(tmp_path: Path) -> None:
    model = network(**BASELINE)
    export_model(model, tmp_path / "model.onnx", input="uint8", returns=("labels", "confidence"))
    Image.fromarray(picture(75, 101)).save(tmp_path / "photo.jpg", quality=100)
    (program,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert "cssformer" not in program and "torch" not in program
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = Predictor(model, "cpu")(tmp_path / "photo.jpg")
    found = np.asarray(Image.open(tmp_path / "labels.png"))
    colours = np.array(expected.colours, np.uint8)
    assert np.mean(found == colours[expected.labels]) > 0.999
    assert set(re.findall(r"^(\w) ", done.stdout, re.MULTILINE)) == set(expected.shares)


def test_onnx_runtime_tells_nobody_of_its_use(tmp_path: Path) -> None:
    """Not in what this package has imported; where it does, it leaves a name of this machine in these folders."""
    folders = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), str(tmp_path))
    subprocess.run([sys.executable, "-c", "import onnxruntime"], env={**os.environ, **folders}, check=True)
    assert not list(tmp_path.iterdir())
