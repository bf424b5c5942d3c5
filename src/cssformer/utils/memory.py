"""Memory: how much there is, and how large results get theirs."""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised memory on the CPU, row-major.

    From numpy, which asks the system for huge pages: a large result then costs few page faults, which otherwise, where
    freed memory is not kept, take longer than the work that fills it.
    """
    count = math.prod(shape)
    # A view of no bytes as anything else is refused.
    storage = torch.from_numpy(np.empty(max(1, count) * dtype.itemsize, np.uint8))
    return storage.view(dtype)[:count].view(*shape)


def total_memory(device: torch.device) -> int:
    """Bytes of the device's memory; of the CPU's, no more than the container may take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**63
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            total = min(total, int(Path(limit).read_text(encoding="ascii")))
    return total
