"""Rows of D channels as vector registers inside numba kernels.

Numba leaves vectorisation to LLVM's loop passes, which keep a row's accumulator in memory. Here a row is one LLVM value
of type ``<D x float>`` with D known at compile time: LLVM maps it on whatever registers the machine has (AVX-512, AVX2,
NEON), for any D.

The functions are called inside kernels only. Offsets count elements from the start of a contiguous float32 array, and
are not checked. ``load`` also takes bfloat16 rows, as a uint16 array of their bits in the order of ``lay``.
Numba's cache on disk watches the kernels' file alone: after a change here, touch ``cpu.py``.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

# Numba's annotations describe an intrinsic by its implementation, not by the call a kernel makes.
_intrinsic: Any = intrinsic(prefer_literal=True)


class Row(types.Type):
    """``lanes`` float32 values side by side."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Row({lanes})")


@register_model(Row)
class _RowModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Row) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(ir.FloatType(), fe_type.lanes))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, lanes: int) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    element = ir.IntType(16) if array_type.dtype == types.uint16 else ir.FloatType()
    return builder.bitcast(builder.gep(data, [offset]), ir.VectorType(element, lanes).as_pointer())


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    undefined = ir.Constant(ir.VectorType(ir.FloatType(), lanes), ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def _each(vector: Any, value: int) -> Any:
    return ir.Constant(vector, [value] * vector.count)


def _pick(builder: Any, left: Any, right: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


@_intrinsic
def zero(typingctx: Any, lanes: Any) -> Any:
    """A row of ``lanes`` zeros; ``lanes`` is a compile-time constant."""
    row = Row(lanes.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.VectorType(ir.FloatType(), row.lanes), [0.0] * row.lanes)

    return row(lanes), codegen


@_intrinsic
def load(typingctx: Any, array: Any, offset: Any, lanes: Any) -> Any:
    """``array[offset : offset + lanes]``; ``lanes`` is a compile-time constant."""
    row = Row(lanes.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], row.lanes)
        if array.dtype != types.uint16:
            return builder.load(pointer, align=4)
        # A bfloat16 is the upper half of a float32.
        real = ir.FloatType()
        if row.lanes % 2:
            word = ir.VectorType(ir.IntType(32), row.lanes)
            bits = builder.zext(builder.load(pointer, align=2), word)
            return builder.bitcast(builder.shl(bits, _each(word, 16)), ir.VectorType(real, row.lanes))
        half = row.lanes // 2
        word = ir.VectorType(ir.IntType(32), half)
        pairs = builder.load(builder.bitcast(pointer, word.as_pointer()), align=2)
        first = builder.bitcast(builder.shl(pairs, _each(word, 16)), ir.VectorType(real, half))
        second = builder.bitcast(builder.and_(pairs, _each(word, 0xFFFF0000)), ir.VectorType(real, half))
        return _pick(builder, first, second, list(range(row.lanes)))

    return row(array, types.intp, lanes), codegen


@_intrinsic
def number(typingctx: Any, array: Any, offset: Any) -> Any:
    """``array[offset]`` of float32 numbers, or of bfloat16 ones that were not laid by :func:`lay`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        value = builder.load(builder.gep(data, [args[1]]))
        if array.dtype != types.uint16:
            return value
        word = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.zext(value, word), ir.Constant(word, 16)), ir.FloatType())

    return types.float32(array, types.intp), codegen


@_intrinsic
def store(typingctx: Any, array: Any, offset: Any, row: Any) -> Any:
    """``array[offset : offset + D] = row``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, signature.args[0], args[0], args[1], row.lanes), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, row), codegen


@_intrinsic
def lay(typingctx: Any, target: Any, target_offset: Any, source: Any, source_offset: Any, lanes: Any) -> Any:
    """``target[target_offset : + lanes] = source[source_offset : + lanes]``, the way ``load`` wants it.

    bfloat16 rows are laid as pairs of their first and second half: two halves of 32-bit words then become two vectors
    by a shift and a mask, where neighbours would have to be spread over twice the lanes first.
    """
    count = lanes.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to = _pointer(context, builder, signature.args[0], args[0], args[1], count)
        origin = _pointer(context, builder, signature.args[2], args[2], args[3], count)
        align = source.dtype.bitwidth // 8
        row = builder.load(origin, align=align)
        if source.dtype == types.uint16 and count % 2 == 0:
            row = _pick(builder, row, row, [lane // 2 + lane % 2 * (count // 2) for lane in range(count)])
        builder.store(row, to, align=align)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, lanes), codegen


@_intrinsic
def prefetch(typingctx: Any, array: Any, offset: Any) -> Any:
    """Ask for the cache line of ``array[offset]``, which may lie outside: a prefetch never faults."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        hint = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, word, word, word]), "llvm.prefetch.p0"
        )
        read, keep, from_data = ir.Constant(word, 0), ir.Constant(word, 3), ir.Constant(word, 1)
        builder.call(hint, [builder.bitcast(builder.gep(data, [args[1]]), byte), read, keep, from_data])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@_intrinsic
def add(typingctx: Any, left: Any, right: Any) -> Any:
    """``left + right``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(args[0], args[1])

    return left(left, left), codegen


def _multiply_add(builder: Any, scale: Any, row: Any, to: Any) -> Any:
    vector = row.type
    # llvmlite's declare_intrinsic does not know vector types.
    fused = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{vector.count}f32"
    )
    return builder.call(fused, [_splat(builder, scale, vector.count), row, to])


@_intrinsic
def add_scaled(typingctx: Any, row: Any, scale: Any, other: Any) -> Any:
    """``row + scale * other``, fused where the machine can."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _multiply_add(builder, args[1], args[2], args[0])

    return row(row, types.float32, row), codegen


@_intrinsic
def accumulate(typingctx: Any, array: Any, offset: Any, scale: Any, row: Any) -> Any:
    """``array[offset : offset + D] += scale * row``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], row.lanes)
        total = _multiply_add(builder, args[2], args[3], builder.load(pointer, align=4))
        builder.store(total, pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32, row), codegen


@_intrinsic
def dot(typingctx: Any, left: Any, right: Any) -> Any:
    """``Σ left * right``, summed as a tree."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _total(builder, builder.fmul(args[0], args[1]), left.lanes)

    return types.float32(left, left), codegen


@_intrinsic
def dots(typingctx: Any, row: Any, first: Any, second: Any, third: Any, fourth: Any) -> Any:
    """The dot products of ``row`` with four others, as a tuple.

    The four sums are folded together, which takes a third less than four times ``dot``.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        products = [builder.fmul(args[0], other) for other in args[1:]]
        a, b, c, d = products
        if row.lanes < 4 or row.lanes & (row.lanes - 1):
            sums = [_total(builder, product, row.lanes) for product in products]
        else:
            folded = _fold(builder, _fold(builder, a, b, 1), _fold(builder, c, d, 1), 2)
            while folded.type.count > 4:
                folded = _halve(builder, folded)
            sums = [builder.extract_element(folded, ir.Constant(ir.IntType(32), index)) for index in range(4)]
        return context.make_tuple(builder, signature.return_type, sums)

    return types.UniTuple(types.float32, 4)(row, row, row, row, row), codegen


def _total(builder: Any, row: Any, lanes: int) -> Any:
    real = ir.FloatType()
    reduce = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(real, [real, row.type]), f"llvm.vector.reduce.fadd.v{lanes}f32"
    )
    return builder.call(reduce, [ir.Constant(real, 0.0), row], fastmath=("reassoc",))


def _fold(builder: Any, left: Any, right: Any, sums: int) -> Any:
    """Two vectors holding ``sums`` partial sums each, in equal runs of lanes: one vector holding all of them."""
    lanes = left.type.count
    run = lanes // sums
    low = [lane for lane in range(2 * lanes) if lane % run < run // 2]
    high = [lane + run // 2 for lane in low]
    return builder.fadd(_pick(builder, left, right, low), _pick(builder, left, right, high))


def _halve(builder: Any, folded: Any) -> Any:
    """Four partial sums in equal runs of lanes: the same in half as many lanes."""
    lanes = folded.type.count
    run = lanes // 4
    low = [lane for lane in range(lanes) if lane % run < run // 2]
    return builder.fadd(
        _pick(builder, folded, folded, low), _pick(builder, folded, folded, [lane + run // 2 for lane in low])
    )
