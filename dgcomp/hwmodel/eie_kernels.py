"""The loops of the EIE model: the cycle recurrence of its queues, and the reads of its weight memory.

`lengths` [columns, num_pes] counts the entries (padding included) that each processing element (PE) visits in each
column; `active` lists the columns whose activation is not zero, in order.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DRAIN_CYCLES = 6  # pipeline stages between the last entry's issue and its written result


@numba.njit(cache=True, nogil=True)
def simulate(lengths: Array, active: Array, capacity: int, finish: Array) -> tuple[int, int]:
    """Cycles, and cycles in which the broadcast waits for a full queue, of one matrix-vector product.

    `finish` int64 [num_pes] comes back as the cycle in which each PE ends its last column. `capacity` is the number
    of broadcast activations that a queue holds. Of column j: b is its broadcast, s its start and f its end in a PE:

        b(j) = max(b(j-1) + 1, 1 + max_i s(i, j - capacity))
        s(i, j) = max(f(i, j-1), b(j) + 1)          f(i, j) = s(i, j) + max(1, entries(i, j))
    """
    num_pes = lengths.shape[1]
    finish[:] = 0
    latest_start = np.zeros(capacity, np.int64)  # ring: max_i s(i, j) of the last `capacity` columns
    broadcast = 0
    stalled = 0
    for j in range(active.shape[0]):
        slot = j % capacity
        earliest = broadcast + 1
        broadcast = earliest
        if j >= capacity and latest_start[slot] + 1 > broadcast:
            broadcast = latest_start[slot] + 1
        stalled += broadcast - earliest
        column = lengths[active[j]]
        latest = 0
        for pe in range(num_pes):
            start = max(finish[pe], broadcast + 1)
            finish[pe] = start + max(1, np.int64(column[pe]))
            latest = max(latest, start)
        latest_start[slot] = latest
    return finish.max() + DRAIN_CYCLES, stalled


@numba.njit(cache=True, nogil=True)
def count_spmat_reads(starts: Array, active: Array, entries_per_line: int) -> int:
    """Reads of all PEs' weight memories: one whenever the line of an entry is not the line read last.

    starts: int64 [columns + 1, num_pes], where each column begins among its PE's own entries.
    """
    reads = 0
    for pe in range(starts.shape[1]):
        held = -1
        for column in active:
            begin, end = starts[column, pe], starts[column + 1, pe]
            if end > begin:
                first, last = begin // entries_per_line, (end - 1) // entries_per_line
                reads += last - first + 1 - (first == held)
                held = last
    return reads
