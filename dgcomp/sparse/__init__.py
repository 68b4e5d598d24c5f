"""Sparse algorithms: pruning, EIE's compressed weights, Winograd-ReLU convolutions, sparse matrix products."""

from dgcomp.sparse.eie import EIEMatrix
from dgcomp.sparse.multiplies import MultiplyCount, count_multiplies
from dgcomp.sparse.patterns import NM, Balanced, Blocks, Unstructured
from dgcomp.sparse.pruner import Cubic, Iterative, OneShot, Pruner
from dgcomp.sparse.sharing import huffman_bits, share_weights, size_report, unshare_weights
from dgcomp.sparse.spgemm import spgemm
from dgcomp.sparse.winograd import WinogradReLUConv2d, transform_weight, winograd_conv2d
from dgcomp.sparse.winograd_sparse import SparseWinogradConv2d

__all__ = [
    "Balanced",
    "Blocks",
    "Cubic",
    "EIEMatrix",
    "Iterative",
    "MultiplyCount",
    "NM",
    "OneShot",
    "Pruner",
    "SparseWinogradConv2d",
    "Unstructured",
    "WinogradReLUConv2d",
    "count_multiplies",
    "huffman_bits",
    "share_weights",
    "size_report",
    "spgemm",
    "transform_weight",
    "unshare_weights",
    "winograd_conv2d",
]
