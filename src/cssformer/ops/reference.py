"""The definition of the two sampling functions, in plain PyTorch: what every other backend must agree with.

Runs on any device and in any floating dtype, stores every sampled value of a scale (its cost in memory and time), and
traces into ``torch.export`` and ONNX. Arithmetic is float32 for half-precision values, float64 for float64.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = Sequence[tuple[int, int]]
"""(H, W) of each of the L scales."""


def _samples(value_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor) -> Iterator[Tensor]:
    """Bilinear samples of each scale, (B, M, D, N, K); zero outside the map and where a position is NaN."""
    B, _, M, D = value_BSMD.shape
    N, K = positions_BNMLK2.shape[1], positions_BNMLK2.shape[4]
    maps = value_BSMD.split([h * w for h, w in shapes], 1)
    for level, (map_BSMD, (H, W)) in enumerate(zip(maps, shapes, strict=True)):
        # Two pixels outside is as zero as infinitely far, but stays exact in the arithmetic below.
        x, y = positions_BNMLK2[:, :, :, level].nan_to_num(nan=-2.0).unbind(-1)
        x, y = x.clamp(-2, W + 1), y.clamp(-2, H + 1)
        grid_BNMK2 = torch.stack(((2 * x + 1) / W - 1, (2 * y + 1) / H - 1), -1)
        sampled = F.grid_sample(
            map_BSMD.permute(0, 2, 3, 1).reshape(B * M, D, H, W),
            grid_BNMK2.transpose(1, 2).reshape(B * M, N, K, 2),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        yield sampled.view(B, M, D, N, K)


def ms_deform_sample(value_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor, weights_BNMLK: Tensor) -> Tensor:
    """The definition of :func:`cssformer.ops.ms_deform_sample`."""
    compute = torch.promote_types(value_BSMD.dtype, torch.float32)
    samples = _samples(value_BSMD.to(compute), shapes, positions_BNMLK2.to(compute))
    weights_LBNMK = weights_BNMLK.to(compute).unbind(3)
    parts_LBMDN = [
        (sampled_BMDNK * weight_BNMK.transpose(1, 2).unsqueeze(2)).sum(-1)
        for sampled_BMDNK, weight_BNMK in zip(samples, weights_LBNMK, strict=True)
    ]
    return torch.stack(parts_LBMDN).sum(0).permute(0, 3, 1, 2).to(value_BSMD.dtype)


def ms_deform_attend(
    query_BNMD: Tensor, key_BSMD: Tensor, value_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor
) -> Tensor:
    """The definition of :func:`cssformer.ops.ms_deform_attend`."""
    compute = torch.promote_types(value_BSMD.dtype, torch.float32)
    query, key, positions = (each.to(compute) for each in (query_BNMD, key_BSMD, positions_BNMLK2))
    weights = ms_deform_attention_weights(query, key, shapes, positions)
    return ms_deform_sample(value_BSMD, shapes, positions_BNMLK2, weights)


def ms_deform_attention_weights(
    query_BNMD: Tensor, key_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor
) -> Tensor:
    """The weights by which ``ms_deform_attend`` mixes its samples: (B, N, M, L, K), summing to 1 over L·K.

    softmax(query · sampled key / √D) over the L·K samples. It is for few queries: it stores every sampled key.
    """
    query_BMDN1 = query_BNMD.permute(0, 2, 3, 1).unsqueeze(-1) * query_BNMD.shape[-1] ** -0.5
    # Products and sums rather than matmul: autocast would round a matmul to half precision.
    logits = [(sampled * query_BMDN1).sum(2) for sampled in _samples(key_BSMD, shapes, positions_BNMLK2)]
    return torch.cat(logits, -1).softmax(-1).transpose(1, 2).unflatten(-1, positions_BNMLK2.shape[3:5])
