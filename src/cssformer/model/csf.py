"""Cross-Scale Fusion, CSF (paper section 3.4)."""

from torch import Tensor, nn

from cssformer.model.layers import FeedForward, SamplingOffsets, zero_init_
from cssformer.model.positions import Shapes
from cssformer.ops import ms_deform_attend


class CrossScaleFusion(nn.Module):
    """Cross-attention of each query pixel with the enhanced features of all scales, sampled where E says to look.

        U = E + W_O softmax(q·k / sqrt(D)) v,  Δ = W_Δ (E + X)
            q = W_q (Q + X),  k and v = W_k (E + X) and W_v E of all scales, sampled at p + Δ
        U = U + FFN(U)

    Q and E are normed before each branch (pre-norm). Unlike in MSFE the weights come from the content: the softmax
    runs over the L·K sampled keys of each head.
    """

    def __init__(self, channels: int, heads: int, points: int, levels: int = 4, ffn_ratio: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(channels)
        self.norm = nn.LayerNorm(channels)
        self.offsets = SamplingOffsets(channels, heads, levels, points)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = zero_init_(nn.Linear(channels, channels))
        self.feed_forward = FeedForward(channels, ffn_ratio)

    def forward(
        self, queries: Tensor, enhanced: Tensor, pos_embed: Tensor, shapes: Shapes, reference_NL2: Tensor
    ) -> Tensor:
        """Q and E (B, N, C), their X (N, C), shapes and pixels p on every scale (N, L, 2) -> U (B, N, C)."""
        normed = self.norm(enhanced)
        placed = normed + pos_embed
        query_BNMD = self.query(self.query_norm(queries) + pos_embed).unflatten(-1, (self.heads, -1))
        key_BNMD = self.key(placed).unflatten(-1, (self.heads, -1))
        value_BNMD = self.value(normed).unflatten(-1, (self.heads, -1))
        positions_BNMLK2 = reference_NL2[:, None, :, None] + self.offsets(placed)
        sampled_BNMD = ms_deform_attend(query_BNMD, key_BNMD, value_BNMD, shapes, positions_BNMLK2)
        fused = enhanced + self.output(sampled_BNMD.flatten(2))
        return fused + self.feed_forward(fused)
