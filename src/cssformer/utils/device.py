"""Where networks run: which device, what it is called, and when its work is done."""

from typing import TypeVar

import torch
from torch import nn

from cssformer.utils.errors import UserError
from cssformer.utils.processes import local_rank

Network = TypeVar("Network", bound=nn.Module)


def best_device() -> str:
    """The fastest device of this machine; of several GPUs one for each of the processes started together."""
    if torch.cuda.is_available():
        return f"cuda:{local_rank() % torch.cuda.device_count()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def on_device(model: Network, device: str) -> Network:
    """The network, moved to "cuda", "mps", "cpu" and the like, or by "auto" to the fastest device of this machine.

    Raises:
        UserError: there is no such device.
    """
    try:
        return model.to(best_device() if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The device {device!r} cannot be used here: {reason}; take cpu or auto.") from error


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
