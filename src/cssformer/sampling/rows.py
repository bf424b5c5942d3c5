"""Rows of D channels as vector registers inside numba kernels.

Numba leaves vectorisation to LLVM's loop passes, which keep a row's accumulator in memory. Here a row is one LLVM value
of type ``<D x float>`` with D known at compile time: LLVM maps it on whatever registers the machine has (AVX-512, AVX2,
NEON), for any D.

The functions are called inside kernels only. Offsets count floats from the start of a contiguous float32 array, and are
not checked.
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
    return builder.bitcast(builder.gep(data, [offset]), ir.VectorType(ir.FloatType(), lanes).as_pointer())


def _splat(builder: Any, scalar: Any, lanes: int) -> Any:
    undefined = ir.Constant(ir.VectorType(ir.FloatType(), lanes), ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


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
        return builder.load(pointer, align=4)

    return row(array, types.intp, lanes), codegen


@_intrinsic
def store(typingctx: Any, array: Any, offset: Any, row: Any) -> Any:
    """``array[offset : offset + D] = row``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _pointer(context, builder, signature.args[0], args[0], args[1], row.lanes), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, row), codegen


@_intrinsic
def add(typingctx: Any, left: Any, right: Any) -> Any:
    """``left + right``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(args[0], args[1])

    return left(left, left), codegen


@_intrinsic
def add_scaled(typingctx: Any, row: Any, scale: Any, other: Any) -> Any:
    """``row + scale * other``, fused where the machine can."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = args[0].type
        # llvmlite's declare_intrinsic does not know vector types.
        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{row.lanes}f32"
        )
        return builder.call(fused, [_splat(builder, args[1], row.lanes), args[2], args[0]])

    return row(row, types.float32, row), codegen


@_intrinsic
def dot(typingctx: Any, left: Any, right: Any) -> Any:
    """``Σ left * right``, summed as a tree."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        real = ir.FloatType()
        reduce = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(real, [real, args[0].type]), f"llvm.vector.reduce.fadd.v{left.lanes}f32"
        )
        product = builder.fmul(args[0], args[1])
        return builder.call(reduce, [ir.Constant(real, 0.0), product], fastmath=("reassoc",))

    return types.float32(left, left), codegen
