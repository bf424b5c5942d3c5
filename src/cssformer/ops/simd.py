"""Rows of D channels as vector registers inside numba kernels.

Numba leaves vectorisation to LLVM's loop passes, which keep a row's accumulator in memory. Here a row is one LLVM value
of type ``<D x float>`` with D known at compile time: LLVM maps it on whatever registers the machine has (AVX-512, AVX2,
NEON), for any D.

The functions are called inside kernels only, where rows also take ``+ - *``, ``>= <`` and ``&``, with rows or numbers;
a product that is added is fused where the machine can. Offsets count elements from the start of a contiguous array, and
are not checked. A uint16 array holds bits of bfloat16 numbers, which ``load`` wants in the order of ``lay``.
Sums over a row's lanes are in :mod:`cssformer.ops.simd_sums`. Numba's cache on disk watches a kernel's own file alone:
after a change here, touch the kernels' files, ``numba_*.py`` and ``accelerate/resize.py``.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import lower_builtin, models, register_model
from torch import Tensor

# Numba's annotations describe an intrinsic by its implementation, not by the call a kernel makes.
intrinsic: Any = numba_intrinsic(prefer_literal=True)

_ELEMENTS = {types.float32: ir.FloatType(), types.int32: ir.IntType(32), types.boolean: ir.IntType(1)}

LANES = 16  # of rows whose length nothing else decides; a power of two


def elements(tensor: Tensor, dtype: torch.dtype) -> Any:
    """The tensor's numbers as kernels take them, flat: the bits of bfloat16 if ``dtype`` is that, else float32.

    They share the memory of a contiguous tensor that has this precision already.
    """
    if dtype == torch.bfloat16:
        return tensor.detach().to(dtype).contiguous().view(-1).view(torch.int16).numpy().view(np.uint16)
    return tensor.detach().float().contiguous().view(-1).numpy()


class Row(types.Type):
    """``lanes`` values side by side, of float32 unless said otherwise."""

    def __init__(self, lanes: int, element: Any = types.float32) -> None:
        self.lanes = lanes
        self.element = element
        super().__init__(name=f"Row({lanes}, {element})")


def _vector(row: Row) -> Any:
    return ir.VectorType(_ELEMENTS[row.element], row.lanes)


@register_model(Row)
class _RowModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Row) -> None:
        super().__init__(dmm, fe_type, _vector(fe_type))


def address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, lanes: int) -> Any:
    """Where ``array[offset : offset + lanes]`` begins, as a pointer to a vector."""
    data = context.make_array(array_type)(context, builder, array).data
    element = ir.IntType(16) if array_type.dtype == types.uint16 else _ELEMENTS[array_type.dtype]
    return builder.bitcast(builder.gep(data, [offset]), ir.VectorType(element, lanes).as_pointer())


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def each(vector: Any, value: float) -> Any:
    """The constant of a vector type whose lanes all have this value."""
    return ir.Constant(vector, [value] * vector.count)


def _real(builder: Any, words: Any) -> Any:
    return builder.bitcast(words, ir.VectorType(ir.FloatType(), words.type.count))


def _widened(builder: Any, halves: Any) -> Any:
    """bfloat16 numbers as float32."""
    word = ir.VectorType(ir.IntType(32), halves.type.count)
    return _real(builder, builder.shl(builder.zext(halves, word), each(word, 16)))


def _rounded(builder: Any, row: Any) -> Any:
    """float32 numbers as bfloat16, to the nearest, ties to even."""
    word = ir.VectorType(ir.IntType(32), row.type.count)
    bits = builder.bitcast(row, word)
    odd = builder.and_(builder.lshr(bits, each(word, 16)), each(word, 1))
    nearest = builder.add(bits, builder.add(odd, each(word, 0x7FFF)))
    # Rounding the bits of a NaN could make it infinite.
    nearest = builder.select(builder.fcmp_ordered("ord", row, row), nearest, each(word, 0x7FC00000))
    return builder.trunc(builder.lshr(nearest, each(word, 16)), ir.VectorType(ir.IntType(16), row.type.count))


def _halves(builder: Any, words: Any) -> tuple[Any, Any]:
    """The bfloat16 numbers in the lower and the upper halves of 32-bit words: they are upper halves of float32."""
    lower, upper = builder.shl(words, each(words.type, 16)), builder.and_(words, each(words.type, 0xFFFF0000))
    return _real(builder, lower), _real(builder, upper)


def pick(builder: Any, left: Any, right: Any, lanes: list[int]) -> Any:
    """A vector of these lanes of two, those of ``right`` counted on behind those of ``left``."""
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _alike(context: Any, builder: Any, row: Row, kinds: Any, values: Any) -> list[Any]:
    """Values of which some are numbers, all as rows."""
    return [
        value if isinstance(kind, Row) else _splat(builder, context.cast(builder, value, kind, row.element), row.lanes)
        for value, kind in zip(values, kinds, strict=True)
    ]


def _operator(operation: Any, build: Callable[[Any, Any, Any, Any], Any], element: Any = None) -> None:
    """Let kernels write ``operation`` between rows, or a row and a number; ``element`` is the result's, if another."""

    class Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            row = next((kind for kind in args if isinstance(kind, Row)), None)
            return row and signature(Row(row.lanes, element or row.element), *args)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        row = next(kind for kind in signature.args if isinstance(kind, Row))
        return build(builder, row.element, *_alike(context, builder, row, signature.args, args))

    infer_global(operation)(Template)
    for kinds in ((Row, Row), (Row, types.Number), (types.Number, Row)):
        lower_builtin(operation, *kinds)(codegen)


def _arithmetic(name: str) -> Callable[[Any, Any, Any, Any], Any]:
    def build(builder: Any, element: Any, left: Any, right: Any) -> Any:
        if element == types.float32:
            return getattr(builder, f"f{name}")(left, right, flags=("contract",))
        return getattr(builder, name)(left, right)

    return build


def _comparison(sign: str) -> Callable[[Any, Any, Any, Any], Any]:
    return lambda builder, element, left, right: builder.fcmp_ordered(sign, left, right)


_operator(operator.add, _arithmetic("add"))
_operator(operator.iadd, _arithmetic("add"))
_operator(operator.sub, _arithmetic("sub"))
_operator(operator.mul, _arithmetic("mul"))
_operator(operator.ge, _comparison(">="), types.boolean)
_operator(operator.lt, _comparison("<"), types.boolean)
_operator(operator.and_, lambda builder, element, left, right: builder.and_(left, right))


@intrinsic
def where(typingctx: Any, truths: Any, one: Any, other: Any) -> Any:
    """Lanes of ``one`` where true, else of ``other``; either may be a number."""
    row = next(kind for kind in (one, other) if isinstance(kind, Row))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(args[0], *_alike(context, builder, row, signature.args[1:], args[1:]))

    return row(truths, one, other), codegen


@intrinsic
def floor(typingctx: Any, row: Any) -> Any:
    """The largest whole numbers not above."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = args[0].type
        # llvmlite's declare_intrinsic does not know vector types.
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector]), f"llvm.floor.v{row.lanes}f32"
        )
        return builder.call(function, args)

    return row(row), codegen


@intrinsic
def integers(typingctx: Any, row: Any) -> Any:
    """Whole numbers as int32, which must be able to hold them: anything else, NaN too, is undefined."""
    whole = Row(row.lanes, types.int32)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fptosi(args[0], _vector(whole))

    return whole(row), codegen


@intrinsic
def power_of_two(typingctx: Any, row: Any) -> Any:
    """2 to the power of whole numbers from -126 to 127; of anything else, any number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.VectorType(ir.IntType(32), row.lanes)
        # Next to 1.5 * 2^23 the last bits of a float32 count in ones: here they hold the exponent and its bias.
        shifted = builder.fadd(args[0], each(args[0].type, 1.5 * 2**23 + 127))
        return _real(builder, builder.shl(builder.bitcast(shifted, word), each(word, 23)))

    return row(row), codegen


@intrinsic
def zero(typingctx: Any, lanes: Any) -> Any:
    """A row of ``lanes`` zeros; ``lanes`` is a compile-time constant."""
    row = Row(lanes.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.VectorType(ir.FloatType(), row.lanes), [0.0] * row.lanes)

    return row(lanes), codegen


@intrinsic
def load(typingctx: Any, array: Any, offset: Any, lanes: Any) -> Any:
    """``array[offset : offset + lanes]``; ``lanes`` is a compile-time constant."""
    row = Row(lanes.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1], row.lanes)
        if array.dtype != types.uint16:
            return builder.load(pointer, align=4)
        if row.lanes % 2:
            return _widened(builder, builder.load(pointer, align=2))
        word = ir.VectorType(ir.IntType(32), row.lanes // 2)
        pairs = builder.load(builder.bitcast(pointer, word.as_pointer()), align=2)
        return pick(builder, *_halves(builder, pairs), list(range(row.lanes)))

    return row(array, types.intp, lanes), codegen


@intrinsic
def number(typingctx: Any, array: Any, offset: Any) -> Any:
    """``array[offset]``; of a plain index numba asks whether it counts from the end."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return array.dtype(array, types.intp), codegen


@intrinsic
def numbers(typingctx: Any, array: Any, offset: Any, lanes: Any) -> Any:
    """As ``load``, but bfloat16 numbers were not laid by :func:`lay`."""
    row = Row(lanes.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1], row.lanes)
        loaded = builder.load(pointer, align=array.dtype.bitwidth // 8)
        return _widened(builder, loaded) if array.dtype == types.uint16 else loaded

    return row(array, types.intp, lanes), codegen


@intrinsic
def pairs(typingctx: Any, array: Any, offset: Any, like: Any) -> Any:
    """As ``numbers``: the first of each pair as one row, the second as another, both as long as ``like``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1], 2 * like.lanes)
        if array.dtype == types.uint16:
            word = ir.VectorType(ir.IntType(32), like.lanes)
            split = _halves(builder, builder.load(builder.bitcast(pointer, word.as_pointer()), align=2))
        else:
            both = builder.load(pointer, align=4)
            split = tuple(pick(builder, both, both, list(range(first, 2 * like.lanes, 2))) for first in (0, 1))
        return context.make_tuple(builder, signature.return_type, split)

    return types.UniTuple(like, 2)(array, types.intp, like), codegen


@intrinsic
def store(typingctx: Any, array: Any, offset: Any, row: Any) -> Any:
    """``array[offset : offset + D] = row``, in plain order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1], row.lanes)
        value = _rounded(builder, args[2]) if array.dtype == types.uint16 else args[2]
        builder.store(value, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, row), codegen


@intrinsic
def lay(typingctx: Any, target: Any, target_offset: Any, source: Any, source_offset: Any, lanes: Any) -> Any:
    """``target[target_offset : + lanes] = source[source_offset : + lanes]``, the way ``load`` wants it.

    bfloat16 rows are laid as pairs of their first and second half: two halves of 32-bit words then become two vectors
    by a shift and a mask, where neighbours would have to be spread over twice the lanes first.
    """
    count = lanes.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to = address(context, builder, signature.args[0], args[0], args[1], count)
        origin = address(context, builder, signature.args[2], args[2], args[3], count)
        align = source.dtype.bitwidth // 8
        row = builder.load(origin, align=align)
        if source.dtype == types.uint16 and count % 2 == 0:
            row = pick(builder, row, row, [lane // 2 + lane % 2 * (count // 2) for lane in range(count)])
        builder.store(row, to, align=align)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, lanes), codegen


@intrinsic
def announce(typingctx: Any, array: Any, start: Any, count: Any) -> Any:
    """Ask for the cache lines of ``array[start : start + count]``, which may lie outside: a prefetch never faults."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        hint = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, word, word, word]), "llvm.prefetch.p0"
        )
        read, keep, from_data = ir.Constant(word, 0), ir.Constant(word, 3), ir.Constant(word, 1)
        first, line = args[1], args[1].type(64 * 8 // array.dtype.bitwidth)
        with cgutils.for_range_slice(builder, first, builder.add(first, args[2]), line, first.type) as (offset, _):
            builder.call(hint, [builder.bitcast(builder.gep(data, [offset]), byte), read, keep, from_data])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen


@intrinsic
def accumulate(typingctx: Any, array: Any, offset: Any, scale: Any, row: Any) -> Any:
    """``array[offset : offset + D] += scale * row``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = address(context, builder, signature.args[0], args[0], args[1], row.lanes)
        vector = args[3].type
        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{row.lanes}f32"
        )
        scale = _splat(builder, args[2], row.lanes)
        builder.store(builder.call(fused, [scale, args[3], builder.load(pointer, align=4)]), pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32, row), codegen
