"""Sums of sparse gradients over the ranks: packed all-gather, O(k) by owners, two-level, dense."""

from dgcomp.exchange.auto import AutoExchange
from dgcomp.exchange.calibrate import calibrate
from dgcomp.exchange.model import Host, Link
from dgcomp.exchange.nodes import NodeGroups, mean_in_node, node_groups
from dgcomp.exchange.planner import ExchangePlan, plan, replan
from dgcomp.exchange.regions import Regions
from dgcomp.exchange.result import Exchanged
from dgcomp.exchange.sparse import ALGORITHMS, all_reduce_sparse
from dgcomp.exchange.volume import bytes_per_worker

__all__ = [
    "ALGORITHMS",
    "AutoExchange",
    "ExchangePlan",
    "Exchanged",
    "Host",
    "Link",
    "NodeGroups",
    "Regions",
    "all_reduce_sparse",
    "bytes_per_worker",
    "calibrate",
    "mean_in_node",
    "node_groups",
    "plan",
    "replan",
]
