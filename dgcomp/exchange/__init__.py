"""Sums of sparse gradients over the ranks: packed all-gather, O(k) by owners, two-level, dense."""

from dgcomp.exchange.result import Exchanged
from dgcomp.exchange.sparse import all_reduce_sparse

__all__ = ["Exchanged", "all_reduce_sparse"]
