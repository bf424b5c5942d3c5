"""Where networks run: which device, what it is called, and when its work is done."""

import torch
from torch import nn

from cssformer.utils.processes import local_rank


def best_device() -> str:
    """The fastest device of this machine; of several GPUs one for each of the processes started together."""
    if torch.cuda.is_available():
        return f"cuda:{local_rank() % torch.cuda.device_count()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_of(model: nn.Module) -> torch.device:
    """Where a network's parameters are; the CPU for one without parameters, such as an exported one."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def device_name(device: str) -> str:
    """The model of a GPU; of other devices their kind."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def synchronize(device: str) -> None:
    """Wait until the device has done what it was asked to: time is to be taken."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()
