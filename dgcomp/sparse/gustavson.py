"""Row-wise (Gustavson) kernels of the product C = A B of two CSR matrices.

A kernel works on the rows [start, stop) of A, so that threads share nothing but what they read. Names: `ap, aj, ax`
are A's row pointers, column indices and values, `bp, bj, bx` those of B, `cp, cj, cx` those of C. Two phases: the
symbolic one counts each row of C, so that C is allocated exactly; the numeric one fills it, columns ascending.

Indices are read as unsigned: numba wraps negative ones like Python, and that costs half the speed of these loops.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types
from numba.core import cgutils

Array = npt.NDArray[Any]
U = np.uint64
_intrinsic: Any = extending.intrinsic  # its types do not know that the first argument is numba's own
ONE, SIX, TWELVE, LOW = U(1), U(6), U(12), U(63)
AHEAD, TWICE_AHEAD = U(8), U(16)
NO_COLUMN = np.iinfo(np.int32).max
SHORT_ROW = 96  # up to here ranking every column against all others beats the bitmap


@_intrinsic
def trailing_zeros(typingctx: Any, word: Any) -> Any:
    """Trailing zero bits of a uint64 that is not zero: LLVM's cttz."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], cgutils.true_bit)

    return types.uint64(types.uint64), codegen


@_intrinsic
def _count_ones(typingctx: Any, word: Any) -> Any:
    """Set bits of a uint64: LLVM's ctpop."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), codegen


@_intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of array[index]; never faults, so the index need not be right."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, flag(0), flag(3), flag(1)])  # read, keep in all caches, data
        return context.get_dummy_value()

    return types.void(array, types.uint64), codegen


@numba.njit(cache=True, nogil=True)
def first_unsorted_row(pointers: Array, indices: Array, num_columns: int) -> int:
    """First row whose columns are not ascending, distinct and below num_columns; -1 if there is none."""
    for row in range(len(pointers) - 1):
        previous = -1
        for q in range(U(pointers[row]), U(pointers[row + 1])):
            if indices[q] <= previous or indices[q] >= num_columns:
                return row
            previous = indices[q]
    return -1


@numba.njit(cache=True, nogil=True)
def count_products(ap: Array, aj: Array, bp: Array) -> Array:
    """Multiplies that each row of A takes, int64 [rows]."""
    products = np.zeros(len(ap) - 1, np.int64)
    for row in range(len(ap) - 1):
        for p in range(U(ap[row]), U(ap[row + 1])):
            products[row] += bp[U(aj[p]) + ONE] - bp[U(aj[p])]
    return products


@numba.njit(cache=True, nogil=True)
def pack_rows(bp: Array, bj: Array) -> tuple[Array, Array, Array]:
    """Rows of B as bitmaps: pointers, indices and values of the 64-bit words that are not empty."""
    pointers = np.zeros(len(bp), np.int64)
    for row in range(len(bp) - 1):
        last, count = -1, pointers[row]
        for q in range(U(bp[row]), U(bp[row + 1])):
            if bj[q] >> 6 != last:
                last = bj[q] >> 6
                count += 1
        pointers[row + 1] = count
    words = np.empty(pointers[-1], np.int32)
    masks = np.zeros(pointers[-1], np.uint64)
    for row in range(len(bp) - 1):
        last, cursor = -1, pointers[row] - 1
        for q in range(U(bp[row]), U(bp[row + 1])):
            if bj[q] >> 6 != last:
                last = bj[q] >> 6
                cursor += 1
                words[cursor] = last
            masks[cursor] |= ONE << (U(bj[q]) & LOW)
    return pointers, words, masks


@numba.njit(cache=True, nogil=True)
def count_by_marks(ap: Array, aj: Array, bp: Array, bj: Array, marks: Array, out: Array, start: int, stop: int) -> None:
    """Symbolic phase, one column at a time; marks [columns] holds the last row that touched a column (-1 at first)."""
    num_entries = U(len(aj))
    for row in range(start, stop):
        count = 0
        for p in range(U(ap[row]), U(ap[row + 1])):
            if p + TWICE_AHEAD < num_entries:
                prefetch(bp, U(aj[p + TWICE_AHEAD]))
                prefetch(bj, U(bp[U(aj[p + AHEAD])]))
            k = U(aj[p])
            for q in range(U(bp[k]), U(bp[k + ONE])):
                j = U(bj[q])
                count += marks[j] != row
                marks[j] = row
        out[row] = count


@numba.njit(cache=True, nogil=True)
def count_by_words(
    ap: Array, aj: Array, wp: Array, words: Array, masks: Array, bitmap: Array, out: Array, start: int, stop: int
) -> None:
    """Symbolic phase, 64 columns at a time, on B packed by `pack_rows`; bitmap uint64 [columns / 64] is zero."""
    for row in range(start, stop):
        count = U(0)
        visits = 0
        for p in range(U(ap[row]), U(ap[row + 1])):
            k = U(aj[p])
            visits += wp[k + ONE] - wp[k]
        if visits > len(bitmap) // 4:  # sweep the whole bitmap once
            for p in range(U(ap[row]), U(ap[row + 1])):
                k = U(aj[p])
                for q in range(U(wp[k]), U(wp[k + ONE])):
                    bitmap[U(words[q])] |= masks[q]
            for word in range(len(bitmap)):
                count += _count_ones(bitmap[word])
                bitmap[word] = 0
        else:
            for p in range(U(ap[row]), U(ap[row + 1])):
                k = U(aj[p])
                for q in range(U(wp[k]), U(wp[k + ONE])):
                    old = bitmap[U(words[q])]
                    count += _count_ones(masks[q] & ~old)
                    bitmap[U(words[q])] = old | masks[q]
            for p in range(U(ap[row]), U(ap[row + 1])):
                k = U(aj[p])
                for q in range(U(wp[k]), U(wp[k + ONE])):
                    bitmap[U(words[q])] = 0
        out[row] = count


@numba.njit(cache=True, nogil=True)
def scale_rows(
    ap: Array, aj: Array, ax: Array, bp: Array, bj: Array, bx: Array,
    cp: Array, cj: Array, cx: Array, start: int, stop: int,
) -> None:  # fmt: skip
    """Numeric phase of the rows of A with one entry: a scaled row of B."""
    for row in range(start, stop):
        if ap[row + 1] - ap[row] == 1:
            k, a, o = U(aj[ap[row]]), ax[ap[row]], U(cp[row])
            for q in range(U(bp[k]), U(bp[k + ONE])):
                cj[o] = bj[q]
                cx[o] = a * bx[q]
                o += ONE


@numba.njit(cache=True, nogil=True)
def multiply_short_rows(
    ap: Array, aj: Array, ax: Array, bp: Array, bj: Array, bx: Array, num_columns: int,
    cp: Array, cj: Array, cx: Array, start: int, stop: int,
) -> None:  # fmt: skip
    """Numeric phase of the rows of C with at most SHORT_ROW entries, dense accumulator.

    A row lists its columns as they first appear; the place of each is the number of columns below it, counted
    without a branch and vectorized, which at this length is faster than any sort.
    """
    sums = np.zeros(num_columns, cx.dtype)
    bitmap = np.zeros((num_columns >> 6) + 1, np.uint64)
    seen = np.empty(SHORT_ROW + 16, np.int32)
    num_entries = U(len(aj))
    for row in range(start, stop):
        first, last, o = U(ap[row]), U(ap[row + 1]), cp[row]
        if last - first <= ONE or cp[row + 1] - o > SHORT_ROW:
            continue
        m = U(0)
        for p in range(first, last):
            if p + TWICE_AHEAD < num_entries:
                prefetch(bp, U(aj[p + TWICE_AHEAD]))
                prefetch(bj, U(bp[U(aj[p + AHEAD])]))
                prefetch(bx, U(bp[U(aj[p + AHEAD])]))
            k, a = U(aj[p]), ax[p]
            for q in range(U(bp[k]), U(bp[k + ONE])):
                j = U(bj[q])
                word = bitmap[j >> SIX]
                seen[m] = j
                m += ONE - ((word >> (j & LOW)) & ONE)
                bitmap[j >> SIX] = word | (ONE << (j & LOW))
                sums[j] += a * bx[q]
        end = (m + U(15)) & ~U(15)  # whole vectors: the odd end of a loop costs as much as the rest of it
        for t in range(m, end):
            seen[t] = NO_COLUMN
        for t in range(m):
            column = seen[t]
            rank = np.int32(0)  # as wide as the columns, or the loop is not vectorized
            for u in range(end):
                rank = np.int32(rank + np.int32(seen[u] < column))
            place, j = U(o + rank), U(column)
            cj[place] = column
            cx[place] = sums[j]
            sums[j] = 0
            bitmap[j >> SIX] = 0


@numba.njit(cache=True, nogil=True)
def multiply_long_rows(
    ap: Array, aj: Array, ax: Array, bp: Array, bj: Array, bx: Array, wp: Array, words: Array, masks: Array,
    num_columns: int, cp: Array, cj: Array, cx: Array, start: int, stop: int,
) -> None:  # fmt: skip
    """Numeric phase of the other rows, dense accumulator; B also packed by `pack_rows`.

    A row marks its columns in a bitmap, which hands them out in ascending order without a sort. Where the row is
    shorter than the bitmap, two more levels of bits (a bit says that 64 words below are not all empty) find its words.
    """
    sums = np.zeros(num_columns, cx.dtype)
    bits0 = np.zeros((num_columns >> 6) + 1, np.uint64)
    bits1 = np.zeros((num_columns >> 12) + 1, np.uint64)
    bits2 = np.zeros((num_columns >> 18) + 1, np.uint64)
    num_entries = U(len(aj))
    for row in range(start, stop):
        first, last, o = U(ap[row]), U(ap[row + 1]), U(cp[row])
        length = cp[row + 1] - cp[row]
        if last - first <= ONE or length <= SHORT_ROW:
            continue
        sweep = len(bits0) <= length
        for p in range(first, last):
            if p + TWICE_AHEAD < num_entries:
                prefetch(bp, U(aj[p + TWICE_AHEAD]))
                prefetch(bj, U(bp[U(aj[p + AHEAD])]))
            k, a = U(aj[p]), ax[p]
            if sweep:
                for q in range(U(wp[k]), U(wp[k + ONE])):
                    bits0[U(words[q])] |= masks[q]
            else:
                for q in range(U(wp[k]), U(wp[k + ONE])):
                    w = U(words[q])
                    bits0[w] |= masks[q]
                    bits1[w >> SIX] |= ONE << (w & LOW)
                    bits2[w >> TWELVE] |= ONE << ((w >> SIX) & LOW)
            for q in range(U(bp[k]), U(bp[k + ONE])):
                sums[U(bj[q])] += a * bx[q]
        if sweep:
            for word in range(U(len(bits0))):
                o = _take_word(word, bits0, sums, cj, cx, o)
        else:
            take_sums(bits0, bits1, bits2, sums, cj, cx, o)


@numba.njit(nogil=True)
def take_sums(bits0: Array, bits1: Array, bits2: Array, sums: Array, cj: Array, cx: Array, o: Any) -> Any:
    """Move a row's sums from the dense accumulator to C from entry o on, columns ascending; the entry after the last.

    bits0 has a bit for each column, bits1 one for each word of bits0 that is not empty, bits2 one for each of bits1;
    all are left zero, as are the sums.
    """
    for c in range(U(len(bits2))):
        top = bits2[c]
        bits2[c] = 0
        while top:
            b = (c << SIX) | trailing_zeros(top)
            top &= top - ONE
            middle = bits1[b]
            bits1[b] = 0
            while middle:
                o = _take_word((b << SIX) | trailing_zeros(middle), bits0, sums, cj, cx, o)
                middle &= middle - ONE
    return o


@numba.njit(nogil=True)
def _take_word(w: Any, bits: Array, sums: Array, cj: Array, cx: Array, o: Any) -> Any:
    """The same for the 64 columns of one word."""
    word = bits[w]
    bits[w] = 0
    while word:
        j = (w << SIX) | trailing_zeros(word)
        word &= word - ONE
        cj[o] = j
        cx[o] = sums[j]
        sums[j] = 0
        o += ONE
    return o


@numba.njit(cache=True, nogil=True)
def multiply_hash(
    ap: Array, aj: Array, ax: Array, bp: Array, bj: Array, bx: Array,
    cp: Array, cj: Array, cx: Array, start: int, stop: int,
) -> None:  # fmt: skip
    """Numeric phase of the rows with two or more entries, a hash table each, at most half full, open addressing."""
    longest = 1
    for row in range(start, stop):
        longest = max(longest, cp[row + 1] - cp[row])
    size = 2
    while size < 2 * longest:
        size *= 2
    keys = np.full(size, -1, np.int64)
    sums = np.zeros(size, cx.dtype)
    for row in range(start, stop):
        first, last = U(ap[row]), U(ap[row + 1])
        o, end = cp[row], cp[row + 1]
        if last - first <= ONE:
            continue
        room = 2
        while room < 2 * (end - o):
            room *= 2
        mask = U(room - 1)
        m = U(o)
        for p in range(first, last):
            k, a = U(aj[p]), ax[p]
            for q in range(U(bp[k]), U(bp[k + ONE])):
                j = np.int64(bj[q])
                slot = (U(j) * U(0x9E3779B97F4A7C15) >> U(32)) & mask
                while keys[slot] != j and keys[slot] != -1:
                    slot = (slot + ONE) & mask
                if keys[slot] == -1:
                    keys[slot] = j
                    cj[m] = j
                    m += ONE
                sums[slot] += a * bx[q]
        cj[o:end].sort()
        for t in range(U(o), U(end)):
            j = np.int64(cj[t])
            slot = (U(j) * U(0x9E3779B97F4A7C15) >> U(32)) & mask
            while keys[slot] != j:
                slot = (slot + ONE) & mask
            cx[t] = sums[slot]
            sums[slot] = 0
        keys[:room] = -1


@numba.njit(cache=True, nogil=True)
def backward(
    ap: Array, aj: Array, ax: Array, bp: Array, bj: Array, bx: Array,
    cp: Array, cj: Array, grad_c: Array, num_columns: int, grad_a: Array, grad_b: Array,
) -> None:  # fmt: skip
    """Gradients of the stored values: grad_a = (grad_c B^T) and grad_b = (A^T grad_c) on the patterns of A and B."""
    row_grad = np.zeros(num_columns, grad_c.dtype)
    for row in range(len(ap) - 1):
        for t in range(U(cp[row]), U(cp[row + 1])):
            row_grad[U(cj[t])] = grad_c[t]
        for p in range(U(ap[row]), U(ap[row + 1])):
            k, a, total = U(aj[p]), ax[p], grad_c.dtype.type(0)
            for q in range(U(bp[k]), U(bp[k + ONE])):
                grad = row_grad[U(bj[q])]
                total += grad * bx[q]
                grad_b[q] += a * grad
            grad_a[p] = total
