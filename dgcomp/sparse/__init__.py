"""Sparse algorithms: pruning, EIE's compressed weights, Winograd-ReLU convolutions, sparse matrix products."""

from dgcomp.sparse.activity import ActivityMeter
from dgcomp.sparse.eie import EIEMatrix, expected_padding
from dgcomp.sparse.group_weights import GroupWeights
from dgcomp.sparse.multiplies import MultiplyCount, count_multiplies
from dgcomp.sparse.patterns import NM, Balanced, Blocks, Unstructured
from dgcomp.sparse.product import spgemm
from dgcomp.sparse.pruner import Cubic, Iterative, OneShot, Pruner
from dgcomp.sparse.semi_structured import Packed24, to_semi_structured
from dgcomp.sparse.sharing import huffman_bits, share_weights, size_report, unshare_weights
from dgcomp.sparse.winograd import WinogradReLUConv2d, transform_weight, winograd_conv2d
from dgcomp.sparse.winograd_sparse import SparseWinogradConv2d

__all__ = [
    "ActivityMeter",
    "GroupWeights",
    "Packed24",
    "to_semi_structured",
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
    "expected_padding",
    "huffman_bits",
    "share_weights",
    "size_report",
    "spgemm",
    "transform_weight",
    "unshare_weights",
    "winograd_conv2d",
]
