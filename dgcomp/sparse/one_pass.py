"""Row-wise product in one pass, for matrices whose products hardly ever meet: no symbolic phase, C written in a row.

C is allocated for as many entries as there are products and cut to what was written; pages that nothing was written to
never become real memory. A row of few products never leaves the first-level cache: they are listed, ranked against
each other, and stored in the place of their rank. Names and conventions are those of gustavson.py.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from dgcomp.sparse.gustavson import (
    AHEAD,
    LOW,
    NO_COLUMN,
    ONE,
    SHORT_ROW,
    SIX,
    TWELVE,
    TWICE_AHEAD,
    U,
    prefetch,
    take_sums,
)

__all__ = ["close_gap", "multiply_rows"]

Array = npt.NDArray[Any]
ROOM = 16  # behind a short row: for the rest of the last vector or piece
FOUR, FIFTEEN = U(4), U(15)
PIECE = U(8)  # entries that are copied at a time: rows of B are short here, and a loop that ends at once is foreseen


@numba.njit(cache=True, nogil=True)
def multiply_rows(
    ap: Array, aj: Array, ax: Array, bp: Array, bj: Array, bx: Array, num_columns: int,
    cp: Array, cj: Array, cx: Array, start: int, stop: int, offset: int,
) -> int:  # fmt: skip
    """Write rows [start, stop) of C from entry `offset` on, set cp[start + 1 : stop + 1], and return their entries."""
    bits0 = np.zeros((num_columns >> 6) + 1, np.uint64)
    bits1 = np.zeros((num_columns >> 12) + 1, np.uint64)
    bits2 = np.zeros((num_columns >> 18) + 1, np.uint64)
    sums = np.zeros(num_columns, cx.dtype)
    seen = np.empty(SHORT_ROW + ROOM, np.int32)
    values = np.empty(SHORT_ROW + ROOM, cx.dtype)
    ranks = np.empty(SHORT_ROW + ROOM, np.int32)
    o = U(offset)
    for row in range(start, stop):
        first, last = U(ap[row]), U(ap[row + 1])
        products = U(0)
        for p in range(first, last):
            products += U(bp[U(aj[p]) + ONE] - bp[U(aj[p])])
        if last - first == ONE:
            k, a = U(aj[first]), ax[first]
            for q in range(U(bp[k]), U(bp[k + ONE])):
                cj[o] = bj[q]
                cx[o] = a * bx[q]
                o += ONE
        elif products <= U(SHORT_ROW):
            _list_products(aj, ax, bp, bj, bx, first, last, seen, values)
            count = products
            if not _rank(seen, count, ranks):  # some meet after all
                count = _list_sums(aj, ax, bp, bj, bx, first, last, bits0, seen, values)
                _rank(seen, count, ranks)
            for t in range(count):
                place = o + U(ranks[t])
                cj[place] = seen[t]
                cx[place] = values[t]
            o += count
        else:
            _add_products(aj, ax, bp, bj, bx, first, last, bits0, bits1, bits2, sums)
            o = take_sums(bits0, bits1, bits2, sums, cj, cx, o)
        cp[row + 1] = o - U(offset)
    return int(o - U(offset))


@numba.njit(cache=True, nogil=True)
def close_gap(cj: Array, cx: Array, source: int, target: int, count: int) -> None:
    """Move `count` entries down from `source` to `target`; the two may overlap."""
    for t in range(count):
        cj[target + t] = cj[source + t]
        cx[target + t] = cx[source + t]


@numba.njit(nogil=True)
def _list_products(
    aj: Array, ax: Array, bp: Array, bj: Array, bx: Array, first: Any, last: Any, seen: Array, values: Array
) -> None:
    """All products of a row with their columns, PIECE at a time: what is copied too much, the next piece overwrites."""
    num_entries, num_stored = U(len(aj)), U(len(bj))
    m = U(0)
    for p in range(first, last):
        if p + TWICE_AHEAD < num_entries:
            prefetch(bp, U(aj[p + TWICE_AHEAD]))
            prefetch(bj, U(bp[U(aj[p + AHEAD])]))
            prefetch(bx, U(bp[U(aj[p + AHEAD])]))
        k, a = U(aj[p]), ax[p]
        q, end = U(bp[k]), U(bp[k + ONE])
        stop = m + (end - q)
        while q < end:
            if q + PIECE <= num_stored:
                for t in range(PIECE):
                    seen[m + t] = bj[q + t]
                    values[m + t] = a * bx[q + t]
            else:
                for t in range(end - q):
                    seen[m + t] = bj[q + t]
                    values[m + t] = a * bx[q + t]
            m += PIECE
            q += PIECE
        m = stop


@numba.njit(nogil=True)
def _list_sums(
    aj: Array,
    ax: Array,
    bp: Array,
    bj: Array,
    bx: Array,
    first: Any,
    last: Any,
    bits: Array,
    seen: Array,
    values: Array,
) -> Any:
    """Distinct columns and their sums in the order of first products, and how many; `bits` is zero, and left so."""
    m = U(0)
    for p in range(first, last):
        k, a = U(aj[p]), ax[p]
        for q in range(U(bp[k]), U(bp[k + ONE])):
            j = U(bj[q])
            word, bit = bits[j >> SIX], ONE << (j & LOW)
            if word & bit:
                for t in range(m):
                    if seen[t] == np.int32(j):
                        values[t] += a * bx[q]
            else:
                bits[j >> SIX] = word | bit
                seen[m] = np.int32(j)
                values[m] = a * bx[q]
                m += ONE
    for t in range(m):
        bits[U(seen[t]) >> SIX] = 0
    return m


@numba.njit(nogil=True)
def _rank(seen: Array, count: Any, ranks: Array) -> bool:
    """ranks[t] = number of columns below seen[t], counted without a branch in whole vectors; whether all differ."""
    end = (count + FIFTEEN) & ~FIFTEEN
    for t in range(count, end):
        seen[t] = NO_COLUMN
    ranks[:end] = 0
    for u in range(U(0), count, FOUR):  # four at a time: ranks are loaded and stored a quarter as often
        c0, c1, c2, c3 = seen[u], seen[u + ONE], seen[u + U(2)], seen[u + U(3)]
        for t in range(end):
            s = seen[t]
            below = np.int32(c0 < s) + np.int32(c1 < s) + np.int32(c2 < s) + np.int32(c3 < s)
            ranks[t] = np.int32(ranks[t] + np.int32(below))  # as wide as the columns, or it is not vectorized
    total = np.int32(0)
    for t in range(count):
        total = np.int32(total + ranks[t])
    return bool(total == np.int64(count * (count - ONE) >> ONE))  # 0, 1, ... count - 1 add up to it, equal ones to less


@numba.njit(nogil=True)
def _add_products(
    aj: Array, ax: Array, bp: Array, bj: Array, bx: Array, first: Any, last: Any,
    bits0: Array, bits1: Array, bits2: Array, sums: Array,
) -> None:  # fmt: skip
    """Sums of a row in the dense accumulator, its columns in three levels of bits."""
    for p in range(first, last):
        k, a = U(aj[p]), ax[p]
        for q in range(U(bp[k]), U(bp[k + ONE])):
            j = U(bj[q])
            w = j >> SIX
            bits0[w] |= ONE << (j & LOW)
            bits1[w >> SIX] |= ONE << (w & LOW)
            bits2[w >> TWELVE] |= ONE << ((w >> SIX) & LOW)
            sums[j] += a * bx[q]
