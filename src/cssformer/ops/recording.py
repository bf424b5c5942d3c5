"""What the sampling functions are given, kept for those who explain a network."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from cssformer.ops.reference import Shapes, ms_deform_attention_weights
from cssformer.utils.context import bound


class Sampling(NamedTuple):
    """One call of a sampling function: positions (B, N, M, L, K, 2), and what weighs the samples.

    ``weights`` (B, N, M, L, K) of :func:`cssformer.ops.ms_deform_sample`; ``query`` (B, N, M, D) and ``key``
    (B, S, M, D) of :func:`cssformer.ops.ms_deform_attend`.
    """

    shapes: Shapes
    positions: Tensor
    weights: Tensor | None = None
    query: Tensor | None = None
    key: Tensor | None = None

    def weights_of(self, tokens: Sequence[int]) -> Tensor:
        """The weights (B, I, M, L, K) of the samples of some queries."""
        if self.weights is not None:
            return self.weights[:, tokens].float()
        assert self.query is not None and self.key is not None
        return ms_deform_attention_weights(
            self.query[:, tokens].float(), self.key.float(), self.shapes, self.positions[:, tokens]
        )


_recorded: ContextVar[list[Sampling] | None] = ContextVar("recorded", default=None)


def record_sampling() -> AbstractContextManager[list[Sampling]]:
    """Keep the arguments of every sampling inside the block, in this thread, in the order of the calls, in a list.

    Networks that torch.compile has compiled are not recorded.
    """
    return bound(_recorded, [])


def record(sampling: Sampling) -> None:
    """Add a call to what :func:`record_sampling` keeps, if it does."""
    # The compiler of PyTorch 2.7 cannot read a context variable.
    if not torch.compiler.is_compiling() and (recorded := _recorded.get()) is not None:
        recorded.append(sampling)
