"""Processes started together share the inputs and write what one writes, bit for bit."""

import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cssformer.cli import main
from cssformer.model import CSSFormer, Metadata
from cssformer.utils import processes
from cssformer.utils.errors import UserError

CLASSES, COLOURS = ("background", "tree", "road"), ((10, 20, 230), (20, 200, 30), (90, 90, 90))
SAVED = ["coco", "geojson", "labelme", "label-studio", "cvat", "yolo"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, pictures, and what one process makes of them."""
    root = tmp_path_factory.mktemp("alone")
    torch.manual_seed(0)
    model = CSSFormer("test_resnet", num_classes=3, channels=16, cia=False, fusion=False)
    model.metadata = Metadata(CLASSES, COLOURS)
    model.save_pretrained(root / "model")
    (root / "in/deep").mkdir(parents=True)
    for index, name in enumerate(("a", "b", "c", "deep/a", "deep/b")):
        pixels = np.random.default_rng(index).integers(0, 256, (30 + index, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"in/{name}.png")
    (root / "in/broken.png").write_bytes(b"no picture")
    (root / "in/notes.txt").write_text("no picture")
    assert main(words(root, "one")) == 1
    return root


def words(root: Path, output: str) -> list[str]:
    folders = [
        str(root / "model"),
        str(root / "in"),
        "--output",
        str(root / output),
        "--json",
        str(root / output / "j"),
    ]
    return ["predict", *folders, "--overlay", "true", "--confidence", "true", "--save", *SAVED, "--device", "cpu"]


def content(folder: Path) -> dict[str, bytes]:
    """Every file, but for the output's own name in the report."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data.replace(str(folder).encode(), b"OUTPUT") for name, data in files.items()}


@pytest.fixture
def srun(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The variables of the other task of a step; this process is the first one."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr(processes, "FIRST_PORT", port)
    step = {"SLURM_JOB_ID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    for name, value in {**step, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    yield {**os.environ, "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "PORT": str(port)}
    processes._leave()
    processes._group.cache_clear()


OTHER = """
import os, sys
from cssformer.utils import processes
processes.FIRST_PORT = int(os.environ["PORT"])
from cssformer.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_two_tasks_of_srun_write_what_one_process_writes(
    alone: Path, srun: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of paths from the standard input, which the first one reads for all."""
    listed = ["-" if word == str(alone / "in") else word for word in words(alone, "two")]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{alone / 'in'}\n"))
    command, pipe = [sys.executable, "-c", OTHER, *listed], subprocess.PIPE
    with subprocess.Popen(command, env=srun, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as other:
        assert main(listed) == 1
        said, complained = other.communicate(timeout=120)
    assert content(alone / "two") == content(alone / "one")
    # The broken file is in the first one's share.
    assert other.returncode == 0 and "picture" not in said and "error" not in complained
    assert "5 pictures written" in capsys.readouterr().out


def test_connections_are_closed_before_the_interpreter_ends(srun: dict[str, str]) -> None:
    """Left open, they aborted one in four processes at their end."""
    share = """
import atexit, os, sys
import torch.distributed
from cssformer.utils import processes
processes.FIRST_PORT = int(os.environ["PORT"])
atexit.register(lambda: print(torch.distributed.is_initialized()))
print(processes.gather(int(os.environ["SLURM_PROCID"])))
"""
    tasks = [{**srun, "SLURM_PROCID": rank} for rank in ("0", "1")]
    done = [
        subprocess.Popen([sys.executable, "-c", share], env=task, stdout=subprocess.PIPE, text=True) for task in tasks
    ]
    said = [process.communicate(timeout=120)[0] for process in done]
    assert said == ["[0, 1]\nFalse\n", "[1]\nFalse\n"] and [process.returncode for process in done] == [0, 0]


@pytest.mark.slow
def test_two_processes_of_torchrun(alone: Path) -> None:
    command = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node=2", "-m", "cssformer.cli"]
    done = subprocess.run([*command, *words(alone, "torchrun")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("5 pictures written") == 1
    assert content(alone / "torchrun") == content(alone / "one")


@pytest.mark.slow
@pytest.mark.parametrize("changed", [("/in", "/in/deep"), ("/none", "/elsewhere"), ("--overlay", "--probabilities")])
def test_processes_that_are_asked_for_other_things_are_refused(
    changed: tuple[str, str], alone: Path, srun: dict[str, str]
) -> None:
    others = [word.replace(*changed) for word in words(alone, "none")]
    with subprocess.Popen([sys.executable, "-c", OTHER, *others], env=srun) as other:
        with pytest.raises(UserError, match="see different models, inputs or options"):
            from cssformer.inference import predict_files

            predict_files(str(alone / "model"), [alone / "in"], alone / "none", device="cpu")
        assert other.wait(120) == 2
    assert not (alone / "none").exists()


def test_each_item_is_the_share_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"WORLD_SIZE": "3", "MASTER_ADDR": "there", "MASTER_PORT": "1"}
    shares = []
    for rank in range(3):
        for name, value in {**variables, "RANK": str(rank), "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        shares.append(processes.share(range(8)))
    assert sorted(item for share in shares for item in share) == list(range(8))


def test_a_batch_script_without_srun_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert processes.share([1, 2, 3]) == [1, 2, 3] and processes.gather("own") == ["own"]


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu07", "gpu07"), ("node[003-004,7],other1", "node003"), ("node[12,14]", "node12"), ("a-b.c,d", "a-b.c")],
)
def test_the_first_machine_of_a_step(nodes: str, first: str) -> None:
    assert processes.first_machine(nodes) == first


def test_steps_of_one_job_meet_at_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    distributed = SimpleNamespace(
        is_initialized=lambda: False,
        init_process_group=lambda _, place, **__: places.append(place),
        new_group=lambda **_: None,
    )
    monkeypatch.setattr(processes, "_distributed", lambda: distributed)
    for job, step in (("7123456", "0"), ("7123456", "1"), ("7123457", "0")):
        for name, value in zip(processes.SRUN, ("0", "2", "0", "there", job, step), strict=True):
            monkeypatch.setenv(name, value)
        processes._group.__wrapped__()
    assert len(set(places)) == 3
    assert all(place.startswith("tcp://there:") and 20000 <= int(place[12:]) < 32768 for place in places)
