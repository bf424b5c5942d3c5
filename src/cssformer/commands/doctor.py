"""The command ``cssformer doctor``: what there is on this machine, what is slow here and what to do about it."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from cssformer.commands.command import Command, write_json
from cssformer.utils.console import counted, show
from cssformer.utils.errors import UserError

PACKAGES = (
    "cssformer",
    "torch",
    "torchvision",
    "timm",
    "numba",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "lightning",
)
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED, LEAST_DISK = 2**28, 2**30
"""Bytes: of loading processes' pictures on their way, of a run's checkpoints."""


def examine() -> dict[str, Any]:
    """Look at this machine; nothing is changed.

    Returns:
        For JSON: "facts" (name -> what there is, as a sentence's part), "extras" (name -> packages that are missing),
        "problems" (sentences: something will fail) and "advice" (sentences: something is slow or not there).
    """
    import torch

    from cssformer.ops.numba_parts import softmax
    from cssformer.utils.device import best_device, device_name
    from cssformer.utils.memory import total_memory

    problems, advice = [], []
    device = best_device()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    facts = {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "device": device_name(device),
        "CPU": f"{counted(cores, 'core')}, {counted(threads, 'thread')} of PyTorch",
        "memory": _gigabytes(total_memory(torch.device("cpu"))),
    }
    if device == "cpu":
        advice.append(
            "Without a GPU, photographs train for hours: take --config cpu, small pictures and few steps, or start "
            "from a network that has seen many: --model.init animals."
        )
        if torch.version.cuda and shutil.which("nvidia-smi"):
            problems.append(f"PyTorch {torch.__version__} cannot use the GPU; update the driver or install its build.")
        elif torch.version.cuda:
            advice.append(
                "PyTorch was built for CUDA, of no use here; its build for CPUs takes some gigabytes less: begin a new "
                "environment with pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"
            )
    if threads < cores:
        advice.append(f"PyTorch uses {threads} of {cores} cores; unset OMP_NUM_THREADS to use them all.")

    try:
        importlib.import_module("cssformer.backbones")
    except UserError as error:
        problems.append(str(error))
    facts["kernels' cache"], doubt = _kernels_cache(softmax.stats.cache_path)
    problems += [doubt] if doubt else []
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        facts["shared memory"] = f"{_gigabytes(free)} free"
        if free < LEAST_SHARED:
            problems.append(
                "Loading processes need more shared memory: docker run --shm-size 2g, or else train with "
                "--training.workers 0."
            )
    free = shutil.disk_usage(Path.cwd()).free
    facts["disk"] = f"{_gigabytes(free)} free in {Path.cwd()}"
    if free < LEAST_DISK:
        problems.append(f"Less than {_gigabytes(LEAST_DISK)} of the disk is free here; a run's checkpoints need more.")

    extras = missing_extras()
    if absent := [extra for extra, missing in extras.items() if missing]:
        advice.append(
            f"Not here: the extras {', '.join(f'`{extra}`' for extra in absent)}. Who needs one takes it by its name: "
            f'pip install "cssformer[{absent[0]}]".'
        )
    return {"facts": facts, "extras": extras, "problems": problems, "advice": advice}


def missing_extras() -> dict[str, list[str]]:
    """Name of an extra -> those of its packages that are not installed."""
    from cssformer.cli import EXTRAS

    return {
        extra: [module for module in modules if importlib.util.find_spec(module) is None]
        for extra, modules in EXTRAS.items()
    }


def _kernels_cache(path: str | None) -> tuple[str, str | None]:
    """Where numba's compiled kernels are kept and whether any are, and what is wrong with that."""
    slow = "every process compiles them anew; set NUMBA_CACHE_DIR to a folder that can be written."
    if path is None:
        return "none", f"Compiled kernels are not kept: {slow}"
    warm = any(Path(path).glob("numba_forward*.nbi"))
    existing = next(folder for folder in (Path(path), *Path(path).parents) if folder.exists())
    writable = os.access(existing, os.W_OK)
    said = f"{path}, {'warm' if warm else 'cold'}{'' if writable else ', read-only'}"
    return said, None if warm or writable else f"The kernels' cache {path} cannot be written: {slow}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _doctor(options: Namespace) -> int:
    found = examine()
    whole = [name for name, missing in found["extras"].items() if not missing]
    show([*found["facts"].items(), ("extras", ", ".join(whole) or "none")])
    print()
    for kind in ("problems", "advice"):
        for sentence in found[kind]:
            print(f"{'problem' if kind == 'problems' else kind}: {sentence}")
    write_json(options, found)
    return 1 if found["problems"] else 0


def _no_arguments(parser: ArgumentParser) -> None:
    """The machine alone is asked."""


DOCTOR = Command("Tell what is installed, what is slow here, and what to do.", _no_arguments, _doctor)
