"""What plain inference on a CPU may do that autograd and tracing may not see."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def values_only() -> bool:
    """Whether nothing is to be differentiated, compiled or exported."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())


def fresh(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised memory on the CPU, row-major.

    From numpy, which asks the system for huge pages: a large result then costs few page faults, which otherwise, where
    freed memory is not kept, take longer than the work that fills it.
    """
    count = math.prod(shape)
    # A view of no bytes as anything else is refused.
    storage = torch.from_numpy(np.empty(max(1, count) * dtype.itemsize, np.uint8))
    return storage.view(dtype)[:count].view(*shape)
