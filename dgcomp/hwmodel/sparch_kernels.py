"""The loops of the SpArch model: sizes of merged partial matrices, and misses of the row prefetcher."""

from heapq import heappop, heappush
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

UNKNOWN = -1


@numba.njit(cache=True, nogil=True)
def merged_sizes(
    a_starts: Array,
    a_columns: Array,
    a_leaves: Array,
    b_starts: Array,
    b_columns: Array,
    num_columns: int,
    leaf_parent: Array,
    node_parent: Array,
) -> Array:
    """Distinct entries of every node's result: int64 [nodes]; the last is the number of entries of A @ B.

    `a_leaves` names the partial matrix that each entry of A contributes to. Row by row; within a row each node lists
    its distinct columns, and its parent reads the list instead of the products below: the work is what the hardware
    merges.
    """
    num_nodes = node_parent.shape[0]
    sizes = np.zeros(num_nodes, np.int64)
    seen = np.zeros(num_columns, np.int64)  # the last visit (node of a row) that found this column
    visit = 0
    first_entry = np.full(num_nodes, -1, np.int64)  # linked lists: this row's entries of A by node
    next_entry = np.empty(a_columns.shape[0], np.int64)
    first_child = np.full(num_nodes, -1, np.int64)  # and the nodes below that have something in this row
    next_child = np.empty(num_nodes, np.int64)
    begin, end = np.zeros(num_nodes, np.int64), np.zeros(num_nodes, np.int64)
    found = np.empty(1024, np.int64)
    for row in range(a_starts.shape[0] - 1):
        for entry in range(a_starts[row], a_starts[row + 1]):
            node = leaf_parent[a_leaves[entry]]
            next_entry[entry] = first_entry[node]
            first_entry[node] = entry
        cursor = 0
        for node in range(num_nodes):
            if first_entry[node] < 0 and first_child[node] < 0:
                continue
            visit += 1
            begin[node] = cursor
            entry = first_entry[node]
            while entry >= 0:
                k = a_columns[entry]
                found = _with_room(found, cursor + b_starts[k + 1] - b_starts[k])
                cursor = _append_new(b_columns, b_starts[k], b_starts[k + 1], seen, visit, found, cursor)
                entry = next_entry[entry]
            child = first_child[node]
            while child >= 0:
                found = _with_room(found, cursor + end[child] - begin[child])
                cursor = _append_new(found, begin[child], end[child], seen, visit, found, cursor)
                child = next_child[child]
            end[node] = cursor
            sizes[node] += cursor - begin[node]
            first_entry[node] = first_child[node] = -1
            parent = node_parent[node]
            if parent >= 0:
                next_child[node] = first_child[parent]
                first_child[parent] = node
    return sizes


@numba.njit(cache=True, nogil=True)
def _append_new(columns: Array, begin: int, end: int, seen: Array, visit: int, found: Array, cursor: int) -> int:
    """Append those of columns[begin:end] that this visit has not seen to `found`; returns the new cursor."""
    for position in range(begin, end):
        column = columns[position]
        if seen[column] != visit:
            seen[column] = visit
            found[cursor] = column
            cursor += 1
    return cursor


@numba.njit(cache=True, nogil=True)
def _with_room(array: Array, size: int) -> Array:
    """The array itself, or a longer copy if it does not hold `size` elements."""
    if size <= array.shape[0]:
        return array
    larger = np.empty(max(2 * array.shape[0], size), array.dtype)
    larger[: array.shape[0]] = array
    return larger


@numba.njit(cache=True, nogil=True)
def next_uses(rows: Array, num_rows: int) -> Array:
    """For each access, the position of the next access to the same row, or the number of accesses if there is none."""
    following = np.full(num_rows, rows.shape[0], np.int64)
    out = np.empty(rows.shape[0], np.int64)
    for t in range(rows.shape[0] - 1, -1, -1):
        out[t] = following[rows[t]]
        following[rows[t]] = t
    return out


@numba.njit(cache=True, nogil=True)
def _next_victim(idle: Any, waiting: Any, known_use: Array, last_use: Array, resident: Array, row: int) -> int:
    """Row that loses lines next, taken off its heap; -1 if only `row` itself is left.

    Heaps hold stale items; an item counts only while it agrees with the arrays.
    """
    while len(idle) > 0:
        used, candidate = heappop(idle)
        current = known_use[candidate] == UNKNOWN and last_use[candidate] == used
        if current and resident[candidate] > 0 and candidate != row:
            return int(candidate)
    while len(waiting) > 0:
        use, candidate = heappop(waiting)
        if known_use[candidate] == -use and resident[candidate] > 0 and candidate != row:
            return int(candidate)
    return -1


@numba.njit(cache=True, nogil=True)
def prefetch_misses(
    rows: Array, following: Array, row_lengths: Array, num_lines: int, line: int, window: int
) -> tuple[Array, int, int]:
    """Elements fetched for each access, and lines found and lines asked for, of a buffer that sees `window` ahead.

    A row occupies ceil(length / line) of the buffer's `num_lines`. To make room, lines are taken from rows with no
    use within the window, the longest unused first, then from the row whose next use is furthest: Belady's rule as
    far as the look-ahead reaches. A row may be resident in part.
    """
    num_accesses = rows.shape[0]
    resident = np.zeros(row_lengths.shape[0], np.int64)  # lines, from the front of the row
    known_use = np.full(row_lengths.shape[0], UNKNOWN, np.int64)
    last_use = np.full(row_lengths.shape[0], -1, np.int64)
    idle = [(0, 0)]
    waiting = [(0, 0)]
    idle.clear()
    waiting.clear()
    fetched = np.zeros(num_accesses, np.int64)
    free, hits, asked = num_lines, 0, 0
    for t in range(num_accesses):
        if t + window < num_accesses:  # this use has just come into sight
            row = rows[t + window]
            if resident[row] > 0 and known_use[row] == UNKNOWN:
                known_use[row] = t + window
                heappush(waiting, (-(t + window), row))
        row = rows[t]
        needed = (row_lengths[row] + line - 1) // line
        asked += needed
        hits += resident[row]
        fetched[t] = max(0, row_lengths[row] - resident[row] * line)
        missing = min(needed, num_lines) - resident[row]
        while free < missing:
            victim = _next_victim(idle, waiting, known_use, last_use, resident, row)
            if victim < 0:
                break
            taken = min(resident[victim], missing - free)
            resident[victim] -= taken
            free += taken
            if resident[victim] > 0:
                if known_use[victim] == UNKNOWN:
                    heappush(idle, (last_use[victim], victim))
                else:
                    heappush(waiting, (-known_use[victim], victim))
        added = min(free, missing)
        resident[row] += added
        free -= added
        last_use[row] = t
        if following[t] < num_accesses and following[t] - t <= window:
            known_use[row] = following[t]
            heappush(waiting, (-following[t], row))
        else:
            known_use[row] = UNKNOWN
            heappush(idle, (t, row))
    return fetched, hits, asked
