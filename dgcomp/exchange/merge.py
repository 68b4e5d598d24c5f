"""Add sparse vectors in rank order: the same additions in the same order on every rank, so the same bits."""

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from dgcomp.wire.bits import lowest_bit

_BLOCK = 1 << 19  # entries gathered at a time, so that the copies of a dense stage stay small
_WINDOW = 1 << 15  # elements summed at a time: 128 KB of sums stay in the second-level cache


def merge(positions: Sequence[Tensor], values: Sequence[Tensor], numel: int) -> tuple[Tensor, Tensor]:
    """Union of the positions and the sums of the values, added in the order of the sequences.

    positions: int64, each strictly increasing in [0, numel); values: fp32, as many. All on the CPU.
    Returns positions (int64, sorted) and values (fp32); a position that one sequence holds keeps its value exactly.
    """
    if len(positions) == 1:
        return positions[0], values[0]
    total = sum(map(len, positions))
    where, sums = np.empty(total, np.int64), np.empty(total, np.float32)
    cuts = np.linspace(0, numel, -(-total // _BLOCK) + 1).astype(np.int64)
    bounds = [np.searchsorted(part.numpy(), cuts) for part in positions]
    found = 0
    for block in range(len(cuts) - 1):
        slices = [slice(bound[block], bound[block + 1]) for bound in bounds]
        found += _merge(
            torch.cat([part[where_in] for part, where_in in zip(positions, slices, strict=True)]).numpy(),
            torch.cat([part[where_in] for part, where_in in zip(values, slices, strict=True)]).numpy(),
            np.cumsum([0, *(where_in.stop - where_in.start for where_in in slices)], dtype=np.int64),
            where[found:],
            sums[found:],
        )
    return torch.from_numpy(where[:found]), torch.from_numpy(sums[:found])


@njit(cache=True, nogil=True)
def _merge(
    positions: NDArray[np.int64],
    values: NDArray[np.float32],
    starts: NDArray[np.int64],
    where: NDArray[np.int64],
    sums: NDArray[np.float32],
) -> int:
    """Scatter window by window into a small dense buffer, rank after rank, and read it out by its bitmap."""
    num_ranks = starts.size - 1
    at = starts[:-1].copy()
    window = np.zeros(_WINDOW, np.float32)
    taken = np.zeros(_WINDOW >> 6, np.uint64)  # one bit per element of the window
    busy = np.zeros(_WINDOW >> 12, np.uint64)  # one bit per word of `taken` that is not zero
    one = np.uint64(1)
    found = 0
    while True:
        base = np.int64(-1)  # the first window that still has entries
        for rank in range(num_ranks):
            if at[rank] < starts[rank + 1] and (base < 0 or positions[at[rank]] < base):
                base = positions[at[rank]]
        if base < 0:
            return found
        base = base // _WINDOW * _WINDOW
        for rank in range(num_ranks):
            i = at[rank]
            while i < starts[rank + 1] and positions[i] < base + _WINDOW:
                offset = positions[i] - base
                window[offset] += values[i]
                taken[offset >> 6] |= one << np.uint64(offset & 63)
                busy[offset >> 12] |= one << np.uint64((offset >> 6) & 63)
                i += 1
            at[rank] = i
        for part in range(busy.size):
            words = busy[part]
            busy[part] = np.uint64(0)
            while words != np.uint64(0):
                word = np.int64(part) * 64 + lowest_bit(words)
                words &= words - one
                current = taken[word]
                taken[word] = np.uint64(0)
                while current != np.uint64(0):
                    offset = word * 64 + lowest_bit(current)
                    current &= current - one
                    where[found] = base + offset
                    sums[found] = window[offset]
                    window[offset] = np.float32(0)
                    found += 1
