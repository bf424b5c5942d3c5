"""A function over many rows, run by run, so that what it computes on the way stays small."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cssformer.utils.context import bound

LARGE = 512
"""Rows of a run in PyTorch, which takes longer to begin one."""

ROWS = 128
"""Of a run in an ONNX file: few enough that what it samples stays in the cache, which halves the time."""

DOMAIN = "cssformer"
"""Of the node that stands for a loop until :mod:`cssformer.export.loops` writes it."""

Function = Callable[..., Tensor]


class Body(NamedTuple):
    """A loop's function, with a run of what it takes row by row and what all runs share."""

    function: Function
    each: list[Tensor]
    shared: list[Tensor]


_bodies: ContextVar[list[Body] | None] = ContextVar("bodies", default=None)


def as_loops() -> AbstractContextManager[list[Body]]:
    """Inside, ``in_runs`` is traced as one node, whose attribute ``body`` is an index in the list."""
    return bound(_bodies, [])


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Function, body: int, count: int, *tensors: Tensor) -> Tensor:
        # Tracing asks for the shape alone.
        run = function(*(tensor[0] for tensor in tensors[:count]), *tensors[count:])
        return run.expand(len(tensors[0]), *run.shape).clone()

    @staticmethod
    def symbolic(g: Any, function: Function, body: int, count: int, *tensors: Any) -> Any:
        loop = g.op(f"{DOMAIN}::Loop", *tensors, body_i=body)
        return loop.setType(tensors[0].type().with_sizes([None, None, 1, None]))


def in_runs(function: Function, each: Sequence[Tensor], shared: Sequence[Tensor]) -> Tensor:
    """``function(*each, *shared)``, (rows, 1, D), of tensors (rows, ...), as if it were called once.

    The function takes any number of rows and treats each by itself.
    """
    rows, bodies = each[0].shape[0], None if torch.compiler.is_compiling() else _bodies.get()
    if bodies is None and not isinstance(rows, int):
        from functorch.experimental.control_flow import map as map_runs  # PyTorch 2.7 imports its compiler for it

        # By index, because torch.export asks of slices and padding whether they fit. Never a single run, which would be
        # another program.
        row, run = torch.arange(rows, device=each[0].device), torch.arange(LARGE, device=each[0].device)
        index = (torch.arange(rows // LARGE + 2, device=run.device).unsqueeze(1) * LARGE + run).clamp(max=rows - 1)
        taken = [tensor[index] for tensor in each]
        found = map_runs(lambda run, *shared: function(*run, *shared), taken, *shared)
        return found[row // LARGE, row % LARGE]
    if bodies is None:
        parts = [[tensor[first : first + LARGE] for tensor in each] for first in range(0, rows, LARGE)]
        return torch.cat([function(*part, *shared) for part in parts])
    runs = [_cut(tensor, (rows + ROWS - 1) // ROWS * ROWS - rows) for tensor in each]
    bodies.append(Body(function, [tensor[0] for tensor in runs], list(shared)))
    stacked: Tensor = _Loop.apply(function, len(bodies) - 1, len(runs), *runs, *shared)
    return stacked.flatten(0, 1)[:rows]


def _cut(tensor: Tensor, missing: int) -> Tensor:
    """(rows, ...) with ``missing`` more rows of zeros -> (runs, rows of a run, ...)."""
    padded = F.pad(tensor, (*(0,) * (2 * tensor.ndim - 1), missing))
    return padded.reshape(-1, ROWS, *(int(side) for side in tensor.shape[1:]))
