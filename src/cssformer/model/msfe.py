"""Multi-Scale Feature Enhancement, MSFE (paper section 3.3)."""

from torch import Tensor, nn

from cssformer.model.layers import FeedForward, SamplingOffsets, zero_init_
from cssformer.model.positions import Shapes
from cssformer.ops import ms_deform_sample


class MultiScaleFeatureEnhancement(nn.Module):
    """Every token of every scale gathers K points per head from all scales at one time, weights from a linear layer.

        A = softmax over the L·K points of W_A (T + X)
        E = T + W_O sum(A · V(p + Δ)),  Δ = W_Δ (T + X),  V = W_V T
        E = E + FFN(E)

    T is normed before each branch (pre-norm). The position embedding X decides where to look and stays out of what is
    gathered, as in Deformable DETR.
    """

    def __init__(self, channels: int, heads: int, points: int, levels: int = 4, ffn_ratio: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.offsets = SamplingOffsets(channels, heads, levels, points)
        self.weights = zero_init_(nn.Linear(channels, heads * levels * points))
        self.value = nn.Linear(channels, channels)
        self.output = zero_init_(nn.Linear(channels, channels))
        self.feed_forward = FeedForward(channels, ffn_ratio)

    def forward(self, tokens: Tensor, pos_embed: Tensor, shapes: Shapes, reference_NL2: Tensor) -> Tensor:
        """T (B, N, C), its X (N, C), its shapes and its pixels p on every scale (N, L, 2) -> E (B, N, C)."""
        normed = self.norm(tokens)
        query = normed + pos_embed
        value_BNMD = self.value(normed).unflatten(-1, (self.heads, -1))
        offsets_BNMLK2 = self.offsets(query)
        positions_BNMLK2 = reference_NL2[:, None, :, None] + offsets_BNMLK2
        weights_BNMP = self.weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
        weights_BNMLK = weights_BNMP.view(offsets_BNMLK2.shape[:-1])
        sampled_BNMD = ms_deform_sample(value_BNMD, shapes, positions_BNMLK2, weights_BNMLK)
        tokens = tokens + self.output(sampled_BNMD.flatten(2))
        return tokens + self.feed_forward(tokens)
