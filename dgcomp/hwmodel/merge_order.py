"""In which order a merger of `ways` inputs adds up partial matrices: Huffman's, left to right, or level by level.

A plan is a tree. Leaves are the partial matrices that the multipliers produce; every node merges up to `ways` leaves
and earlier results. All results but the last are written to memory and read again, so the plan decides the traffic.
"""

import heapq
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["ORDERS", "MergeOrder", "MergePlan", "plan_merges"]

Array = npt.NDArray[Any]
MergeOrder = Literal["huffman", "chain", "balanced"]
ORDERS = ("huffman", "chain", "balanced")


@dataclass(frozen=True, slots=True, eq=False)
class MergePlan:
    """Nodes in the order they are executed; the last one is the root and gives the result."""

    leaf_parent: Array
    """int64 [leaves]: the node that merges each leaf."""
    node_parent: Array
    """int64 [nodes]: the later node that merges each node's result, -1 for the root."""


def plan_merges(weights: Array, *, ways: int, order: MergeOrder) -> MergePlan:
    """Tree that merges `len(weights)` partial matrices, `ways` at a time.

    "huffman" always merges the lightest (SpArch); the first merge takes ((n - 2) mod (ways - 1)) + 2, so that all
    later ones are full. "chain" merges the next ways - 1 leaves into the running result. "balanced" merges
    neighbours level by level. Raises ValueError for fewer than two ways or an unknown order.
    """
    if ways < 2:
        raise ValueError(f"ways must be at least 2, got {ways}")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    num_leaves = len(weights)
    if num_leaves <= ways:
        return MergePlan(np.zeros(num_leaves, np.int64), np.full(1, -1))
    if order == "huffman":
        return _huffman(weights, ways)
    return _chain(num_leaves, ways) if order == "chain" else _balanced(num_leaves, ways)


def _huffman(weights: Array, ways: int) -> MergePlan:
    num_leaves = len(weights)
    heap = [(int(weight), item) for item, weight in enumerate(weights)]  # items: leaves, then nodes
    heapq.heapify(heap)
    parents = [-1] * num_leaves
    take = (num_leaves - 2) % (ways - 1) + 2
    while len(heap) > 1:
        node = len(parents) - num_leaves
        total = 0
        for _ in range(take):
            weight, item = heapq.heappop(heap)
            parents[item] = node
            total += weight
        heapq.heappush(heap, (total, len(parents)))
        parents.append(-1)
        take = ways
    return MergePlan(np.array(parents[:num_leaves]), np.array(parents[num_leaves:]))


def _chain(num_leaves: int, ways: int) -> MergePlan:
    leaf = np.arange(num_leaves)
    leaf_parent = np.where(leaf < ways, 0, 1 + (leaf - ways) // (ways - 1))
    num_nodes = int(leaf_parent[-1]) + 1
    return MergePlan(leaf_parent, np.append(np.arange(1, num_nodes), -1))


def _balanced(num_leaves: int, ways: int) -> MergePlan:
    leaf_parent = np.arange(num_leaves) // ways
    parents: list[int] = []
    first, width = 0, int(leaf_parent[-1]) + 1
    while width > 1:
        following = first + width
        parents += [following + i // ways for i in range(width)]
        first, width = following, -(-width // ways)
    return MergePlan(leaf_parent, np.array([*parents, -1]))
