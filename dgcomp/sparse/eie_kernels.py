"""The loops of EIE's format: encode, decode, multiply. One entry is `gap << codebook_bits | code`.

Entries lie column by column and, within a column, processing element (PE) by processing element; `lengths[j, k]`
counts those of PE k in column j. PE k owns the rows k, k + num_pes, k + 2 * num_pes, ...
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@numba.njit(cache=True, nogil=True)
def count_entries(codes: Array, num_pes: int, span: int) -> Array:
    """Entries of every PE and column, padding included: int64 [num_pes, columns]; span = 2**index_bits."""
    rows, columns = codes.shape
    lengths = np.zeros((num_pes, columns), np.int64)
    last = np.full((num_pes, columns), -1, np.int64)
    for row in range(rows):
        pe, position = row % num_pes, row // num_pes
        for column in range(columns):
            if codes[row, column] != 0:
                gap = position - last[pe, column] - 1
                lengths[pe, column] += gap // span + 1
                last[pe, column] = position
    return lengths


@numba.njit(cache=True, nogil=True)
def write_entries(codes: Array, starts: Array, span: int, codebook_bits: int, entries: Array) -> None:
    """Fill `entries`; starts int64 [num_pes, columns] is where each PE's column begins and is used up."""
    rows, columns = codes.shape
    num_pes = starts.shape[0]
    last = np.full((num_pes, columns), -1, np.int64)
    padding = (span - 1) << codebook_bits
    for row in range(rows):
        pe, position = row % num_pes, row // num_pes
        for column in range(columns):
            code = np.int64(codes[row, column])
            if code != 0:
                gap = position - last[pe, column] - 1
                cursor = starts[pe, column]
                for _ in range(gap // span):
                    entries[cursor] = padding
                    cursor += 1
                entries[cursor] = ((gap % span) << codebook_bits) | code
                starts[pe, column] = cursor + 1
                last[pe, column] = position


@numba.njit(cache=True, nogil=True)
def decode_entries(entries: Array, lengths: Array, codebook: Array, codebook_bits: int, dense: Array) -> bool:
    """Write every entry's value into `dense` [rows, columns]; False if an entry lies outside (a damaged file)."""
    rows = dense.shape[0]
    columns, num_pes = lengths.shape
    mask = (1 << codebook_bits) - 1
    cursor = 0
    for column in range(columns):
        for pe in range(num_pes):
            row = pe - num_pes
            for _ in range(lengths[column, pe]):
                entry = np.int64(entries[cursor])
                cursor += 1
                row += ((entry >> codebook_bits) + 1) * num_pes
                code = entry & mask
                if row >= rows or code >= len(codebook):
                    return False
                if code != 0:
                    dense[row, column] = codebook[code]
    return True


@numba.njit(cache=True, nogil=True)
def count_real_entries(entries: Array, lengths: Array, codebook_bits: int) -> Array:
    """Entries that are no padding, int64 [columns, num_pes]."""
    columns, num_pes = lengths.shape
    mask = (1 << codebook_bits) - 1
    real = np.zeros((columns, num_pes), np.int64)
    cursor = 0
    for column in range(columns):
        for pe in range(num_pes):
            for _ in range(lengths[column, pe]):
                if np.int64(entries[cursor]) & mask:
                    real[column, pe] += 1
                cursor += 1
    return real


@numba.njit(cache=True, nogil=True)
def matvec(
    entries: Array, lengths: Array, column_starts: Array, codebook: Array, codebook_bits: int,
    active: Array, x: Array, out: Array, pe_start: int, pe_stop: int,
) -> None:  # fmt: skip
    """Write W x into `out` for the rows of PEs [pe_start, pe_stop), visiting the columns in `active` alone.

    The accumulators lie PE by PE, as in the hardware: threads that wrote interleaved rows would share cache lines.
    """
    rows, num_pes = len(out), lengths.shape[1]
    depth = (rows + num_pes - 1) // num_pes
    mask = np.uint32((1 << codebook_bits) - 1)
    accumulators = np.zeros((pe_stop - pe_start) * depth, out.dtype)
    for j in range(len(active)):
        column = active[j]
        value = x[column]
        cursor = np.uint64(column_starts[column])
        for pe in range(pe_start):
            cursor += np.uint64(lengths[column, pe])
        for pe in range(pe_start, pe_stop):
            place = np.uint64((pe - pe_start) * depth)  # unsigned: numba wraps signed indices, which takes time
            stop = cursor + np.uint64(lengths[column, pe])
            while cursor < stop:
                entry = np.uint32(entries[cursor])
                place += np.uint64(entry >> np.uint32(codebook_bits))
                accumulators[place] += codebook[entry & mask] * value
                place += np.uint64(1)
                cursor += np.uint64(1)
    for pe in range(pe_start, pe_stop):
        start = (pe - pe_start) * depth
        for position in range((rows - pe + num_pes - 1) // num_pes):
            out[pe + position * num_pes] = accumulators[start + position]


@numba.njit(cache=True, nogil=True)
def matmul(
    entries: Array, lengths: Array, column_starts: Array, codebook: Array, codebook_bits: int,
    active: Array, x: Array, out: Array, pe_start: int, pe_stop: int,
) -> None:  # fmt: skip
    """The same for x [columns, batch], added to out [rows, batch]: one decoded entry serves the whole batch."""
    num_pes = lengths.shape[1]
    mask = (1 << codebook_bits) - 1
    batch = x.shape[1]
    for j in range(len(active)):
        column = active[j]
        cursor = column_starts[column]
        for pe in range(pe_start):
            cursor += lengths[column, pe]
        for pe in range(pe_start, pe_stop):
            row = pe - num_pes
            for _ in range(lengths[column, pe]):
                entry = np.int64(entries[cursor])
                cursor += 1
                row += ((entry >> codebook_bits) + 1) * num_pes
                code = entry & mask
                if code != 0:
                    weight = codebook[code]
                    for b in range(batch):
                        out[row, b] += weight * x[column, b]
