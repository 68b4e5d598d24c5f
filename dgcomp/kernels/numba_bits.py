"""Floats and their bits, for compiled loops: numba has no bfloat16 or float16, so those arrive as integers.

Arrays of bfloat16 come as uint16 and arrays of float16 as int16; the type of the integer tells the loops which it is.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic, overload

LANES = 16  # elements that reaching_bits looks at; LLVM splits the vector where registers are shorter
_FLOAT16_INFINITY = np.int32(0x7C00)
_BFLOAT16_INFINITY = np.int32(0x7F80)
# the smallest normal float16, 2**-14, as float32 and as float32 bits
_SMALLEST_NORMAL = np.float32(2.0**-14)
_SMALLEST_NORMAL_BITS = np.int32(0x38800000)


def widen(x: Any) -> Any:
    """The float32 value of an element; for compiled code only."""
    raise TypeError(f"widen exists in compiled code only, got {x!r}")


def is_bad(x: Any) -> Any:
    """Whether an element is NaN or infinite; for compiled code only."""
    raise TypeError(f"is_bad exists in compiled code only, got {x!r}")


@overload(widen, inline="always")
def _choose_widen(x: Any) -> Callable[[Any], Any]:
    def from_float32(x: Any) -> Any:
        return x

    def from_bfloat16(x: Any) -> Any:
        return np.int32(np.int32(x) << 16).view(np.float32)

    def from_float16(x: Any) -> Any:
        return _widen_float16(x)

    return {types.float32: from_float32, types.uint16: from_bfloat16, types.int16: from_float16}[x]


@overload(is_bad, inline="always")
def _choose_is_bad(x: Any) -> Callable[[Any], Any]:
    def of_float32(x: Any) -> Any:
        return not (abs(x) < np.float32(np.inf))

    def of_bfloat16(x: Any) -> Any:
        return np.int32(x & 0x7FFF) >= _BFLOAT16_INFINITY

    def of_float16(x: Any) -> Any:
        return np.int32(x & 0x7FFF) >= _FLOAT16_INFINITY

    return {types.float32: of_float32, types.uint16: of_bfloat16, types.int16: of_float16}[x]


@njit(nogil=True)
def _widen_float16(x: int) -> Any:
    """Move exponent and mantissa up by 13 bits and correct the exponent's bias, 127 instead of 15."""
    magnitude = np.int32(x & 0x7FFF)
    sign = np.int32(np.int32(x & -0x8000) << 16)
    moved = np.int32(magnitude << 13)
    normal = np.int32(moved + np.int32(112 << 23))
    # a subnormal is m * 2**-24: put m behind the leading one of 2**-14, and take that one off as a number
    subnormal = np.int32(moved + _SMALLEST_NORMAL_BITS).view(np.float32) - _SMALLEST_NORMAL
    special = np.int32(moved | np.int32(0x7F800000))
    bits = special if magnitude >= _FLOAT16_INFINITY else normal
    bits = np.float32(subnormal).view(np.int32) if magnitude < 0x0400 else bits
    return np.int32(bits | sign).view(np.float32)


@njit(nogil=True)
def magnitude_bits(x: float) -> Any:
    """Read as integers, magnitudes sort as the numbers do, with infinity and NaN at the top."""
    return np.int32(np.float32(x).view(np.int32) & np.int32(0x7FFFFFFF))


def _reaching_bits(typing_context: Any, v: Any, first: Any, limit: Any) -> Any:
    """Bit i says that |v[first + i]| >= limit, for LANES elements of a float32 array.

    Both are compared as the integers that their bits are, so that infinity and NaN reach every limit.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        int32 = ir.IntType(32)
        vector = ir.VectorType(int32, LANES)
        pointer = builder.bitcast(builder.gep(array.data, [arguments[1]]), vector.as_pointer())
        magnitudes = builder.and_(builder.load(pointer, align=4), ir.Constant(vector, [0x7FFFFFFF] * LANES))
        limits = ir.Constant(vector, ir.Undefined)
        for lane in range(LANES):
            limits = builder.insert_element(limits, arguments[2], ir.Constant(int32, lane))
        reaching = builder.icmp_signed(">=", magnitudes, limits)
        return builder.zext(builder.bitcast(reaching, ir.IntType(LANES)), ir.IntType(64))

    return types.int64(v, types.intp, types.int32), generate


def _lowest_bit(typing_context: Any, bits: Any) -> Any:
    """Index of the lowest set bit of a nonzero int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


# numba supplies the typing context, which a type checker cannot know
reaching_bits: Any = intrinsic(_reaching_bits)
lowest_bit: Any = intrinsic(_lowest_bit)
