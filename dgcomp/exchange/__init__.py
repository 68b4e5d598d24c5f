"""Sums of sparse gradients over the ranks: packed all-gather, O(k) by owners, two-level, dense."""

from dgcomp.exchange.nodes import NodeGroups, mean_in_node, node_groups
from dgcomp.exchange.regions import Regions
from dgcomp.exchange.result import Exchanged
from dgcomp.exchange.sparse import ALGORITHMS, all_reduce_sparse
from dgcomp.exchange.volume import bytes_per_worker

__all__ = [
    "ALGORITHMS",
    "Exchanged",
    "NodeGroups",
    "Regions",
    "all_reduce_sparse",
    "bytes_per_worker",
    "mean_in_node",
    "node_groups",
]
