"""Where the stored entries of a sparse matrix lie, from whatever kind of matrix a caller has."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Pattern"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """Positions of a [rows, columns] matrix, row by row: `starts` int64 [rows + 1], `indices` int64, ascending."""

    rows: int
    columns: int
    starts: Array
    indices: Array

    @property
    def num_entries(self) -> int:
        """Stored entries."""
        return len(self.indices)

    def row_lengths(self) -> Array:
        """Entries of every row: int64 [rows]."""
        return np.diff(self.starts)

    @classmethod
    def of(cls, matrix: Any) -> "Pattern":
        """Pattern of a dense, CSR or COO tensor, or of a scipy sparse matrix; a `Pattern` is returned as it is.

        Stored zeros of sparse matrices count, as they do for hardware. Raises ValueError for anything else.
        """
        if isinstance(matrix, Pattern):
            return matrix
        if hasattr(matrix, "tocsr"):
            return cls._of_scipy(matrix)
        if not isinstance(matrix, Tensor) or matrix.ndim != 2:
            shape = getattr(matrix, "shape", None)
            raise ValueError(f"matrix must be a two-dimensional tensor or scipy matrix, got {type(matrix)} of {shape}")
        rows, columns = matrix.shape
        if matrix.layout == torch.sparse_csr:
            starts, indices = matrix.crow_indices().cpu().numpy(), matrix.col_indices().cpu().numpy()
            return cls(rows, columns, starts.astype(np.int64), _sorted_in_rows(starts, indices))
        if matrix.layout == torch.sparse_coo:
            row, column = matrix.coalesce().indices().cpu().numpy()
        else:
            row, column = np.nonzero(matrix.detach().cpu().numpy())  # in order, like coalesced indices
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(row, minlength=rows))])
        return cls(rows, columns, starts, column.astype(np.int64))

    @classmethod
    def _of_scipy(cls, matrix: Any) -> "Pattern":
        csr = matrix.tocsr()
        rows, columns = csr.shape
        return cls(rows, columns, csr.indptr.astype(np.int64), _sorted_in_rows(csr.indptr, csr.indices))

    @classmethod
    def from_coordinates(cls, rows: int, columns: int, row: Array, column: Array) -> "Pattern":
        """Pattern of entries at (row, column); repeated positions are one entry."""
        keys = np.sort(np.asarray(row, np.int64) * columns + np.asarray(column, np.int64))
        keys = keys[np.diff(keys, prepend=-1) > 0]  # np.unique takes ten times as long for millions
        counts = np.bincount(keys // columns, minlength=rows) if columns else np.zeros(rows, np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return cls(rows, columns, starts, keys % columns if columns else keys)


def _sorted_in_rows(starts: Array, indices: Array) -> Array:
    row = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    return indices[np.lexsort((indices, row))].astype(np.int64)
