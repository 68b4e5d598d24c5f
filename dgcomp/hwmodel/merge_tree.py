"""SpArch's merge tree, cycle by cycle: what the formula "elements / 16 a cycle" leaves out.

A binary tree of FIFOs over 2**layers sorted streams. Each layer has one comparator-array merger, shared by the
layer's nodes: every cycle it serves one node, taking up to `width` elements from the heads of the two FIFOs below and
adding equal keys. The multipliers fill the leaves with `width` elements a cycle. A node waits while a FIFO below is
empty but not finished, or its own has no room. RECONSTRUCTION: sharing and FIFO depth follow public descriptions of
SpArch; which node a merger serves (the one with the emptiest FIFO) is this model's choice.
"""

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["merge_streams"]

Array = npt.NDArray[Any]


def merge_streams(streams: Sequence[npt.ArrayLike], *, width: int = 16, fifo_depth: int = 64) -> tuple[Array, int]:
    """Merge sorted streams of int64 keys; returns the distinct keys in order and the cycles it took.

    Keys are positions of a partial matrix, such as `row * columns + column`. Raises ValueError for a stream that is
    not ascending, or FIFOs that do not hold two merger outputs.
    """
    if fifo_depth < 2 * width:
        raise ValueError(f"fifo_depth must be at least 2 * width = {2 * width}, got {fifo_depth}")
    arrays = [np.asarray(stream, np.int64) for stream in streams]
    for index, array in enumerate(arrays):
        if array.ndim != 1 or (np.diff(array) < 0).any():
            raise ValueError(f"streams[{index}] must be a vector of ascending keys, got shape {array.shape}")
    leaves = 1 << max(1, (len(arrays) - 1).bit_length())
    lengths = np.zeros(leaves, np.int64)
    lengths[: len(arrays)] = [len(array) for array in arrays]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    keys = np.concatenate([*arrays, np.zeros(0, np.int64)])
    out, cycles = _simulate(keys, starts, width, fifo_depth)
    return out, int(cycles)


@numba.njit(cache=True, nogil=True)
def _simulate(keys: Array, starts: Array, width: int, depth: int) -> tuple[Array, int]:
    """Nodes are numbered as a heap: 1 is the root, 2n and 2n + 1 are below n, leaves come last."""
    leaves = starts.shape[0] - 1
    fifo = np.empty((2 * leaves, depth), np.int64)
    head, size = np.zeros(2 * leaves, np.int64), np.zeros(2 * leaves, np.int64)
    finished = np.zeros(2 * leaves, np.bool_)
    position = starts[:-1].copy()
    out = np.empty(keys.shape[0], np.int64)
    written = cycles = 0
    while True:
        for i in range(min(width, size[1])):  # the root's FIFO drains to memory; equal keys of two cycles add up here
            key = fifo[1, (head[1] + i) % depth]
            if written == 0 or out[written - 1] != key:
                out[written] = key
                written += 1
        taken = min(width, size[1])
        head[1] = (head[1] + taken) % depth
        size[1] -= taken
        if finished[1] and size[1] == 0:
            return out[:written], cycles
        first = 1
        while first < leaves:  # from the root down, so that an element climbs one layer a cycle
            for node in range(first, 2 * first):
                below = 2 * node
                finished[node] = finished[below] and finished[below + 1] and size[below] == 0 and size[below + 1] == 0
            _serve_one(first, fifo, head, size, finished, width, depth)
            first *= 2
        _fill_one_leaf(keys, starts, position, fifo, head, size, finished, width, depth)
        cycles += 1


@numba.njit(cache=True, nogil=True)
def _serve_one(first: int, fifo: Array, head: Array, size: Array, finished: Array, width: int, depth: int) -> None:
    """One cycle of a layer's merger: pick its node with the emptiest FIFO that can work, and merge into it."""
    best = -1
    for node in range(first, 2 * first):
        a, b = 2 * node, 2 * node + 1
        ready = (size[a] > 0 or finished[a]) and (size[b] > 0 or finished[b]) and size[a] + size[b] > 0
        if ready and size[node] + width <= depth and (best < 0 or size[node] < size[best]):
            best = node
    if best < 0:
        return
    a, b = 2 * best, 2 * best + 1
    last = -1
    for _ in range(width):
        if (size[a] == 0 and not finished[a]) or (size[b] == 0 and not finished[b]) or size[a] + size[b] == 0:
            return
        take_a = size[b] == 0 or (size[a] > 0 and fifo[a, head[a]] <= fifo[b, head[b]])
        source = a if take_a else b
        key = fifo[source, head[source]]
        head[source] = (head[source] + 1) % depth
        size[source] -= 1
        if key != last:
            fifo[best, (head[best] + size[best]) % depth] = key
            size[best] += 1
            last = key


@numba.njit(cache=True, nogil=True)
def _fill_one_leaf(
    keys: Array,
    starts: Array,
    position: Array,
    fifo: Array,
    head: Array,
    size: Array,
    finished: Array,
    width: int,
    depth: int,
) -> None:
    """One cycle of the multipliers: up to `width` products of one stream into the emptiest unfinished leaf."""
    leaves = position.shape[0]
    best = -1
    for leaf in range(leaves):
        node = leaves + leaf
        if position[leaf] == starts[leaf + 1]:
            finished[node] = True
        elif size[node] < depth and (best < 0 or size[node] < size[leaves + best]):
            best = leaf
    if best < 0:
        return
    node = leaves + best
    for _ in range(min(width, depth - size[node], starts[best + 1] - position[best])):
        fifo[node, (head[node] + size[node]) % depth] = keys[position[best]]
        size[node] += 1
        position[best] += 1
