"""Sparse matrix product in SpArch's order: condensed columns, partial matrices merged in a k-ary Huffman tree.

Zhang, Wang, Han, Dally, "SpArch: Efficient Architecture for Sparse Matrix Multiplication", HPCA 2020; a reconstruction
from its abstract, project pages and public re-implementations. The point is not speed (`spgemm` is faster) but the
intermediate counts: what the hardware would multiply, merge, write to memory and read back in every round.
"""

import heapq
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from dgcomp.sparse.product import CSR, check_operands

__all__ = ["MergeRound", "SpArchProduct", "condensed_weights", "huffman_schedule", "multiply_condensed"]

Array = npt.NDArray[Any]
Stream = tuple[Array, Array]  # keys row * columns + column, ascending and distinct, and their values


@dataclass(frozen=True)
class MergeRound:
    """One pass through the merge tree. Nodes 0, 1, ... are condensed columns; the n-th round makes the next node."""

    inputs: tuple[int, ...]
    products: int
    """Multiplies whose results enter the tree straight from the multipliers."""
    reread: int
    """Elements of earlier rounds that are read back from memory."""
    written: int
    """Elements that leave the tree: an intermediate result, or the product itself in the last round."""


@dataclass(frozen=True)
class SpArchProduct:
    """The product as bare CSR arrays, and how it came about."""

    csr: CSR
    rounds: tuple[MergeRound, ...]
    condensed_columns: int
    multiplies: int

    @property
    def intermediate_elements(self) -> int:
        """Elements written between rounds; each is read back once. The last round's result is not among them."""
        return sum(merge.written for merge in self.rounds[:-1])


def condensed_weights(ap: Array, aj: Array, bp: Array) -> Array:
    """Multiplies of every condensed column, int64 [longest row of A]; column i holds the i-th entry of every row."""
    place = np.arange(len(aj)) - np.repeat(ap[:-1], np.diff(ap))
    weights = np.zeros(int(np.diff(ap).max(initial=0)), np.int64)
    np.add.at(weights, place, np.diff(bp)[aj])
    return weights


def huffman_schedule(weights: npt.ArrayLike, ways: int = 64) -> list[tuple[int, ...]]:
    """Nodes that each round merges, lightest first; node len(weights) + n is the result of round n.

    The first round takes ((leaves - 2) mod (ways - 1)) + 2 nodes, so that all others are full.
    """
    if ways < 2:
        raise ValueError(f"ways must be at least 2, got {ways}")
    heap = [(int(weight), node) for node, weight in enumerate(np.asarray(weights))]
    heapq.heapify(heap)
    rounds: list[tuple[int, ...]] = []
    size = (len(heap) - 2) % (ways - 1) + 2
    num_leaves = len(heap)
    while heap and (len(heap) > 1 or not rounds):
        chosen = [heapq.heappop(heap) for _ in range(min(size, len(heap)))]
        rounds.append(tuple(node for _, node in chosen))
        heapq.heappush(heap, (sum(weight for weight, _ in chosen), num_leaves + len(rounds) - 1))
        size = ways
    return rounds


def multiply_condensed(
    a: CSR, b: CSR, a_shape: tuple[int, int], b_shape: tuple[int, int], *, ways: int = 64
) -> SpArchProduct:
    """Multiply bare CSR arrays (pointers, indices, values) of the given shapes in SpArch's order.

    Raises ValueError as `spgemm` does, and where rows x columns of the product reach 2**63.
    """
    check_operands(a, b, a_shape, b_shape)
    rows, columns = a_shape[0], b_shape[1]
    if rows * columns >= 2**63:
        raise ValueError(f"the product must have fewer than 2**63 cells, got {rows} x {columns}")
    weights = condensed_weights(a[0], a[1], b[0])
    streams: dict[int, Stream] = {}
    rounds = []
    for number, nodes in enumerate(huffman_schedule(weights, ways)):
        leaves = [node for node in nodes if node < len(weights)]
        reread = sum(len(streams[node][0]) for node in nodes if node >= len(weights))
        inputs = [streams.pop(n) if n >= len(weights) else _partial(*a, *b, n, columns, weights[n]) for n in nodes]
        result = _merge_all(inputs)
        streams[len(weights) + number] = result
        rounds.append(MergeRound(nodes, int(weights[leaves].sum()), reread, len(result[0])))
    keys, values = streams.popitem()[1] if streams else (np.empty(0, np.int64), np.empty(0, a[2].dtype))
    pointers = np.searchsorted(keys, np.arange(rows + 1) * columns)
    csr = pointers, keys % max(columns, 1), values
    return SpArchProduct(csr, tuple(rounds), len(weights), int(weights.sum()))


def _merge_all(streams: list[Stream]) -> Stream:
    """Pairwise, level by level, as the hardware's merge tree does."""
    while len(streams) > 1:
        pairs = [_merge(*left, *right) for left, right in zip(streams[::2], streams[1::2], strict=False)]
        streams = pairs + streams[len(pairs) * 2 :]
    return streams[0]


@numba.njit(cache=True, nogil=True)
def _partial(
    ap: Array, aj: Array, ax: Array, bp: Array, bj: Array, bx: Array, place: int, columns: int, size: int
) -> tuple[Array, Array]:  # fmt: skip
    """Partial matrix of one condensed column: for every row of A its entry number `place` times that row of B."""
    keys, values = np.empty(size, np.int64), np.empty(size, ax.dtype)
    o = 0
    for row in range(len(ap) - 1):
        p = ap[row] + place
        if p < ap[row + 1]:
            for q in range(bp[aj[p]], bp[aj[p] + 1]):
                keys[o] = row * columns + bj[q]
                values[o] = ax[p] * bx[q]
                o += 1
    return keys, values


@numba.njit(cache=True, nogil=True)
def _merge(keys_a: Array, values_a: Array, keys_b: Array, values_b: Array) -> tuple[Array, Array]:
    """Merge two streams; equal keys become one element with the sum."""
    keys = np.empty(len(keys_a) + len(keys_b), np.int64)
    values = np.empty(len(keys), values_a.dtype)
    i = j = o = 0
    while i < len(keys_a) or j < len(keys_b):
        if j == len(keys_b) or (i < len(keys_a) and keys_a[i] < keys_b[j]):
            keys[o], values[o] = keys_a[i], values_a[i]
            i += 1
        elif i == len(keys_a) or keys_b[j] < keys_a[i]:
            keys[o], values[o] = keys_b[j], values_b[j]
            j += 1
        else:
            keys[o], values[o] = keys_a[i], values_a[i] + values_b[j]
            i += 1
            j += 1
        o += 1
    return keys[:o].copy(), values[:o].copy()
