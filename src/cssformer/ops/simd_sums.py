"""Sums and the largest over the lanes of rows, see :mod:`cssformer.ops.simd`."""

from functools import partial, reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from cssformer.ops.simd import LANES, Row, address, each, intrinsic, pick


@intrinsic
def dots(typingctx: Any, row: Any, first: Any, second: Any, third: Any, fourth: Any) -> Any:
    """The dot products of ``row`` with four others, as a tuple.

    The four sums are folded together, which takes a third less than four times ``total``.
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


@intrinsic
def narrow(typingctx: Any, row: Any) -> Any:
    """``LANES`` lanes with the same total: the row cut in pieces and added up."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zeros = each(args[0].type, 0.0)
        pieces = [
            pick(builder, args[0], zeros, [min(lane, row.lanes) for lane in range(start, start + LANES)])
            for start in range(0, row.lanes, LANES)
        ]
        return reduce(partial(builder.fadd, flags=("contract",)), pieces)

    return Row(LANES)(row), codegen


@intrinsic
def totals(typingctx: Any, array: Any, offset: Any) -> Any:
    """The totals of ``LANES`` successive rows of ``LANES`` numbers, as one row."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        offsets = [builder.add(args[1], args[1].type(LANES * index)) for index in range(LANES)]
        rows = [
            builder.load(address(context, builder, signature.args[0], args[0], offset, LANES), align=4)
            for offset in offsets
        ]
        # Two rows become one: in each lane that of one or the other, chosen by one bit of the lane's number, plus the
        # lane of the same row that differs in that bit.
        bit = 1
        while bit < LANES:
            chosen = [lane + (LANES if lane & bit else 0) for lane in range(LANES)]
            others = [lane ^ bit for lane in chosen]
            rows = [
                builder.fadd(pick(builder, left, right, chosen), pick(builder, left, right, others))
                for left, right in zip(rows[::2], rows[1::2], strict=True)
            ]
            bit *= 2
        return rows[0]

    return Row(LANES)(array, types.intp), codegen


@intrinsic
def total(typingctx: Any, row: Any) -> Any:
    """``Σ row``, summed as a tree."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _total(builder, args[0], row.lanes)

    return types.float32(row), codegen


@intrinsic
def largest(typingctx: Any, row: Any) -> Any:
    """The largest of ``LANES`` numbers; if one is NaN, any of them."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        most, bit = args[0], 1
        while bit < LANES:
            others = pick(builder, most, most, [lane ^ bit for lane in range(LANES)])
            most = builder.select(builder.fcmp_ordered("<", most, others), others, most)
            bit *= 2
        return builder.extract_element(most, ir.Constant(ir.IntType(32), 0))

    return types.float32(row), codegen


def _total(builder: Any, row: Any, lanes: int) -> Any:
    real = ir.FloatType()
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(real, [real, row.type]), f"llvm.vector.reduce.fadd.v{lanes}f32"
    )
    return builder.call(function, [ir.Constant(real, 0.0), row], fastmath=("reassoc",))


def _fold(builder: Any, left: Any, right: Any, sums: int) -> Any:
    """Two vectors holding ``sums`` partial sums each, in equal runs of lanes: one vector holding all of them."""
    lanes = left.type.count
    run = lanes // sums
    low = [lane for lane in range(2 * lanes) if lane % run < run // 2]
    high = [lane + run // 2 for lane in low]
    return builder.fadd(pick(builder, left, right, low), pick(builder, left, right, high))


def _halve(builder: Any, folded: Any) -> Any:
    """Four partial sums in equal runs of lanes: the same in half as many lanes."""
    lanes = folded.type.count
    run = lanes // 4
    low = [lane for lane in range(lanes) if lane % run < run // 2]
    return builder.fadd(
        pick(builder, folded, folded, low), pick(builder, folded, folded, [lane + run // 2 for lane in low])
    )
