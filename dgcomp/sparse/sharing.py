"""Weight sharing and its sizes: layers whose weights are codebook entries, trained through their centroids.

Han, Mao, Dally, "Deep Compression", ICLR 2016, section 3 (sharing, centroid gradients) and section 4 (Huffman).
"""

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dgcomp.sparse.codebook import assign_codes, fit_codebook
from dgcomp.sparse.eie import EIEMatrix

__all__ = ["SizeReport", "huffman_bits", "share_weights", "size_report", "unshare_weights"]


class _Codebook(nn.Module):
    """Parametrization of a weight by its centroids; a zero weight has code 0 and stays zero."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    def forward(self, centroids: Tensor) -> Tensor:
        return F.pad(centroids, (1, 0))[self.codes]

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The centroids of a weight: the mean of the values that share a code."""
        num_codes = int(self.codes.max()) + 1
        sums = torch.zeros(num_codes, dtype=weight.dtype).index_add_(0, self.codes.flatten(), weight.flatten())
        counts = torch.bincount(self.codes.flatten(), minlength=num_codes)
        return (sums / counts.clamp(min=1))[1:]


def share_weights(layer: nn.Module, *, bits: int = 4) -> None:
    """Replace `layer.weight` by a codebook of zero and 2**bits - 1 k-means centroids, which become its parameter.

    Training then moves the centroids by the summed gradients of their weights; zeros stay zero. The new parameter is
    `layer.parametrizations.weight.original` [centroids], so make the optimizer afterwards.
    """
    weight: Tensor = layer.weight.detach()  # type: ignore[assignment, operator]
    if not torch.isfinite(weight).all():
        raise ValueError(f"weight of {type(layer).__name__} must be finite to be shared, got NaN or infinity")
    values = weight.cpu().numpy()
    codes = torch.from_numpy(assign_codes(values, fit_codebook(values, bits)).astype(np.int64))
    parametrize.register_parametrization(layer, "weight", _Codebook(codes.to(weight.device)), unsafe=True)


def unshare_weights(layer: nn.Module) -> None:
    """Make `layer.weight` a plain parameter again, with the shared values."""
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def huffman_bits(counts: npt.ArrayLike) -> int:
    """Total bits of a Huffman code for symbols that occur `counts` times; one symbol alone takes a bit each."""
    heap = [int(count) for count in np.asarray(counts).ravel() if count > 0]
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:  # every merge adds one bit to each symbol below it
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


@dataclass(frozen=True)
class SizeReport:
    """Bits of one layer in four forms."""

    dense_bits: int
    """float32, every weight."""
    csr_bits: int
    """float32 values and 32-bit column indices of the nonzeros."""
    eie_bits: int
    """`EIEMatrix.size_bits()`: entries, column pointers, codebook."""
    huffman_bits: int
    """The same with Huffman-coded codebook indices and gaps (Deep Compression's third stage); code tables left out."""


def size_report(matrix: EIEMatrix, *, pointer_bits: int = 32) -> SizeReport:
    """Sizes of a compressed layer."""
    rows, columns = matrix.shape
    codes = matrix.entries & ((1 << matrix.codebook_bits) - 1)
    gaps = matrix.entries >> matrix.codebook_bits
    eie_bits = matrix.size_bits(pointer_bits=pointer_bits)
    entry_bits = matrix.num_entries * (matrix.index_bits + matrix.codebook_bits)
    coded = huffman_bits(np.bincount(codes)) + huffman_bits(np.bincount(gaps))
    return SizeReport(
        dense_bits=32 * rows * (columns + matrix.has_bias),
        csr_bits=64 * matrix.num_nonzeros + 32 * (rows + 1),
        eie_bits=eie_bits,
        huffman_bits=eie_bits - entry_bits + coded,
    )
