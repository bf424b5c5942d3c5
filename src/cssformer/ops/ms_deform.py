"""The two sampling functions, and the one place that chooses who computes them.

Backends: ``reference`` (the definition) and ``gather`` (for exports), both in plain PyTorch, ``numba`` (CPU) and
``triton`` (CUDA). A fast backend is a module with ``sum_forward``, ``sum_backward``, ``attend_forward`` and
``attend_backward``; see :mod:`cssformer.ops.numba`.
"""

import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cssformer.ops import gather, reference
from cssformer.ops.recording import Sampling, record
from cssformer.ops.reference import Shapes
from cssformer.utils.errors import UserError

BACKENDS = ("auto", "reference", "gather", "numba", "triton")
_PLAIN = {"reference": reference, "gather": gather}
_BACKEND_OF_DEVICE = {"cpu": "numba", "cuda": "triton"}

_choice = os.environ.get("CSSFORMER_SAMPLING", "auto")
if _choice not in BACKENDS:
    raise UserError(f"CSSFORMER_SAMPLING is {_choice!r}; set it to one of {', '.join(BACKENDS)}, or unset it.")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Let ``name`` compute every sampling inside the block, in all threads; for tests and for debugging.

    The environment variable ``CSSFORMER_SAMPLING`` does the same for a whole process. ``auto``, the default, goes by
    the tensor's device. A forward by ``reference`` or ``gather`` is differentiated by autograd, any other by the fast
    backend chosen when backward runs.

    Raises:
        ValueError: ``name`` is not one of ``BACKENDS``.
    """
    global _choice
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is not one of {BACKENDS}")
    before, _choice = _choice, name
    try:
        yield
    finally:
        _choice = before


def ms_deform_sample(value_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor, weights_BNMLK: Tensor) -> Tensor:
    """Weighted sum of bilinear samples from all scales, the sparse sampling of MSFE.

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
    _check(value_BSMD, shapes, positions_BNMLK2, weights_BNMLK)
    if weights_BNMLK.shape != positions_BNMLK2.shape[:-1]:
        raise ValueError(
            f"weights {tuple(weights_BNMLK.shape)} must have the shape of positions "
            f"{tuple(positions_BNMLK2.shape)} without its last axis"
        )
    record(Sampling(shapes, positions_BNMLK2, weights_BNMLK))
    if by_definition(value_BSMD):
        return _plain().ms_deform_sample(value_BSMD, shapes, positions_BNMLK2, weights_BNMLK)
    return _ms_deform_sample(value_BSMD, _flat(shapes), positions_BNMLK2, weights_BNMLK)


def ms_deform_attend(
    query_BNMD: Tensor, key_BSMD: Tensor, value_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor
) -> Tensor:
    """Attention of each query over its own bilinear samples from all scales, as in CSF.

    ``out[b, n, m] = Σ_lk softmax_lk(query[b, n, m] · key_l[b, m](p_lk) / √D) · value_l[b, m](p_lk)``

    The softmax runs over all L·K samples; 1/√D is applied here, as in ``scaled_dot_product_attention``. A position
    outside the map (or NaN, or infinite) samples a zero key and a zero value: its logit is 0 and it takes part in the
    softmax.

    Args:
        query_BNMD: (B, N, M, D).
        key_BSMD: (B, S, M, D).
        value_BSMD: (B, S, M, D), the dtype of the result; see :func:`ms_deform_sample`.
        shapes: (H, W) of each of the L scales, plain ints.
        positions_BNMLK2: (B, N, M, L, K, 2), as in :func:`ms_deform_sample`.

    Returns:
        (B, N, M, D) in the dtype of ``value_BSMD``.

    Raises:
        ValueError: the tensors' shapes, dtypes or devices do not fit together.
    """
    _check(value_BSMD, shapes, positions_BNMLK2, query_BNMD, key_BSMD)
    B, N, M = positions_BNMLK2.shape[:3]
    if query_BNMD.shape != (B, N, M, value_BSMD.shape[-1]):
        raise ValueError(f"query {tuple(query_BNMD.shape)} must be (B, N, M, D) = {(B, N, M, value_BSMD.shape[-1])}")
    if key_BSMD.shape != value_BSMD.shape:
        raise ValueError(f"key {tuple(key_BSMD.shape)} and value {tuple(value_BSMD.shape)} must have one shape")
    record(Sampling(shapes, positions_BNMLK2, query=query_BNMD, key=key_BSMD))
    if by_definition(value_BSMD):
        return _plain().ms_deform_attend(query_BNMD, key_BSMD, value_BSMD, shapes, positions_BNMLK2)
    return _ms_deform_attend(query_BNMD, key_BSMD, value_BSMD, _flat(shapes), positions_BNMLK2)


def _check(value_BSMD: Tensor, shapes: Shapes, positions_BNMLK2: Tensor, *others: Tensor) -> None:
    devices = {tensor.device for tensor in (value_BSMD, positions_BNMLK2, *others)}
    if len(devices) > 1:
        raise ValueError(f"all tensors must be on one device, not on {', '.join(sorted(map(str, devices)))}")
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


# ---------------------------------------------------------------- who computes it


def by_definition(value: Tensor) -> bool:
    """Whether plain PyTorch samples the value: in exports, in float64, where no kernels are, or if that was chosen."""
    exporting = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()
    if exporting or value.dtype == torch.float64:
        return True
    return _choice in _PLAIN or not _usable(_wanted(value.device.type))


def _plain() -> ModuleType:
    return _PLAIN.get(_choice, reference)


def _wanted(device: str) -> str:
    return _BACKEND_OF_DEVICE.get(device, device) if _choice in ("auto", *_PLAIN) else _choice


def _usable(backend: str) -> bool:
    return _module(backend) is not None


# What torch.compiler.assume_constant_result does, for which it imports the compiler.
_usable._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _module(backend: str) -> ModuleType | None:
    """The fast backend for a device type, or None, with a warning that says why."""
    if backend not in BACKENDS:
        reason = "there are fast kernels for cpu and cuda only"
    else:
        try:
            return importlib.import_module(f"cssformer.ops.{backend}")
        except ImportError as error:
            reason = str(error)
    warnings.warn(
        f"Sampling on {backend} uses its definition in plain PyTorch, which is many times slower: {reason}.",
        stacklevel=2,
    )
    return None


def _fast(tensor: Tensor) -> ModuleType:
    module = _module(_wanted(tensor.device.type))
    assert module is not None, "by_definition let through a device without fast kernels"
    return module


# ---------------------------------------------------------------- one node for torch.compile
# Operators take shapes as one flat list, the only form a schema knows; empty tensors stand for gradients not asked for.


def _flat(shapes: Shapes) -> list[int]:
    return [size for shape in shapes for size in shape]


def _pairs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(sizes[::2], sizes[1::2], strict=True))


def _operator(function: Callable[..., Any]) -> Any:
    """The function as an operator of PyTorch; calling one made by its ``custom_op`` would import the compiler."""
    name = function.__name__.removeprefix("_")
    schema = torch.library.infer_schema(function, mutates_args=())
    torch.library.define(f"cssformer::{name}", schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(f"cssformer::{name}", "default", function)
    return getattr(torch.ops.cssformer, name)


@_operator
def _ms_deform_sample(value: Tensor, shapes: Sequence[int], positions: Tensor, weights: Tensor) -> Tensor:
    out: Tensor = _fast(value).sum_forward(value, _pairs(shapes), positions, weights)
    return out


@torch.library.register_fake("cssformer::ms_deform_sample")
def _(value: Tensor, shapes: Sequence[int], positions: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty((*positions.shape[:3], value.shape[-1]))


@_operator
def _ms_deform_sample_backward(
    grad: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    positions: Tensor,
    weights: Tensor,
    to_value: bool,
    to_points: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grads: tuple[Tensor, Tensor, Tensor] = _fast(value).sum_backward(
        grad, value, _pairs(shapes), positions, weights, to_value, to_points
    )
    return grads


@torch.library.register_fake("cssformer::ms_deform_sample_backward")
def _(
    grad: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    positions: Tensor,
    weights: Tensor,
    to_value: bool,
    to_points: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape if to_value else 0),
        positions.new_empty(positions.shape if to_points else 0),
        weights.new_empty(weights.shape if to_points else 0),
    )


def _sum_context(ctx: Any, inputs: tuple[Tensor, Sequence[int], Tensor, Tensor], output: Tensor) -> None:
    value, ctx.shapes, positions, weights = inputs
    ctx.save_for_backward(value, positions, weights)


def _asked(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(grad if asked else None for grad, asked in zip(grads, ctx.needs_input_grad, strict=True))


def _sum_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, positions, weights = ctx.saved_tensors
    to_value, _, to_positions, to_weights = ctx.needs_input_grad
    of_value, of_positions, of_weights = _ms_deform_sample_backward(
        grad, value, ctx.shapes, positions, weights, to_value, to_positions or to_weights
    )
    return _asked(ctx, of_value, None, of_positions, of_weights)


torch.library.register_autograd("cssformer::ms_deform_sample", _sum_gradient, setup_context=_sum_context)


@_operator
def _ms_deform_attend(query: Tensor, key: Tensor, value: Tensor, shapes: Sequence[int], positions: Tensor) -> Tensor:
    out: Tensor = _fast(value).attend_forward(query, key, value, _pairs(shapes), positions)
    return out


@torch.library.register_fake("cssformer::ms_deform_attend")
def _(query: Tensor, key: Tensor, value: Tensor, shapes: Sequence[int], positions: Tensor) -> Tensor:
    return value.new_empty(query.shape)


@_operator
def _ms_deform_attend_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, shapes: Sequence[int], positions: Tensor, to_maps: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads: tuple[Tensor, Tensor, Tensor, Tensor] = _fast(value).attend_backward(
        grad, query, key, value, _pairs(shapes), positions, to_maps
    )
    return grads


@torch.library.register_fake("cssformer::ms_deform_attend_backward")
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, shapes: Sequence[int], positions: Tensor, to_maps: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        query.new_empty(query.shape),
        key.new_empty(key.shape if to_maps else 0),
        value.new_empty(value.shape if to_maps else 0),
        positions.new_empty(positions.shape),
    )


def _attend_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Sequence[int], Tensor], output: Tensor) -> None:
    query, key, value, ctx.shapes, positions = inputs
    ctx.save_for_backward(query, key, value, positions)


def _attend_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, positions = ctx.saved_tensors
    _, to_key, to_value, *_ = ctx.needs_input_grad
    of_query, of_key, of_value, of_positions = _ms_deform_attend_backward(
        grad, query, key, value, ctx.shapes, positions, to_key or to_value
    )
    return _asked(ctx, of_query, of_key, of_value, None, of_positions)


torch.library.register_autograd("cssformer::ms_deform_attend", _attend_gradient, setup_context=_attend_context)
