"""Row-wise (Gustavson) kernels of the product C = A B of two CSR matrices, columns of C ascending.

A kernel works on the rows [start, stop) of A, so that threads share nothing but what they read, and writes C from one
entry on without a gap, setting cp[row + 1] to the entries of each row. Names and conventions are those of symbolic.py.

A dense accumulator comes in two kinds. One is marked: bits say which columns were touched. The other is swept: it
holds -0.0 where nothing was added. Adding to that changes no value, and only terms that are -0.0 add up to -0.0.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from dgcomp.sparse.symbolic import AHEAD, HASH, LOW, ONE, SIX, TWICE_AHEAD, U, hash_room, most_products
from dgcomp.sparse.vectors import (
    PIECE,
    RUN,
    nonzero_words,
    prefetch,
    prefetch_to_write,
    rank,
    scale,
    take_touched,
    touched_columns,
    trailing_zeros,
)

__all__ = ["backward", "close_gap", "multiply_hash", "multiply_rows", "workspace"]

Array = npt.NDArray[Any]
SHORT_ROW = 128  # products up to which ranking every column against all others beats a bitmap
ROOM = SHORT_ROW + 2 * PIECE  # its products, and what the last piece is too long
COLUMNS_PER_PRODUCT = 4  # up to so many a sweep over all columns beats marking those that are touched
WORD, GROUP = U(64), U(64 * 64)  # columns of a word of bits, and of 64 of them
UPIECE, URUN, RUN_BITS, TWELVE = U(PIECE), U(RUN), U((1 << RUN) - 1), U(12)


def workspace(num_columns: int, index_type: npt.DTypeLike, dtype: npt.DTypeLike) -> tuple[Array, Array, Array, Array]:
    """What `multiply_rows` works in: lists, int16 for B's columns in uint16, else int32; an accumulator and its marks.

    NumPy asks the system for zeros, numba writes them: these never become real memory where no row needs them.
    """
    groups = -(-num_columns // int(GROUP))
    lists = np.empty((3, ROOM), np.int16 if index_type == np.uint16 else np.int32)
    return lists, np.zeros(groups << 12, dtype), np.zeros(groups << 6, np.uint64), np.zeros(groups, np.uint8)


@numba.njit(cache=True, nogil=True)
def multiply_rows(
    rows: Array, ap: Array, aj: Array, ax: Array, offsets: Array, bp: Array, bj: Array, bx: Array, num_columns: int,
    cp: Array, cj: Array, cx: Array, start: int, stop: int, offset: int, end: int,
    lists: Array, sums: Array, bits: Array, touched: Array,
) -> None:  # fmt: skip
    """Write rows [start, stop) to C's entries from `offset` on; those from `end` on are not touched.

    bj is uint16 (below 2**16 columns) or int32. The last four are what `workspace` returns.
    """
    sweeps = U(num_columns) <= U(COLUMNS_PER_PRODUCT) * most_products(offsets, start, stop)
    swept = np.full(len(sums) if sweeps else 0, -0.0, cx.dtype)
    columns, ranks, slots = lists[0], lists[1], lists[2]
    products, totals = np.empty(ROOM, cx.dtype), np.empty(ROOM, cx.dtype)
    o = U(offset)
    for row in range(start, stop):
        first, last = U(ap[row]), U(ap[row + 1])
        count = U(offsets[row + 1] - offsets[row])
        begin = o
        if last - first == ONE:
            k, a = U(aj[first]), ax[first]
            for q in range(U(bp[k]), U(bp[k + ONE])):
                cj[o] = bj[q]
                cx[o] = a * bx[q]
                o += ONE
        elif count <= U(SHORT_ROW):
            _list_products(aj, ax, bp, bj, bx, first, last, columns, products)
            if _rank_columns(columns, count, ranks):
                _store_ranked(columns, products, ranks, count, cj, cx, o)
                o += count
            else:
                o = _store_met(columns, products, ranks, count, slots, totals, cj, cx, o)
        elif U(num_columns) <= count * U(COLUMNS_PER_PRODUCT):
            _add_all(aj, ax, bp, bj, bx, first, last, swept)
            o = _sweep(swept, U(num_columns), cj, cx, o, U(end))
        else:
            _add_marked(aj, ax, bp, bj, bx, first, last, sums, bits, touched)
            o = _take_marked(bits, touched, sums, cj, cx, o)
        cp[rows[row] + 1] = o - begin


@numba.njit(nogil=True)
def _list_products(
    aj: Array, ax: Array, bp: Array, bj: Array, bx: Array, first: Any, last: Any, columns: Array, products: Array
) -> None:
    """All products of a row with their columns, PIECE at a time: what is listed too much, the next piece overwrites."""
    num_entries, num_stored = U(len(aj)), U(len(bj))
    m = U(0)
    for p in range(first, last):
        if p + TWICE_AHEAD < num_entries:
            prefetch(bp, U(aj[p + TWICE_AHEAD]))
            ahead = U(bp[U(aj[p + AHEAD])])
            prefetch(bj, ahead)
            prefetch(bx, ahead)
            prefetch(bx, ahead + URUN)
        k, a = U(aj[p]), ax[p]
        q, end = U(bp[k]), U(bp[k + ONE])
        next_m = m + (end - q)
        if end + UPIECE <= num_stored:
            while q < end:
                scale(bj, bx, q, a, columns, products, m)
                q += UPIECE
                m += UPIECE
        else:
            for t in range(end - q):
                columns[m + t] = np.int64(bj[q + t]) - _bias(columns)
                products[m + t] = a * bx[q + t]
        m = next_m


@numba.njit(nogil=True)
def _bias(columns: Array) -> Any:
    """What was subtracted from listed columns: numbers with a sign are compared faster."""
    return 1 << 15 if columns.itemsize == 2 else 0


@numba.njit(nogil=True)
def _no_column(columns: Array) -> Any:
    """A number in the list above that of any column."""
    return (1 << (8 * columns.itemsize - 1)) - 1


@numba.njit(nogil=True)
def _rank_columns(columns: Array, count: Any, ranks: Array) -> bool:
    """ranks[t] = number of columns below columns[t]; whether they all differ."""
    end = (count + UPIECE - ONE) & ~(UPIECE - ONE)
    for t in range(count, count + UPIECE):
        columns[t] = _no_column(columns)
    others = (count + U(7)) & ~U(7)  # the loop over them is unrolled, its odd end would cost as much
    total = U(0)
    for t in range(U(0), end, UPIECE):
        total += rank(columns, others, t, ranks)
    all_differ = (count * (count - ONE) >> ONE) + (end - count) * count  # 0, 1, ... count - 1, then count each
    return bool(total == all_differ)


@numba.njit(nogil=True)
def _store_ranked(columns: Array, products: Array, ranks: Array, count: Any, cj: Array, cx: Array, o: Any) -> None:
    """Entries of C from o on, each at the place of its rank."""
    for t in range(U(0), count, URUN):
        prefetch_to_write(cj, o + count + t)
        prefetch_to_write(cx, o + count + t)
    for t in range(count):
        place = o + U(ranks[t])
        cj[place] = columns[t] + _bias(columns)
        cx[place] = products[t]


@numba.njit(nogil=True)
def _store_met(
    columns: Array, products: Array, ranks: Array, count: Any, slots: Array, totals: Array, cj: Array, cx: Array, o: Any
) -> Any:
    """The same where some columns are equal, which gives them one rank and leaves the next ones unused."""
    for t in range(count):
        slots[t] = _no_column(columns)
        totals[t] = -0.0
    for t in range(count):
        slots[U(ranks[t])] = columns[t]
        totals[U(ranks[t])] += products[t]
    for t in range(count):
        if slots[t] != _no_column(columns):
            cj[o] = slots[t] + _bias(columns)
            cx[o] = totals[t]
            o += ONE
    return o


@numba.njit(nogil=True)
def _add_all(aj: Array, ax: Array, bp: Array, bj: Array, bx: Array, first: Any, last: Any, sums: Array) -> None:
    """Sums of a row in the dense accumulator; none is -0.0 afterwards that was touched."""
    zero = sums.dtype.type(0)
    for p in range(first, last):
        k, a = U(aj[p]), ax[p]
        for q in range(U(bp[k]), U(bp[k + ONE])):
            sums[U(bj[q])] += a * bx[q] + zero  # -0.0 becomes 0.0


@numba.njit(nogil=True)
def _sweep(sums: Array, num_columns: Any, cj: Array, cx: Array, o: Any, end: Any) -> Any:
    """Move what is not -0.0 from the accumulator to C from entry o on, never beyond `end`; the entry after the last."""
    j = U(0)
    while j < num_columns and o + WORD <= end:
        touched = U(0)
        for run in range(U(0), WORD, URUN):
            touched |= touched_columns(sums, j + run) << run
        while touched:  # columns come in clusters: many runs have none
            run = trailing_zeros(touched) & ~(URUN - ONE)
            o = take_touched(sums, j + run, cj, cx, o)
            touched &= ~(RUN_BITS << run)
        j += WORD
    spare_j, spare_x = np.empty(RUN, cj.dtype), np.empty(RUN, cx.dtype)
    while j < num_columns:
        for t in range(take_touched(sums, j, spare_j, spare_x, U(0))):
            cj[o] = spare_j[t]
            cx[o] = spare_x[t]
            o += ONE
        j += URUN
    return o


@numba.njit(nogil=True)
def _add_marked(
    aj: Array, ax: Array, bp: Array, bj: Array, bx: Array, first: Any, last: Any,
    sums: Array, bits: Array, touched: Array,
) -> None:  # fmt: skip
    """Sums of a row in the dense accumulator; a bit for each column that was touched, a byte for 64 words of bits."""
    num_entries = U(len(aj))
    for p in range(first, last):
        if p + TWICE_AHEAD < num_entries:
            prefetch(bp, U(aj[p + TWICE_AHEAD]))
            prefetch(bj, U(bp[U(aj[p + AHEAD])]))
            prefetch(bx, U(bp[U(aj[p + AHEAD])]))
        k, a = U(aj[p]), ax[p]
        for q in range(U(bp[k]), U(bp[k + ONE])):
            j = U(bj[q])
            bits[j >> SIX] |= ONE << (j & LOW)
            touched[j >> TWELVE] = 1
            sums[j] += a * bx[q]


@numba.njit(nogil=True)
def _take_marked(bits: Array, touched: Array, sums: Array, cj: Array, cx: Array, o: Any) -> Any:
    """Move the marked sums to C from entry o on, take the marks away; the entry after the last."""
    begin = o
    for group in range(U(len(touched))):
        if touched[group]:
            touched[group] = 0
            for w in range(group << SIX, (group + ONE) << SIX, URUN):
                marked = nonzero_words(bits, w)
                while marked:
                    at = w + trailing_zeros(marked)
                    marked &= marked - ONE
                    word = bits[at]
                    bits[at] = 0
                    while word:
                        cj[o] = (at << SIX) | trailing_zeros(word)
                        word &= word - ONE
                        o += ONE
    for t in range(begin, o):  # apart, so that these loads, far from each other, do not wait for the bits
        j = U(cj[t])
        cx[t] = sums[j]
        sums[j] = 0
    return o


@numba.njit(cache=True, nogil=True)
def close_gap(cj: Array, cx: Array, source: int, target: int, count: int) -> None:
    """Move `count` entries of C down from `source` to `target`; the two may overlap."""
    for t in range(U(count)):
        cj[U(target) + t] = cj[U(source) + t]
        cx[U(target) + t] = cx[U(source) + t]


@numba.njit(cache=True, nogil=True)
def multiply_hash(
    rows: Array, ap: Array, aj: Array, ax: Array, offsets: Array, bp: Array, bj: Array, bx: Array,
    cp: Array, cj: Array, cx: Array, start: int, stop: int, offset: int,
) -> None:  # fmt: skip
    """The same product with a hash table for each row, at most half full: no memory grows with the columns."""
    size = hash_room(most_products(offsets, start, stop))
    keys = np.full(size, -1, np.int64)
    sums = np.zeros(size, cx.dtype)
    o = U(offset)
    for row in range(start, stop):
        room = hash_room(U(offsets[row + 1] - offsets[row]))
        mask, begin = room - ONE, o
        for p in range(U(ap[row]), U(ap[row + 1])):
            k, a = U(aj[p]), ax[p]
            for q in range(U(bp[k]), U(bp[k + ONE])):
                j = np.int64(bj[q])
                slot = (U(j) * HASH >> U(32)) & mask
                while keys[slot] != j and keys[slot] != -1:
                    slot = (slot + ONE) & mask
                if keys[slot] == -1:
                    keys[slot] = j
                    cj[o] = j
                    o += ONE
                sums[slot] += a * bx[q]
        cj[begin:o].sort()
        for t in range(begin, o):
            j = np.int64(cj[t])
            slot = (U(j) * HASH >> U(32)) & mask
            while keys[slot] != j:
                slot = (slot + ONE) & mask
            cx[t] = sums[slot]
            sums[slot] = 0
        keys[:room] = -1
        cp[rows[row] + 1] = o - begin


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
