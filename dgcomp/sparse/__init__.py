"""Sparse algorithms: pruning, EIE's compressed weights, Winograd-ReLU convolutions, sparse matrix products."""

from dgcomp.sparse.eie import EIEMatrix

__all__ = ["EIEMatrix"]
