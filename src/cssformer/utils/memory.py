"""Memory for large results."""

import math
from collections.abc import Sequence

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
