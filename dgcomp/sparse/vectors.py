"""Vector steps of the sparse product as LLVM operations that every CPU has, in few instructions where it can.

numba's loop vectorizer gives up where arrays could overlap or where positions depend on data; these say what is meant.
Each works on PIECE or RUN neighbouring entries whatever is asked of it: callers leave room behind their arrays' ends.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types
from numba.core import cgutils

__all__ = [
    "PIECE",
    "RUN",
    "count_ones",
    "nonzero_words",
    "prefetch",
    "prefetch_to_write",
    "rank",
    "scale",
    "take_touched",
    "touched_columns",
    "trailing_zeros",
]

PIECE = 16  # entries that `scale` and `rank` handle
RUN = 8  # columns of the accumulator that `take_touched` hands out, words that `nonzero_words` looks at

_intrinsic: Any = extending.intrinsic  # its types do not know that the first argument is numba's own
_BIT, _BYTE, _INT32, _INT64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)


@_intrinsic
def trailing_zeros(typingctx: Any, word: Any) -> Any:
    """Trailing zero bits of a uint64 that is not zero."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], cgutils.true_bit)

    return types.uint64(types.uint64), codegen


@_intrinsic
def count_ones(typingctx: Any, word: Any) -> Any:
    """Set bits of a uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), codegen


@_intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of array[index] to read; never faults, so the index need not be right."""
    return types.void(array, types.uint64), _prefetch_for(write=False)


@_intrinsic
def prefetch_to_write(typingctx: Any, array: Any, index: Any) -> Any:
    """The same for a line that will be written."""
    return types.void(array, types.uint64), _prefetch_for(write=True)


@_intrinsic
def scale(typingctx: Any, bj: Any, bx: Any, q: Any, factor: Any, columns: Any, products: Any, m: Any) -> Any:
    """From m on: columns = bj and products = factor * bx, PIECE entries from q on.

    bj is int32, or uint16: of those, columns (int16) holds what is left after subtracting 2**15, in the same order.
    """
    is_short = bj.dtype.bitwidth == 16

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = _addresses(context, builder, signature, args)
        vector = ir.VectorType(_element(context, bj), PIECE)
        indices = _load(builder, at(0, args[2]), vector)
        if is_short:
            indices = builder.xor(indices, ir.Constant(vector, [1 << 15] * PIECE))
        _store(builder, indices, at(4, args[6]))
        values = ir.VectorType(_element(context, bx), PIECE)
        product = builder.fmul(_load(builder, at(1, args[2]), values), _splat(builder, values, args[3]))
        _store(builder, product, at(5, args[6]))
        return context.get_dummy_value()

    return types.void(bj, bx, types.uint64, bx.dtype, columns, products, types.uint64), codegen


@_intrinsic
def rank(typingctx: Any, columns: Any, count: Any, t: Any, ranks: Any) -> Any:
    """ranks[t] = how many of the first `count` columns are below columns[t], for PIECE of them; the sum of the ranks.

    Both arrays are int16 or both int32; the sum must be below 2**15 with int16.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = _addresses(context, builder, signature, args)
        element = _element(context, columns)
        lanes = 256 // element.width  # at 256 bits they are compared without mask registers, which costs half
        vector = ir.VectorType(element, lanes)
        places = [builder.add(args[2], _INT64(shift)) for shift in range(0, PIECE, lanes)]
        own = [_load(builder, at(0, place), vector) for place in places]
        below = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0] * lanes)) for _ in places]
        with cgutils.for_range(builder, args[1]) as loop:
            other = _splat(builder, vector, builder.load(at(0, loop.index)))
            for mine, total in zip(own, below, strict=True):
                is_below = builder.sext(builder.icmp_signed("<", other, mine), vector)
                builder.store(builder.sub(builder.load(total), is_below), total)
        add = _declare(builder, f"llvm.vector.reduce.add.v{lanes}i{element.width}", element, vector)
        sum_of_ranks = _INT64(0)
        for place, total in zip(places, below, strict=True):
            _store(builder, builder.load(total), at(3, place))
            part = builder.zext(builder.call(add, [builder.load(total)]), _INT64)
            sum_of_ranks = builder.add(sum_of_ranks, part)
        return sum_of_ranks

    return types.uint64(columns, types.uint64, types.uint64, ranks), codegen


@_intrinsic
def touched_columns(typingctx: Any, sums: Any, j: Any) -> Any:
    """RUN bits that say which of the RUN sums from column j on are not -0.0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, touched = _touched(context, builder, sums, _addresses(context, builder, signature, args)(0, args[1]))
        return builder.zext(builder.bitcast(touched, ir.IntType(RUN)), _INT64)

    return types.uint64(sums, types.uint64), codegen


@_intrinsic
def take_touched(typingctx: Any, sums: Any, j: Any, cj: Any, cx: Any, o: Any) -> Any:
    """Move those of the RUN sums from column j on that are not -0.0 to C from entry o on; the entry after the last.

    Leaves -0.0 in all of them, and anything in the RUN entries of C from the returned one on.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = _addresses(context, builder, signature, args)
        cells = at(0, args[1])
        values, touched = _touched(context, builder, sums, cells)
        index = _element(context, cj)
        indices = ir.VectorType(index, RUN)
        first = builder.trunc(args[1], index) if index.width < 64 else args[1]
        columns = builder.add(_splat(builder, indices, first), ir.Constant(indices, list(range(RUN))))
        _store(builder, _compress(builder, columns, touched, f"i{index.width}"), at(2, args[4]))
        _store(builder, _compress(builder, values, touched, f"f{sums.dtype.bitwidth}"), at(3, args[4]))
        _store(builder, ir.Constant(values.type, [-0.0] * RUN), cells)
        return builder.add(args[4], builder.zext(builder.ctpop(builder.bitcast(touched, ir.IntType(RUN))), _INT64))

    return types.uint64(sums, types.uint64, cj, cx, types.uint64), codegen


@_intrinsic
def nonzero_words(typingctx: Any, words: Any, w: Any) -> Any:
    """RUN bits that say which of the RUN uint64 words from w on are not zero."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(_INT64, RUN)
        loaded = _load(builder, _addresses(context, builder, signature, args)(0, args[1]), vector)
        is_set = builder.icmp_unsigned("!=", loaded, ir.Constant(vector, [0] * RUN))
        return builder.zext(builder.bitcast(is_set, ir.IntType(RUN)), _INT64)

    return types.uint64(words, types.uint64), codegen


def _prefetch_for(*, write: bool) -> Callable[..., Any]:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = builder.bitcast(_addresses(context, builder, signature, args)(0, args[1]), _BYTE.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [address.type, _INT32, _INT32, _INT32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, _INT32(int(write)), _INT32(3), _INT32(1)])  # keep in all caches, data
        return context.get_dummy_value()

    return codegen


def _addresses(context: Any, builder: Any, signature: Any, args: Any) -> Callable[[int, Any], Any]:
    """A function that gives the address of an element of one of the arguments, an array."""

    def address(number: int, index: Any) -> Any:
        data = context.make_array(signature.args[number])(context, builder, args[number]).data
        return builder.gep(data, [index])

    return address


def _touched(context: Any, builder: Any, sums: Any, cells: Any) -> tuple[Any, Any]:
    """The RUN sums at an address, and which of them are not -0.0."""
    bits = sums.dtype.bitwidth
    integers = ir.VectorType(ir.IntType(bits), RUN)
    values = _load(builder, cells, ir.VectorType(_element(context, sums), RUN))
    untouched = ir.Constant(integers, [-(1 << (bits - 1))] * RUN)
    return values, builder.icmp_signed("!=", builder.bitcast(values, integers), untouched)


def _element(context: Any, array: Any) -> Any:
    return context.get_value_type(array.dtype)


def _width(vector: Any) -> int:
    """Bytes of an element: arrays are aligned to no more."""
    return {ir.FloatType(): 4, ir.DoubleType(): 8}.get(vector.element) or vector.element.width // 8


def _load(builder: Any, address: Any, vector: Any) -> Any:
    return builder.load(builder.bitcast(address, vector.as_pointer()), align=_width(vector))


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=_width(value.type))


def _splat(builder: Any, vector: Any, scalar: Any) -> Any:
    nothing = ir.Constant(vector, ir.Undefined)
    lanes = ir.VectorType(_INT32, vector.count)
    first = builder.insert_element(nothing, scalar, _INT32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(lanes, [0] * vector.count))


def _compress(builder: Any, value: Any, mask: Any, suffix: str) -> Any:
    """The elements under the mask moved to the front."""
    name = f"llvm.experimental.vector.compress.v{value.type.count}{suffix}"
    function = _declare(builder, name, value.type, value.type, mask.type, value.type)
    return builder.call(function, [value, mask, ir.Constant(value.type, ir.Undefined)])


def _declare(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)
