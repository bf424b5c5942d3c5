"""Cross-Scale Fusion, CSF (paper section 3.4)."""

from torch import Tensor, nn

from cssformer.accelerate.linear import Linear, zero_init_
from cssformer.model.positions import FeedForward, SamplingOffsets, Shapes, in_runs
from cssformer.ops import attender


class CrossScaleFusion(nn.Module):
    """Cross-attention of each query pixel with the enhanced features of all scales, sampled where E says to look.

        U = E + W_O softmax(q·k / sqrt(D)) v,  Δ = W_Δ (E + X)
            q = W_q (Q + X),  k and v = W_k (E + X) and W_v E of all scales, sampled at p + Δ
        U = U + FFN(U)

    Q and E are normed before each branch (pre-norm). Unlike in MSFE the weights come from the content: the softmax
    runs over the L·K sampled keys of each head.
    """

    def __init__(self, channels: int, heads: int, points: int, levels: int = 4) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(channels)
        self.norm = nn.LayerNorm(channels)
        self.offsets = SamplingOffsets(channels, heads, levels, points)
        self.query = Linear(channels, channels)
        self.key = Linear(channels, channels)
        self.value = Linear(channels, channels)
        self.output = zero_init_(Linear(channels, channels))
        self.feed_forward = FeedForward(channels)

    def forward(
        self, queries: Tensor, enhanced: Tensor, places: Tensor, shapes: Shapes, reference_NL2: Tensor
    ) -> Tensor:
        """Q and E (B, N, C), their places X (N, C), shapes and pixels p on every scale (N, L, 2) -> U (B, N, C)."""
        heads = self.offsets.heads
        normed = self.norm(enhanced)
        placed = normed + places
        key_BSMD, value_BSMD = (x.unflatten(-1, (heads, -1)) for x in (self.key(placed), self.value(normed)))
        attend = attender(key_BSMD, value_BSMD, shapes)

        def fuse(run: slice) -> Tensor:
            asking = self.query_norm(queries[:, run]) + places[run]
            query_BNMD = self.query(asking).unflatten(-1, (heads, -1))
            gathered_BNMD = attend(query_BNMD, self.offsets(placed[:, run]), reference_NL2[run])
            fused = enhanced[:, run] + self.output(gathered_BNMD.flatten(2))
            return fused + self.feed_forward(fused)

        return in_runs(fuse, queries)
