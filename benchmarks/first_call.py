"""What the first call of the sampling functions costs a process, while numba compiles or reads its cache.

NUMBA_CACHE_DIR=$(mktemp -d) python benchmarks/first_call.py    # compiles everything
python benchmarks/first_call.py                                 # as every later process
"""

import time

import torch

from cssformer.ops import ms_deform_attend, ms_deform_sample

SHAPES = ((8, 8), (4, 4), (2, 2), (1, 1))


def first(dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of the forward pass of both functions, and with the backward pass."""
    tokens = sum(height * width for height, width in SHAPES)
    value, key, query = (torch.randn(1, tokens, 8, 32, dtype=dtype, requires_grad=True) for _ in range(3))
    positions = torch.rand(1, tokens, 8, 4, 16, 2, requires_grad=True)
    weights = torch.rand(1, tokens, 8, 4, 16, requires_grad=True)
    start = time.perf_counter()
    out = ms_deform_sample(value, SHAPES, positions, weights) + ms_deform_attend(query, key, value, SHAPES, positions)
    forward = time.perf_counter() - start
    out.sum().backward()
    return forward, time.perf_counter() - start


for title, dtype in (("float32", torch.float32), ("then bfloat16", torch.bfloat16), ("float32 again", torch.float32)):
    forward, both = first(dtype)
    print(f"{title:14} forward {forward:.2f} s, with backward {both:.2f} s")
