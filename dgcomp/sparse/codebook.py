"""One-dimensional codebooks: k-means on the nonzero weights, as Deep Compression and EIE share weights.

Han et al., "Deep Compression", ICLR 2016, section 3; EIE, ISCA 2016, section III-B: entry 0 of a codebook is the
value zero, so `bits` bits hold 2**bits - 1 centroids.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["assign_codes", "fit_codebook"]

Array = npt.NDArray[Any]
MAX_ITERATIONS = 100


def fit_codebook(values: Array, bits: int) -> Array:
    """Codebook of a weight array: zero, then up to 2**bits - 1 ascending centroids of its nonzero values.

    With no more distinct nonzero values than centroids the codebook holds exactly those values; otherwise Lloyd's
    k-means starts from centroids spread linearly between the smallest and the largest value (Deep Compression 3.2:
    it keeps the rare large weights) and runs until no value changes its cluster.
    """
    ascending = np.sort(values[values != 0], axis=None)
    num_centroids = 2**bits - 1
    changes = np.flatnonzero(np.diff(ascending)) + 1
    if len(changes) < num_centroids:  # len(changes) + 1 distinct values
        distinct = ascending[np.concatenate([[0], changes])] if ascending.size else ascending
        return np.concatenate([np.zeros(1, values.dtype), distinct])
    centroids = np.linspace(ascending[0], ascending[-1], num_centroids, dtype=np.float64)
    prefix = np.concatenate([[0.0], np.cumsum(ascending, dtype=np.float64)])
    previous = None
    for _ in range(MAX_ITERATIONS):
        edges = np.searchsorted(ascending, (centroids[1:] + centroids[:-1]) / 2, side="right")
        if previous is not None and np.array_equal(edges, previous):
            break
        bounds = np.concatenate([[0], edges, [len(ascending)]])
        counts = np.diff(bounds)
        means = np.diff(prefix[bounds]) / np.maximum(counts, 1)
        centroids = np.where(counts > 0, means, centroids)  # an empty cluster keeps its place
        previous = edges
    return np.concatenate([np.zeros(1), centroids]).astype(values.dtype)


def assign_codes(values: Array, codebook: Array) -> Array:
    """Codes of the nearest centroids, uint8 or uint16 of the shape of `values`; exactly zero values get code 0.

    `codebook` is zero followed by ascending centroids. A nonzero value never gets code 0.
    """
    dtype = np.uint8 if len(codebook) <= 256 else np.uint16
    codes = np.zeros(values.shape, dtype)
    where = np.nonzero(values)
    if len(codebook) > 1 and len(where[0]):
        centroids = codebook[1:].astype(np.float64)
        middles = (centroids[1:] + centroids[:-1]) / 2
        codes[where] = 1 + np.searchsorted(middles, values[where].astype(np.float64))
    return codes
