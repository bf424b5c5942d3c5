"""What an exported file computes: a network with all around it that the file is to do itself, at any size."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cssformer.backbones import Conv2dSame
from cssformer.inference.labels import STRIDE
from cssformer.model import SegmentationNetwork
from cssformer.model.cia import POOLED_SIZES, ChannelInformationAugmentation
from cssformer.model.layers import FeedForward
from cssformer.ops.contexts import pooling_matrix, with_small_contexts
from cssformer.utils.sharing import sharing_weights

Returned: TypeAlias = Literal["logits", "probabilities", "labels", "confidence"]
Side: TypeAlias = Any
"""An int; a tensor while the ONNX exporter traces; a symbol while torch.export does."""


class Deployment(nn.Module):
    """A network from pictures as they come to what is asked for.

    Args:
        network: in evaluation mode.
        returns: what is computed, in this order: "logits" of the cells of 4x4 pixels, (B, classes, ceil(H/4),
            ceil(W/4)) of the picture as the network sees it; at the picture's own size "probabilities"
            (B, classes, H, W), "labels" (B, H, W) int64 and "confidence" (B, H, W), the probability of the label; of a
            multi-label network the first two.
        uint8: the input is uint8 (B, H, W, 3), RGB, as picture files are decoded; otherwise float32 (B, 3, H, W) in
            [0, 1]. Either is normalised by the network. A network of N other channels takes N in the place of 3, in
            the files' units if they are not uint8.
        size: height and width that the network sees.
        short_side: the network sees the picture resized until its shorter side has so many pixels.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        returns: Sequence[Returned] = ("logits",),
        uint8: bool = False,
        size: tuple[int, int] | None = None,
        short_side: int | None = None,
    ) -> None:
        super().__init__()
        self.network, self.returns, self.uint8, self.size, self.short_side = network, returns, uint8, size, short_side

    def as_given(self, images: Tensor) -> Tensor:
        """Images (B, N, H, W) as the network takes them -> as the file does."""
        return (255 * images).round().byte().permute(0, 2, 3, 1).contiguous() if self.uint8 else images

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.uint8:
            images = images.permute(0, 3, 1, 2).float() / 255
        height, width = images.shape[2], images.shape[3]
        seen: tuple[Side, Side] = (height, width)
        if self.size is not None:
            seen = self.size
        elif self.short_side is not None:
            least = 2 * _smaller(height, width)
            seen = tuple((2 * side * self.short_side + least // 2) // least for side in (height, width))
        if self.size is not None or self.short_side is not None:
            images = _resampled(images, seen, (height / seen[0], width / seen[1]))
        logits = self._logits(images)
        found = {"logits": logits}
        if tuple(self.returns) != ("logits",):
            if self.size is None and self.short_side is None:
                cells = (STRIDE * logits.shape[2], STRIDE * logits.shape[3])
                scores = _cut(F.interpolate(logits, cells, mode="bilinear"), height, width)
            else:
                scale = (seen[0] / height / STRIDE, seen[1] / width / STRIDE)
                scores = _resampled(logits, (height, width), scale)
            found["probabilities"] = scores.sigmoid() if self.network.metadata.multilabel else scores.softmax(1)
            found["labels"] = scores.argmax(1)
            found["confidence"] = found["probabilities"].amax(1)
        return tuple(found[name] for name in self.returns)

    def _logits(self, images: Tensor) -> Tensor:
        """As the network's ``forward_logits``, of pictures of any size, without a branch that tracing would freeze."""
        height, width = images.shape[2], images.shape[3]
        mirrors = torch.ones(1, device=images.device) * _smaller(height, width) > 32
        rows, columns = (_padding(side, mirrors) for side in (height, width))
        padded = images.index_select(2, rows).index_select(3, columns)
        dtype = next(self.network.parameters()).dtype
        logits: Tensor = self.network.decode(self.network.backbone(padded.to(dtype))).permute(0, 3, 1, 2).float()
        return _cut(logits, _ceil(height, STRIDE), _ceil(width, STRIDE))


def _padding(side: Side, mirrors: Tensor) -> Tensor:
    """Which row of a picture each row of the padded one is; see :func:`cssformer.model.cssformer.pad`."""
    index = torch.arange(_larger(_ceil(side, 32), 2) * 32, device=mirrors.device)
    beyond = torch.where(mirrors, 2 * (side - 1) - index, side - 1)
    return torch.where(index < side, index, beyond)


def _cut(maps: Tensor, height: Side, width: Side) -> Tensor:
    """The first rows and columns. A slice would make torch.export ask whether there are so many."""
    rows, columns = (torch.arange(side, device=maps.device) for side in (height, width))
    return maps.index_select(2, rows).index_select(3, columns)


def _resampled(maps: Tensor, size: tuple[Side, Side], scale: tuple[Any, Any]) -> Tensor:
    """Maps (B, C, h, w) at another size, by the weights of :func:`cssformer.inference.labels.resampling`."""
    return _weighed(maps, size, scale, lambda distance: (1 - distance).clamp(min=0))


def _bicubic(maps: Tensor, size: tuple[Side, Side]) -> Tensor:
    """As ``F.interpolate(mode="bicubic", antialias=True)``: Keys' kernel with a = -1/2."""

    def kernel(distance: Tensor) -> Tensor:
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
        return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))

    scale = tuple(side / target for side, target in zip(maps.shape[2:], size, strict=True))
    return _weighed(maps, size, scale, kernel)


def _weighed(
    maps: Tensor, size: tuple[Side, Side], scale: tuple[Any, ...], kernel: Callable[[Tensor], Tensor]
) -> Tensor:
    """Each pixel of the other size is a mean, weighed by a kernel of the distance, as a product with two matrices."""
    down, across = (_weights(*axis, kernel, maps) for axis in zip(maps.shape[2:], size, scale, strict=True))
    return down @ maps @ across.T


def _weights(inputs: Side, outputs: Side, scale: Any, kernel: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    reach = (torch.ones(1, device=like.device) * scale).clamp(min=1)
    centre = (torch.arange(outputs, device=like.device) + 0.5) * scale
    distance = (torch.arange(inputs, device=like.device) + 0.5 - centre.unsqueeze(1)).abs() / reach
    weights = kernel(distance)
    return (weights / weights.sum(1, keepdim=True)).to(like.dtype)


def _ceil(number: Side, divisor: int) -> Side:
    # Not -(-number // divisor): in ONNX a division of integers is cut towards zero.
    return (number + divisor - 1) // divisor


def _smaller(one: Side, other: Side) -> Side:
    return torch.minimum(one, other) if isinstance(one, Tensor) else torch.sym_min(one, other)


def _larger(one: Side, least: int) -> Side:
    # Written so that torch.export sees that it is at least so much.
    return one.clamp(min=least) if isinstance(one, Tensor) else torch.sym_max(one - least, 0) + least


class _SmallContexts(ChannelInformationAugmentation):
    def forward(self, feature: Tensor) -> Tensor:
        return with_small_contexts(self, POOLED_SIZES, feature, F.linear)


class _Rows(FeedForward):
    """Of rows from end to end, so that runtimes find product and ReLU side by side and compute them in one pass."""

    def forward(self, tokens: Tensor) -> Tensor:
        rows: Tensor = super().forward(tokens.flatten(0, -2))
        return rows.reshape(tokens.shape)


class _PaddedConv(Conv2dSame):
    """TensorFlow's padding where strides divide sides, as in a backbone of padded pictures.

    By the sides of the maps, each layer of it takes torch.export longer than all before.
    """

    def forward(self, maps: Tensor) -> Tensor:
        axes = zip(self.kernel_size, self.stride, self.dilation, strict=True)
        down, across = (max(0, (kernel - 1) * dilation + 1 - stride) for kernel, stride, dilation in axes)
        padded = F.pad(maps, (across // 2, across - across // 2, down // 2, down - down // 2))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


_REWRITTEN: dict[type[nn.Module], type[nn.Module]] = {
    ChannelInformationAugmentation: _SmallContexts,
    FeedForward: _Rows,
    Conv2dSame: _PaddedConv,
}


def rewritten(deployment: Deployment) -> Deployment:
    """A copy of the same weights whose modules compute the same in fewer passes."""
    deployment = sharing_weights(deployment)
    for module in deployment.modules():
        module.__class__ = _REWRITTEN.get(type(module), type(module))
    return deployment


class AnySize(TorchFunctionMode):
    """Writes, for the length of a trace, what exporters get wrong or refuse at any size in operations they take.

    Adaptive pooling and the bicubic interpolation of a ViT's positions become products with a matrix for each axis,
    ``unflatten`` a reshape that names every axis. And what runtimes are slow at: a linear layer becomes one of rows,
    which adds its bias by itself, reference points are repeated before offsets are added to them, and ``baddbmm_`` and
    ``addcmul`` lose their factors of 1, each a pass.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.adaptive_avg_pool2d:
            maps, pooled = args
            rows, columns = (pooling_matrix((pooled,), side).to(maps) for side in maps.shape[2:])
            return rows @ maps @ columns.T
        if func is F.interpolate and kwargs and kwargs.get("mode") == "bicubic" and kwargs.get("antialias"):
            return _bicubic(args[0], kwargs["size"])
        if func is Tensor.unflatten:
            tensor, axis, sizes = args
            shape, axis = list(tensor.shape), axis % tensor.ndim
            return tensor.reshape([*shape[:axis], *sizes, *shape[axis + 1 :]])
        if func is F.linear and args[0].ndim > 2:
            tensor, weight, *bias = args
            return func(tensor.flatten(0, -2), weight, *bias).reshape([*tensor.shape[:-1], weight.shape[0]])
        if func is Tensor.baddbmm_:
            return args[0] + args[1] @ args[2]
        if func is torch.addcmul:
            return args[0] + args[1] * args[2]
        if func is Tensor.add and isinstance(args[1], Tensor) and (args[0].ndim, args[1].ndim) == (5, 6):
            reference_N1L12, offsets_BNMLK2 = args
            repeated = reference_N1L12.expand(-1, -1, -1, offsets_BNMLK2.shape[4], -1).flatten(2)
            return (repeated + offsets_BNMLK2.flatten(3)).reshape(offsets_BNMLK2.shape)
        return func(*args, **(kwargs or {}))
