"""The network's modules as a CPU computes them fast where nothing is to be differentiated; elsewhere they are the same.

Each is a subclass of what it stands for, with its parameters. What makes them fast is told in docs/performance.md:
tokens go through a module in runs, whose intermediate results stay in the cache; maps are laid out once for all runs;
CIA's contexts are mapped while they are small.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cssformer.accelerate.linear import OneDNNLinear, linear, plain_inference, weights_laid_once
from cssformer.accelerate.resize import enlarge
from cssformer.model.cia import POOLED_SIZES, ChannelInformationAugmentation
from cssformer.model.csf import CrossScaleFusion
from cssformer.model.layers import Resize, SamplingOffsets
from cssformer.model.msfe import MultiScaleFeatureEnhancement
from cssformer.model.positions import Shapes
from cssformer.ops import numba as kernels
from cssformer.ops.contexts import with_small_contexts
from cssformer.ops.ms_deform import by_definition
from cssformer.utils.memory import empty

TOKENS_AT_ONCE = 3072


def _fast(tensor: Tensor) -> bool:
    """Whether the kernels may compute with the tensor."""
    plain = plain_inference() and type(tensor) is Tensor and tensor.device.type == "cpu"
    return plain and tensor.dtype in (torch.float32, torch.bfloat16) and not by_definition(tensor)


def _in_runs(function: Callable[[slice], Tensor], like: Tensor) -> Tensor:
    """``function(slice of tokens)`` over (B, N, C), run by run; a short tail belongs to the last run."""
    count = like.shape[1]
    runs = max(1, round(count / TOKENS_AT_ONCE))
    out = empty(like.shape, like.dtype)
    for run in range(runs):
        part = slice(count * run // runs, count * (run + 1) // runs)
        out[:, part] = function(part)
    return out


class FastOffsets(SamplingOffsets):
    """W_Δ by oneDNN, as the other linear layers."""

    def forward(self, tokens: Tensor) -> Tensor:
        offsets = linear(tokens, self.weight, self.bias)
        return offsets.unflatten(-1, (self.heads, self.levels, self.points, 2))


class FastMSFE(MultiScaleFeatureEnhancement):
    """MSFE in runs of tokens."""

    def forward(self, tokens: Tensor, pos_embed: Tensor, shapes: Shapes, reference_NL2: Tensor) -> Tensor:
        if not _fast(tokens):
            return super().forward(tokens, pos_embed, shapes, reference_NL2)

        def enhance(run: slice) -> Tensor:
            query = self.norm(tokens[:, run]) + pos_embed[run]
            offsets_BNMLK2 = self.offsets(query)
            weights_BNMP = self.weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
            weights_BNMLK = weights_BNMP.view(offsets_BNMLK2.shape[:-1])
            sampled_BNMD = kernels.sum_packed(packed, offsets_BNMLK2, reference_NL2[run], weights_BNMLK)
            enhanced = tokens[:, run] + self.output(sampled_BNMD.flatten(2))
            return enhanced.add_(self.feed_forward(enhanced))

        with weights_laid_once():
            value_BNC = self.value(self.norm(tokens))
            packed = kernels.pack([value_BNC.unflatten(-1, (self.heads, -1))], shapes)
            del value_BNC
            return _in_runs(enhance, tokens)


class FastCSF(CrossScaleFusion):
    """CSF in runs of tokens."""

    def forward(
        self, queries: Tensor, enhanced: Tensor, pos_embed: Tensor, shapes: Shapes, reference_NL2: Tensor
    ) -> Tensor:
        if not _fast(enhanced):
            return super().forward(queries, enhanced, pos_embed, shapes, reference_NL2)

        def fuse(run: slice) -> Tensor:
            query = self.query(self.query_norm(queries[:, run]) + pos_embed[run])
            offsets_BNMLK2 = self.offsets(self.norm(enhanced[:, run]) + pos_embed[run])
            query_BNMD = query.unflatten(-1, (self.heads, -1))
            sampled_BNMD = kernels.attend_packed(packed, query_BNMD, offsets_BNMLK2, reference_NL2[run])
            fused = enhanced[:, run] + self.output(sampled_BNMD.flatten(2))
            return fused.add_(self.feed_forward(fused))

        with weights_laid_once():
            key_BNC = _in_runs(lambda run: self.key(self.norm(enhanced[:, run]) + pos_embed[run]), enhanced)
            value_BNC = _in_runs(lambda run: self.value(self.norm(enhanced[:, run])), enhanced)
            maps = [map_BNC.unflatten(-1, (self.heads, -1)) for map_BNC in (key_BNC, value_BNC)]
            packed = kernels.pack(maps, shapes)
            del key_BNC, value_BNC, maps
            return _in_runs(fuse, enhanced)


class MergedLinear(OneDNNLinear):
    """A linear layer that does the work of the one which alone takes what it gives: their weights are multiplied."""

    following: tuple[nn.Linear]  # a tuple keeps it out of this layer's parameters

    def forward(self, input: Tensor) -> Tensor:
        if not _fast(input):
            return super().forward(input)
        after = self.following[0].weight
        return linear(input, after @ self.weight, after @ self.bias)


class Done(OneDNNLinear):
    """The layer that follows a :class:`MergedLinear`."""

    def forward(self, input: Tensor) -> Tensor:
        return input if _fast(input) else super().forward(input)


class FastResize(Resize):
    """Bilinear interpolation on all cores: PyTorch's takes one for a single picture."""

    def forward(self, feature: Tensor, size: tuple[int, int]) -> Tensor:
        if not _fast(feature) or not feature.numel():
            return super().forward(feature, size)
        return enlarge(feature, *size)


class FastCIA(ChannelInformationAugmentation):
    """CIA without up-sampling any G_s."""

    def forward(self, feature: Tensor) -> Tensor:
        return with_small_contexts(self, POOLED_SIZES, feature, linear) if _fast(feature) else super().forward(feature)
