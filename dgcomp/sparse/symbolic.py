"""What is known of the product C = A B before a value is multiplied: validity, work, entries of C.

Names: `ap, aj, ax` are A's row pointers, column indices and values, `bp, bj, bx` those of B, `cp, cj, cx` those of C.
After `live_entries`, A's rows are those that have work to do, and `rows` says which row of C each of them makes.

Indices are read as unsigned: numba wraps negative ones like Python, and that costs half the speed of these loops.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from dgcomp.sparse.vectors import count_ones, prefetch

__all__ = [
    "bitmaps",
    "count_by_bitmaps",
    "count_by_hash",
    "count_by_marks",
    "first_unsorted_row",
    "hash_room",
    "live_entries",
    "most_products",
]

Array = npt.NDArray[Any]
U = np.uint64
ONE, SIX, LOW = U(1), U(6), U(63)
AHEAD, TWICE_AHEAD = U(8), U(16)  # entries of A by which rows of B, and the pointers to them, are asked for early
HASH = U(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: Knuth's multiplicative hash


def first_unsorted_row(pointers: Array, indices: Array, num_columns: int) -> int:
    """First row whose columns are not ascending, distinct and in [0, num_columns); -1 if there is none."""
    return -1 if _is_canonical(pointers, indices, num_columns) else int(_find_unsorted(pointers, indices, num_columns))


@numba.njit(cache=True, nogil=True)
def _is_canonical(pointers: Array, indices: Array, num_columns: int) -> bool:
    """Whether indices fall only where a row begins, told in loops over all entries, which are vectorized."""
    largest = U(0)
    for q in range(U(len(indices))):
        largest = max(largest, U(indices[q]))  # a negative one is huge
    falls: Any = 0
    for q in range(ONE, U(len(indices))):
        falls += indices[q] <= indices[q - ONE]
    for row in range(U(len(pointers) - 1)):
        first = U(pointers[row])
        if U(0) < first < U(pointers[row + ONE]):
            falls -= indices[first] <= indices[first - ONE]
    return bool(falls == 0 and (len(indices) == 0 or largest < U(num_columns)))


@numba.njit(cache=True, nogil=True)
def _find_unsorted(pointers: Array, indices: Array, num_columns: int) -> int:
    for row in range(len(pointers) - 1):
        previous = -1
        for q in range(U(pointers[row]), U(pointers[row + 1])):
            if indices[q] <= previous or indices[q] >= num_columns:
                return row
            previous = indices[q]
    return -1


@numba.njit(cache=True, nogil=True)
def live_entries(ap: Array, aj: Array, ax: Array, bp: Array, out: Array) -> tuple[Array, Array, Array, Array, Array]:
    """A without the entries that meet an empty row of B, and without the rows that have none left.

    Returns the rows' numbers, pointers, columns (in `out`), values, and offsets: the products of all rows before each.
    Most rows are short, and where they end is foreseen badly: the first loop is over entries and does not care.
    """
    num_rows, num_entries = U(len(ap) - 1), U(len(aj))
    values = np.empty(len(aj), ax.dtype)
    kept_before = np.empty(len(aj) + 1, ap.dtype)
    kept = U(0)
    for p in range(num_entries):
        k = U(aj[p])
        kept_before[p] = kept
        out[kept] = aj[p]
        values[kept] = ax[p]
        kept += U(bp[k + ONE] > bp[k])
    kept_before[num_entries] = kept
    rows, pointers = np.empty(len(ap), np.int64), np.empty(len(ap), ap.dtype)
    m = U(0)
    for row in range(num_rows):
        first, last = kept_before[U(ap[row])], kept_before[U(ap[row + ONE])]
        rows[m], pointers[m] = row, first
        m += U(last > first)
    pointers[m] = kept
    offsets = np.empty(m + ONE, np.int64)
    products: Any = 0
    for row in range(m):
        offsets[row] = products
        for p in range(U(pointers[row]), U(pointers[row + ONE])):
            k = U(out[p])
            products += np.int64(bp[k + ONE]) - np.int64(bp[k])
    offsets[m] = products
    return rows[:m], pointers[: m + ONE], out[:kept], values[:kept], offsets


@numba.njit(cache=True, nogil=True)
def bitmaps(bp: Array, bj: Array, num_words: int) -> Array:
    """Rows of B as bits, uint64 [rows, num_words]."""
    words = np.zeros((len(bp) - 1, num_words), np.uint64)
    for row in range(U(len(bp) - 1)):
        for q in range(U(bp[row]), U(bp[row + ONE])):
            words[row, U(bj[q]) >> SIX] |= ONE << (U(bj[q]) & LOW)
    return words


@numba.njit(cache=True, nogil=True)
def count_by_bitmaps(ap: Array, aj: Array, words: Array, out: Array, start: int, stop: int) -> None:
    """Entries of each row of C from what `bitmaps` returns for B: 64 columns at a time, all of them."""
    total = np.empty(words.shape[1], np.uint64)
    for row in range(start, stop):
        total[:] = 0
        p, last = U(ap[row]), U(ap[row + 1])
        while p < last:  # two at a time: the total is read and written half as often
            k, other = U(aj[p]), U(aj[min(p + ONE, last - ONE)])
            for word in range(U(len(total))):
                total[word] |= words[k, word] | words[other, word]
            p += U(2)
        count = U(0)
        for word in range(U(len(total))):
            count += count_ones(total[word])
        out[row] = count


@numba.njit(cache=True, nogil=True)
def count_by_marks(ap: Array, aj: Array, bp: Array, bj: Array, marks: Array, out: Array, start: int, stop: int) -> None:
    """The same one column at a time; marks [columns] is the last row that touched it (-1 at first)."""
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
def count_by_hash(
    ap: Array, aj: Array, bp: Array, bj: Array, offsets: Array, out: Array, start: int, stop: int
) -> None:
    """The same with a hash table of the row's products, at most half full: no memory grows with the columns."""
    keys = np.full(hash_room(most_products(offsets, start, stop)), -1, np.int64)
    for row in range(start, stop):
        room = hash_room(U(offsets[row + 1] - offsets[row]))
        count = 0
        for p in range(U(ap[row]), U(ap[row + 1])):
            k = U(aj[p])
            for q in range(U(bp[k]), U(bp[k + ONE])):
                j = np.int64(bj[q])
                slot = (U(j) * HASH >> U(32)) & (room - ONE)
                while keys[slot] != j and keys[slot] != -1:
                    slot = (slot + ONE) & (room - ONE)
                count += keys[slot] == -1
                keys[slot] = j
        keys[:room] = -1
        out[row] = count


@numba.njit(nogil=True)
def most_products(offsets: Array, start: int, stop: int) -> Any:
    """Products of the row that takes most of them."""
    most = U(0)
    for row in range(start, stop):
        most = max(most, U(offsets[row + 1] - offsets[row]))
    return most


@numba.njit(nogil=True)
def hash_room(count: Any) -> Any:
    """Slots, a power of two, of which `count` entries take half at most."""
    room = U(2)
    while room < count + count:
        room <<= ONE
    return room
