"""Cross-Scale Fusion, CSF (paper section 3.4)."""

from torch import Tensor, nn

from cssformer.model.tokens import FeedForward, SamplingOffsets, Shapes, silent
from cssformer.sampling import sample_attend


class CrossScaleFusion(nn.Module):
    """Cross-attention of each query pixel with the enhanced features of all scales, sampled where E says to look.

        U = Q + W_O softmax(q·k / sqrt(D)) v,  k and v = E of all scales sampled at p + Δ,  Δ = W_Δ E
        U = U + FFN(U)

    Unlike in MSFE the weights come from the content: the softmax runs over the L·K sampled keys of each head.
    """

    def __init__(self, channels: int, heads: int, points: int, levels: int = 4) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(channels)
        self.norm = nn.LayerNorm(channels)
        self.offsets = SamplingOffsets(channels, heads, levels, points)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = silent(nn.Linear(channels, channels))
        self.feed_forward = FeedForward(channels)

    def forward(self, queries: Tensor, enhanced: Tensor, shapes: Shapes, reference_NL2: Tensor) -> Tensor:
        """Q (B, N, C), E (B, N, C), their shapes and places on every scale (N, L, 2) -> U (B, N, C)."""
        heads = self.offsets.heads
        normed = self.norm(enhanced)
        query_BNMD = self.query(self.query_norm(queries)).unflatten(-1, (heads, -1))
        key_BSMD = self.key(normed).unflatten(-1, (heads, -1))
        value_BSMD = self.value(normed).unflatten(-1, (heads, -1))
        fused_BNMD = sample_attend(query_BNMD, key_BSMD, value_BSMD, shapes, self.offsets(normed, reference_NL2))
        queries = queries + self.output(fused_BNMD.flatten(2))
        return queries + self.feed_forward(queries)
