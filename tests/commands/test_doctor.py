"""What is told of a machine, and which machines have a problem."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numba
import pytest
import torch

from cssformer.cli import main
from cssformer.commands import doctor
from cssformer.utils.errors import UserError


def test_a_sound_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**33))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert main(["doctor", "--json", str(tmp_path / "found.json")]) == 0
    found, said = json.loads((tmp_path / "found.json").read_text()), capsys.readouterr().out
    assert found["problems"] == [] and len(said.splitlines()) < 25
    assert (
        f"torch {torch.__version__}"[:12] in found["facts"]["packages"] and "missing" not in found["facts"]["packages"]
    )
    assert "8.0 GiB free" in said
    assert torch.cuda.is_available() or "--model.init animals" in said
    assert [f"`{extra}`" in "".join(found["advice"]) for extra in found["extras"]] == list(
        map(bool, found["extras"].values())
    )


def test_what_will_fail_is_a_problem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**26))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "--training.workers 0" in said and "Less than 1.0 GiB of the disk" in said


def test_torchvision_of_another_build_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wheel of PyPI beside PyTorch's build for CPUs, which pip takes for a pair."""

    class Unfit(ModuleType):
        def __getattr__(self, name: str) -> None:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "cssformer.backbones")
    monkeypatch.setitem(sys.modules, "cssformer.backbones.adapter", Unfit("adapter"))
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    with pytest.raises(UserError, match=r"torchvision .* built for another PyTorch .* 2\.13\.0\+cpu"):
        importlib.import_module("cssformer.backbones")
    assert main(["doctor"]) == 1
    assert "pip install --force-reinstall torch torchvision --index-url" in capsys.readouterr().out


def test_where_kernels_are_kept(tmp_path: Path) -> None:
    def kept(folder: Path | None) -> tuple[str, str | None]:
        return doctor._kernels_cache(None if folder is None else str(folder))

    uncached = numba.njit(lambda: 0)
    where, doubt = kept(uncached.stats.cache_path)
    assert where == "none" and doubt is not None and "NUMBA_CACHE_DIR" in doubt
    assert kept(tmp_path / "not" / "yet") == (f"{tmp_path}/not/yet, cold", None)
    (tmp_path / "numba_forward.softmax-1.py311.nbi").touch()
    assert kept(tmp_path) == (f"{tmp_path}, warm", None)
