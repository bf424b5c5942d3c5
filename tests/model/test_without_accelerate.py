"""The network knows nothing of what makes it fast: ``accelerate`` can be deleted."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cssformer

PACKAGE = Path(cssformer.__file__).parent
PROGRAM = """
import json, torch
from cssformer import CSSFormer
torch.manual_seed(0)
model = CSSFormer("test_resnet", 3, channels=8, heads=2, points=1, dropout=0.0)
images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
output = model(images)
output.logits.sum().backward()
with torch.no_grad():
    logits = model.eval()(images)
print(json.dumps(logits.flatten()[:50].tolist()))
"""


def imported(source: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("folder", ["model", "backbones", "ops", "weights", "data", "visualize", "utils"])
def test_none_of_these_imports_it(folder: str) -> None:
    sources = list((PACKAGE / folder).rglob("*.py"))
    assert sources
    for source in sources:
        assert not [name for name in imported(source) if name.startswith("cssformer.accelerate")], source


def test_a_network_trains_and_predicts_the_same_without_the_folder(tmp_path: Path) -> None:
    def run(package: Path) -> str:
        environment = {**os.environ, "PYTHONPATH": str(package.parent)}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shutil.copytree(PACKAGE, tmp_path / "cssformer", ignore=shutil.ignore_patterns("accelerate", "__pycache__"))
    assert not (tmp_path / "cssformer" / "accelerate").exists()
    assert run(tmp_path / "cssformer") == run(PACKAGE)
