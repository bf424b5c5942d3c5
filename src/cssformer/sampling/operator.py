"""The two sampling functions, and the one place that chooses who computes them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cssformer.sampling import reference


def sample_sum(
    value_BSMD: Tensor, shapes: Sequence[tuple[int, int]], positions_BNMLK2: Tensor, weights_BNMLK: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples from all scales (design section 2; the sparse sampling of MSFE).

    ``out[b, n, m] = Σ_l Σ_k weights[b, n, m, l, k] · value_l[b, m](positions[b, n, m, l, k])``

    Args:
        value_BSMD: features of all scales one after another, (B, S, M, D), S = Σ H·W, rows first;
            float32, bfloat16, float16 (arithmetic in float32) or float64.
        shapes: (H, W) of each of the L scales, plain ints.
        positions_BNMLK2: (x, y) in pixels of the scale looked at, (B, N, M, L, K, 2), always float32 (float64 only with
            float64 values); (0, 0) is the centre of the first pixel, (W - 1, H - 1) of the last. Zero outside the map:
            a position counts in full up to the outermost centres and fades to nothing one pixel further.
            NaN and infinite positions are outside: they sample zero and get zero gradient.
        weights_BNMLK: (B, N, M, L, K), any floating dtype, used as they are (no softmax).

    Returns:
        (B, N, M, D) in the dtype of ``value_BSMD``.

    Raises:
        ValueError: the tensors' shapes, dtypes or devices do not fit together.
    """
    _check(value_BSMD, shapes, positions_BNMLK2)
    if weights_BNMLK.shape != positions_BNMLK2.shape[:-1]:
        raise ValueError(
            f"weights {tuple(weights_BNMLK.shape)} must have the shape of positions "
            f"{tuple(positions_BNMLK2.shape)} without its last axis"
        )
    return reference.sample_sum(value_BSMD, shapes, positions_BNMLK2, weights_BNMLK)


def sample_attend(
    query_BNMD: Tensor,
    key_BSMD: Tensor,
    value_BSMD: Tensor,
    shapes: Sequence[tuple[int, int]],
    positions_BNMLK2: Tensor,
) -> Tensor:
    """Attention of each query over its own bilinear samples from all scales (design section 2; CSF).

    ``out[b, n, m] = Σ_lk softmax_lk(query[b, n, m] · key_l[b, m](p_lk) / √D) · value_l[b, m](p_lk)``

    The softmax runs over all L·K samples; 1/√D is applied here, as in ``scaled_dot_product_attention``. A position
    outside the map (or NaN, or infinite) samples a zero key and a zero value: its logit is 0 and it takes part in the
    softmax.

    Args:
        query_BNMD: (B, N, M, D).
        key_BSMD: (B, S, M, D).
        value_BSMD: (B, S, M, D), the dtype of the result; see :func:`sample_sum`.
        shapes: (H, W) of each of the L scales, plain ints.
        positions_BNMLK2: (B, N, M, L, K, 2), as in :func:`sample_sum`.

    Returns:
        (B, N, M, D) in the dtype of ``value_BSMD``.

    Raises:
        ValueError: the tensors' shapes, dtypes or devices do not fit together.
    """
    _check(value_BSMD, shapes, positions_BNMLK2)
    B, N, M = positions_BNMLK2.shape[:3]
    if query_BNMD.shape != (B, N, M, value_BSMD.shape[-1]):
        raise ValueError(f"query {tuple(query_BNMD.shape)} must be (B, N, M, D) = {(B, N, M, value_BSMD.shape[-1])}")
    if key_BSMD.shape != value_BSMD.shape:
        raise ValueError(f"key {tuple(key_BSMD.shape)} and value {tuple(value_BSMD.shape)} must have one shape")
    return reference.sample_attend(query_BNMD, key_BSMD, value_BSMD, shapes, positions_BNMLK2)


def _check(value_BSMD: Tensor, shapes: Sequence[tuple[int, int]], positions_BNMLK2: Tensor) -> None:
    if value_BSMD.ndim != 4 or positions_BNMLK2.ndim != 6 or positions_BNMLK2.shape[-1] != 2:
        raise ValueError(
            f"value {tuple(value_BSMD.shape)} must be (B, S, M, D) and "
            f"positions {tuple(positions_BNMLK2.shape)} (B, N, M, L, K, 2)"
        )
    B, S, M, _ = value_BSMD.shape
    if positions_BNMLK2.shape[0] != B or positions_BNMLK2.shape[2] != M or positions_BNMLK2.shape[3] != len(shapes):
        raise ValueError(
            f"positions {tuple(positions_BNMLK2.shape)} must be (B, N, M, L, K, 2) "
            f"with B = {B}, M = {M}, L = {len(shapes)}"
        )
    if sum(h * w for h, w in shapes) != S:
        raise ValueError(f"shapes {tuple(shapes)} hold {sum(h * w for h, w in shapes)} pixels, value has {S}")
    if positions_BNMLK2.dtype != (torch.float64 if value_BSMD.dtype == torch.float64 else torch.float32):
        raise ValueError(
            f"positions are {positions_BNMLK2.dtype}: they must be float32 whatever the dtype of the values "
            "(half precision loses up to a pixel), and float64 for float64 values"
        )
