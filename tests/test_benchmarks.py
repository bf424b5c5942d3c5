"""The program that measures a GPU, where there is none."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", GPU)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(tmp_path / "gpu.txt")])
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_in_a_sentence(gpu: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="^error: There is no CUDA device here; run this on a machine with one.$"):
        gpu.main()
    assert not list(tmp_path.iterdir())


def test_every_part_is_told_within_eight_minutes(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(most for most, _ in gpu.PARTS.values()) <= 480
    assert all(Path(argument).exists() for _, words in gpu.PARTS.values() for argument in words if "/" in argument)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    slow = "print('begun', flush=True); import time; time.sleep(60)"
    parts = {"one": (30, "print('figures')"), "two": (30, "raise SystemExit('no')"), "three": (1, slow)}
    monkeypatch.setattr(gpu, "PARTS", {title: (most, ["-c", code]) for title, (most, code) in parts.items()})
    with pytest.raises(SystemExit):
        gpu.main()
    said = (tmp_path / "gpu.txt").read_text()
    assert "== one: done" in said and "figures" in said and "== two: FAILED (1)" in said
    assert "== three: STOPPED after 1 s" in said and "not whole: two, three" in said
