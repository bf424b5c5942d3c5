"""Multi-Scale Feature Enhancement, MSFE (paper section 3.3)."""

from torch import Tensor, nn

from cssformer.accelerate.linear import Linear, zero_init_
from cssformer.model.positions import FeedForward, SamplingOffsets, Shapes, in_runs
from cssformer.ops import sampler


class MultiScaleFeatureEnhancement(nn.Module):
    """Every token of every scale gathers K points per head from all scales at one time, weights from a linear layer.

        A = softmax over the L·K points of W_A (T + X)
        E = T + W_O sum(A · V(p + Δ)),  Δ = W_Δ (T + X),  V = W_V T
        E = E + FFN(E)

    T is normed before each branch (pre-norm). The places X decide where to look and stay out of what is gathered, as in
    Deformable DETR.
    """

    def __init__(self, channels: int, heads: int, points: int, levels: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.offsets = SamplingOffsets(channels, heads, levels, points)
        self.weights = zero_init_(Linear(channels, heads * levels * points))
        self.value = Linear(channels, channels)
        self.output = zero_init_(Linear(channels, channels))
        self.feed_forward = FeedForward(channels)

    def forward(self, tokens: Tensor, places: Tensor, shapes: Shapes, reference_NL2: Tensor) -> Tensor:
        """T (B, N, C), its places X (N, C), its shapes and its pixels p on every scale (N, L, 2) -> E (B, N, C)."""
        heads, levels, points = self.offsets.heads, self.offsets.levels, self.offsets.points
        normed = self.norm(tokens)
        placed = normed + places
        sample = sampler(self.value(normed).unflatten(-1, (heads, -1)), shapes)

        def enhance(run: slice) -> Tensor:
            offsets_BNMLK2 = self.offsets(placed[:, run])
            weights_BNMLK = self.weights(placed[:, run]).unflatten(-1, (heads, levels * points)).softmax(-1)
            weights_BNMLK = weights_BNMLK.unflatten(-1, (levels, points))
            gathered_BNMD = sample(offsets_BNMLK2, reference_NL2[run], weights_BNMLK)
            enhanced = tokens[:, run] + self.output(gathered_BNMD.flatten(2))
            return enhanced + self.feed_forward(enhanced)

        return in_runs(enhance, tokens)
