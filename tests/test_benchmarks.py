"""The program that measures a GPU, where there is none, and the networks of others that benchmarks build."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(GPU.parent)
    monkeypatch.delitem(sys.modules, "turns", raising=False)
    return importlib.import_module("turns")


@pytest.fixture
def network(turns: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delitem(sys.modules, "network", raising=False)
    return importlib.import_module("network")


@pytest.mark.parametrize(
    ("name", "package", "shape"),
    [("dfine-n", "dfine_seg", (1, 150, 64, 64)), ("yolo26n-sem", "ultralytics", (1, 150, 8, 8))],
)
def test_networks_of_optional_packages_end_with_scores(
    turns: Any, network: Any, name: str, package: str, shape: tuple[int, ...]
) -> None:
    pytest.importorskip(package)
    found = network.Tensors(turns.build(name, 64).eval())(torch.rand(1, 3, 64, 64))
    (scores,) = found if isinstance(found, tuple) else (found,)
    assert scores.shape == shape


def test_without_its_package_a_network_is_refused_in_a_sentence(turns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "find_spec", lambda module: None)
    for name in turns.OPTIONAL:
        options = SimpleNamespace(serve=None, networks=["base", name], against=None, json=None)
        with pytest.raises(SystemExit, match=rf"^error: {name} needs \w+, which is not installed; .* pip install"):
            turns.serve_or_compare(options, None, None)
    options.networks = list(turns.NETWORKS)
    turns.serve_or_compare(options, None, lambda *_: [])


def test_eomt_is_counted_as_by_hand_and_answers_with_masks(turns: Any, network: Any) -> None:
    pytest.importorskip("transformers")
    eomt, images = turns.build("eomt", 64).eval(), torch.rand(1, 3, 64, 64)
    counted, layers = network.multiply_adds(eomt, images), 0

    def add(layer: Any, given: tuple[Tensor], found: Tensor) -> None:
        nonlocal layers
        weights = layer.in_features if isinstance(layer, nn.Linear) else layer.weight[0].numel()
        layers += weights * (given[0] if isinstance(layer, nn.ConvTranspose2d) else found).numel()

    for layer in eomt.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(add)
    with torch.no_grad():
        classes, masks, _ = network.Tensors(eomt)(images)
    assert classes.shape == (1, 100, 151) and masks.shape == (1, 100, 16, 16)
    tokens = 4 * 4 + 5  # the class's and four registers too; 100 queries in the last three of twelve layers
    attention = 2 * 384 * (9 * tokens**2 + 3 * (tokens + 100) ** 2)
    assert counted == layers + attention + 100 * 384 * 16 * 16


def test_a_process_that_dies_costs_its_own_row_alone(
    turns: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "child.py").write_text(
        "import json, os, sys\n"
        "print('ready', flush=True)\n"
        "for turn, _ in enumerate(sys.stdin):\n"
        "    if turn == json.loads(sys.argv[2])['turns']:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    print(1.5, 2.5, flush=True)\n"
        "print(30, 40, flush=True)\n"
    )
    children = [turns.Child(str(tmp_path / "child.py"), {"turns": most}) for most in (1, 9)]
    ((child, *numbers),) = turns.in_turns(children, 3)
    assert child is children[1] and child.clock == [1.5] * 3 and numbers == [30, 40]
    assert "{'turns': 1}: does not run (ended with -9, -9 where memory is short)" in capsys.readouterr().out
