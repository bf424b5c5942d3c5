"""Which modules of a network are swapped for faster ones; before each swap both ways are seen to compute the same."""

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from timm.layers import Mlp, use_fused_attn
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from cssformer.accelerate.linear import OneDNNLinear, OneDNNLinearGELU, OneDNNLinearReLU
from cssformer.accelerate.modules import Done, FastCIA, FastCSF, FastMSFE, FastOffsets, FastResize, MergedLinear
from cssformer.model.backbone import STRIDES
from cssformer.model.cia import ChannelInformationAugmentation
from cssformer.model.csf import CrossScaleFusion
from cssformer.model.cssformer import CSSFormer
from cssformer.model.layers import FeedForward, Resize, SamplingOffsets
from cssformer.model.msfe import MultiScaleFeatureEnhancement
from cssformer.model.positions import reference_points
from cssformer.ops.simd import LANES
from cssformer.utils.sharing import hooks, sharing_weights

Network = TypeVar("Network", bound=nn.Module)
log = logging.getLogger(__name__)


def accelerate_cpu(model: Network) -> Network:
    """A copy of the network that shares its parameters and predicts faster on a CPU, without gradients.

    Its modules are swapped for those of :mod:`cssformer.accelerate.modules` and oneDNN's linear layers. With gradients
    the copy computes what the network computes. A module that is not exactly the product's (a subclass, another
    ``forward``, hooks, an edited formula) is left as it is, which the log tells: before it is swapped, both ways are
    compared on random numbers. Hooks that come later may not be called. Weights that change in place are the copy's
    too; after ``to(dtype)`` and ``load_state_dict(assign=True)``, which give the network other tensors, it is to be
    accelerated anew.
    """
    fast = sharing_weights(model)
    for name, module in list(fast.named_modules()):
        if (swap := _SWAPS.get(type(module))) is not None:
            reason = _own(module) or swap(module)
            if reason:
                log.warning("%s (%s) is not accelerated: %s.", name, type(module).__name__, reason)
    for module in fast.modules():
        if type(module) is CSSFormer and not (module.cia or module.training):
            _merge(module)
    return fast


@torch.no_grad()
def _merge(network: CSSFormer) -> None:
    """Lateral layers whose maps nothing changes before the head's layers, 1x1 convolutions both, become one product."""
    untouched = len(STRIDES) - len(network.fusion_strides)
    layers = zip(network.lateral, network.head.fuse, strict=True)
    pairs = [(list(lateral.children())[1], after) for lateral, after in layers][:untouched]
    merged = [(layer, after) for layer, after in pairs if type(layer) is OneDNNLinear and type(after) is OneDNNLinear]
    if not merged or any(_own(each) for each in (network.lateral, network.head)):
        return
    sides = [2 * STRIDES[-1] // stride for stride in STRIDES]
    features = [
        _numbers(1, s, s, c).to(merged[0][0].weight) for s, c in zip(sides, network.backbone.channels, strict=True)
    ]
    expected = network.decode(features)
    for layer, after in merged:
        layer.__class__, layer.__dict__["following"], after.__class__ = MergedLinear, (after,), Done
    found = network.decode(features)
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
        log.warning("The lateral layers are not merged with the head's: the network's formula is another one.")
        for layer, after in merged:
            layer.__class__ = after.__class__ = OneDNNLinear


def _own(module: nn.Module) -> str:
    """Why the module is not as its class is; empty if it is."""
    for part in module.modules():
        if any(hooks(part)):
            return "it has hooks"
        if "forward" in vars(part):
            return "it has a forward of its own"
    return ""


def _to_class(kind: type[nn.Module], probe: Callable[[Any], Iterator[tuple[Any, ...]]]) -> Callable[[nn.Module], str]:
    """A swap to a subclass, made if that computes the same for the probe's inputs."""

    def swap(module: nn.Module) -> str:
        try:
            same = _computes_the_same(copy.deepcopy(module).float().eval(), kind, probe)
        except Exception as error:  # somebody's formula may refuse the numbers that it is given here
            return f"the two ways cannot be compared ({error})"
        if not same:
            return "its formula is another one"
        module.__class__ = kind
        return ""

    return swap


def _computes_the_same(
    trial: nn.Module, kind: type[nn.Module], probe: Callable[[Any], Iterator[tuple[Any, ...]]]
) -> bool:
    # Weights of its own, because the branches of a new network are zero and would hide a difference.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trial.parameters():
            spread = 0.5 if parameter.ndim == 1 else 2 * parameter.shape[-1] ** -0.5
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
        cases = list(probe(trial))
        expected = [trial(*case) for case in cases]
        trial.__class__ = kind
        return all(
            torch.allclose(trial(*case), right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))
            for case, right in zip(cases, expected, strict=True)
        )


def _numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _maps(module: Any) -> Iterator[tuple[Any, ...]]:
    channels = module.fuse.out_features
    yield (_numbers(2, 7, 9, channels),)
    yield (_numbers(1, 4, 5, channels),)


def _tokens(module: Any) -> Iterator[tuple[Any, ...]]:
    channels, levels = module.output.in_features, module.offsets.levels
    shapes = tuple((6 + level, 8 - level) for level in range(levels))
    count = sum(height * width for height, width in shapes)
    inputs = [_numbers(2, count, channels)] * (2 if isinstance(module, CrossScaleFusion) else 1)
    yield (*inputs, _numbers(count, channels), shapes, reference_points(shapes, torch.device("cpu")))


def _rows(module: Any) -> Iterator[tuple[Any, ...]]:
    yield (_numbers(2, 3, module.in_features),)


def _sizes(module: Any) -> Iterator[tuple[Any, ...]]:
    # Of more channels than a vector has numbers, as networks have: for others another kernel would be compiled.
    yield _numbers(2, 3, 4, LANES + 5), (7, 9)
    yield _numbers(1, 4, 3, LANES), (4, 12)


def _linear(module: nn.Module) -> str:
    module.__class__ = OneDNNLinear
    return ""


def _feed_forward(module: nn.Module) -> str:
    """The ReLU becomes part of the product."""
    assert isinstance(module, FeedForward)
    if type(module).forward is not nn.Sequential.forward:
        return "its formula is another one"
    first, activation = module[1], module[2]
    if type(first) in (nn.Linear, OneDNNLinear) and type(activation) is nn.ReLU:
        first.__class__ = OneDNNLinearReLU
        module[2] = nn.Identity()
    return ""


def _mlp(module: nn.Module) -> str:
    """The same of timm's GELU."""
    assert isinstance(module, Mlp)
    exact = type(module.act) is nn.GELU and module.act.approximate == "none"
    if exact and type(module.fc1) in (nn.Linear, OneDNNLinear):
        module.fc1.__class__, module.act = OneDNNLinearGELU, nn.Identity()
    return ""


class _FullyMasked(SwinTransformerBlock):
    """timm's block, in which what a token may not see weighs exactly nothing.

    timm adds -100 before the softmax. What is left, 1e-44, is a denormal number, which Intel's CPUs multiply slowly
    (docs/performance.md).
    """

    def get_attn_mask(self, *args: Any, **kwargs: Any) -> Tensor | None:
        mask: Tensor | None = super().get_attn_mask(*args, **kwargs)
        return None if mask is None else 100 * mask


def _swin_block(module: nn.Module) -> str:
    module.__class__ = _FullyMasked
    return ""


def _window_attention(module: nn.Module) -> str:
    # As timm's other attentions: without gradients it takes a third of the time.
    assert isinstance(module, WindowAttention)
    module.fused_attn = use_fused_attn()  # type: ignore[misc]  # final for TorchScript only
    return ""


_SWAPS: dict[type[nn.Module], Callable[[nn.Module], str]] = {
    MultiScaleFeatureEnhancement: _to_class(FastMSFE, _tokens),
    CrossScaleFusion: _to_class(FastCSF, _tokens),
    ChannelInformationAugmentation: _to_class(FastCIA, _maps),
    Resize: _to_class(FastResize, _sizes),
    SamplingOffsets: _to_class(FastOffsets, _rows),
    nn.Linear: _linear,
    FeedForward: _feed_forward,
    Mlp: _mlp,
    SwinTransformerBlock: _swin_block,
    WindowAttention: _window_attention,
}
