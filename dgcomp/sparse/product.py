"""Sparse matrix times sparse matrix on the CPU, without MKL: CSR in, CSR out, gradients for the stored values.

torch multiplies two CSR matrices on the CPU only in builds with MKL; this works in every build and on SciPy matrices.
Gustavson's row-wise algorithm ("Two fast algorithms for sparse matrices", ACM TOMS 1978), in one pass or, where that
pays, after a symbolic phase that counts the entries of the result.
"""

import itertools
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dgcomp.sparse import gustavson as kernels
from dgcomp.sparse import symbolic
from dgcomp.sparse.threads import run_in_threads

__all__ = ["Accumulator", "spgemm"]

Array = npt.NDArray[Any]
Accumulator = Literal["auto", "dense", "hash"]
Matrix = TypeVar("Matrix")
CSR = tuple[Array, Array, Array]  # row pointers, column indices, values
Left = tuple[Array, Array, Array, Array, Array]  # what symbolic.live_entries returns
Ranges = list[tuple[int, int]]  # rows [start, stop)

UINT16_MAX = np.iinfo(np.uint16).max
INT32_MAX = np.iinfo(np.int32).max

# Above this many columns a thread's dense accumulator no longer pays: 64 MB of float64 that are mostly cache misses.
MAX_DENSE_COLUMNS = 1 << 23
# B's rows become bitmaps where these have at most so many words for each of its entries.
MAX_WORDS_PER_ENTRY = 2
# Up to so many products for each entry of A and B few of them meet, and counting them beforehand does not pay.
MAX_PRODUCTS_PER_ENTRY = 4
# Entries of C beyond which it is counted first in any case: 2**28 are 3 to 4 GB of addresses.
MAX_ROOM = 1 << 28
# A thread costs some 100 microseconds, cold caches and a gap to close: it pays from about 2 ms of work on.
MIN_PRODUCTS_PER_THREAD = 1 << 19


def spgemm(a: Matrix, b: Matrix, *, accumulator: Accumulator = "auto") -> Matrix:
    """Product a @ b of two CSR matrices as a CSR matrix of the same kind, columns ascending in every row.

    Parameters
    ----------
    a, b : torch CSR tensors on the CPU, or SciPy CSR matrices or arrays
        float32 or float64, both of one type; indices int32 or int64 (the result has the wider of the two, and int64
        where it has 2**31 or more entries). Column indices must be ascending and distinct in every row.
    accumulator : {"auto", "dense", "hash"}
        Where the sums of a row of the result are kept. "dense" has one cell for each column, "hash" a table of the
        longest row; "auto" takes "dense" up to 2**23 columns.

    Entries that cancel to zero stay stored, as in SciPy; NaN and infinity propagate along stored entries alone.
    torch tensors are differentiable in their values. Runs in `torch.get_num_threads()` threads, whose number does not
    change the result. Raises ValueError for shapes or types that do not fit, and for unsorted or duplicate entries.
    """
    if accumulator not in ("auto", "dense", "hash"):
        raise ValueError(f"accumulator must be 'auto', 'dense' or 'hash', got {accumulator!r}")
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _spgemm_torch(a, b, accumulator)  # type: ignore[return-value]
    for name, matrix in (("a", a), ("b", b)):
        if getattr(matrix, "format", None) != "csr":
            raise ValueError(f"{name} must be a torch or SciPy CSR matrix like the other, got {type(matrix).__name__}")
    pointers, indices, values = multiply(_scipy_csr(a), _scipy_csr(b), a.shape, b.shape, accumulator)  # type: ignore[attr-defined]
    result = type(a)((values, indices, pointers), shape=(a.shape[0], b.shape[1]), copy=False)  # type: ignore[call-arg, attr-defined]
    result.has_canonical_format = True  # type: ignore[attr-defined]
    return result


def multiply(
    a: CSR, b: CSR, a_shape: tuple[int, int], b_shape: tuple[int, int], accumulator: Accumulator = "auto"
) -> CSR:
    """The same on bare arrays (pointers, indices, values) of two matrices of the given shapes."""
    check_operands(a, b, a_shape, b_shape)
    is_dense = accumulator == "dense" or (accumulator == "auto" and b_shape[1] <= MAX_DENSE_COLUMNS)
    if is_dense and b_shape[1] > INT32_MAX:
        raise ValueError(f"accumulator must be 'hash' for more than {INT32_MAX} columns, got 'dense' for {b_shape[1]}")
    is_short = is_dense and b_shape[1] <= UINT16_MAX
    right = _narrow(b[0], len(b[1])), b[1].astype(np.uint16) if is_short else _narrow(b[1], b_shape[1]), b[2]
    a_columns = np.empty(len(a[1]), np.int32 if a_shape[1] <= INT32_MAX else np.int64)
    left = symbolic.live_entries(_narrow(a[0], len(a[1])), a[1], a[2], right[0], a_columns)
    rows, products = left[0], left[-1]
    ranges = _balanced_ranges(products)
    starts = _running_sum(np.minimum(np.diff(products), b_shape[1]))  # where rows of C begin if no two products meet
    if not _takes_one_pass(a, b, b_shape[1], int(products[-1]), int(starts[-1]), len(ranges)):
        starts = _running_sum(_count_entries(left, right, b_shape[1], ranges, is_dense=is_dense))
    index_type = np.result_type(a[1], b[1], np.int64 if starts[-1] > INT32_MAX else np.int32)
    pointers = np.zeros(a_shape[0] + 1, index_type)
    indices, values = np.empty(starts[-1], index_type), np.empty(starts[-1], a[2].dtype)
    c = pointers, indices, values

    def fill(start: int, stop: int) -> None:
        if is_dense:
            workspace = kernels.workspace(b_shape[1], right[1].dtype, right[2].dtype)
            kernels.multiply_rows(*left, *right, b_shape[1], *c, start, stop, starts[start], starts[stop], *workspace)
        else:
            kernels.multiply_hash(*left, *right, *c, start, stop, starts[start])

    run_in_threads(fill, ranges)
    np.cumsum(pointers, dtype=index_type, out=pointers)
    for start, stop in ranges:
        target = int(pointers[rows[start]]) if start < stop else 0
        if starts[start] > target:
            kernels.close_gap(indices, values, int(starts[start]), target, int(pointers[rows[stop - 1] + 1]) - target)
    indices.resize(pointers[-1], refcheck=False)  # in place: gives the pages back that nothing was written to
    values.resize(pointers[-1], refcheck=False)
    return pointers, indices, values


def _takes_one_pass(a: CSR, b: CSR, columns: int, num_products: int, most_entries: int, num_ranges: int) -> bool:
    """Whether C is written into room for as many entries as it could have, not counted first.

    Room that nothing is written to never becomes real memory. With several threads there are gaps to close afterwards,
    which pays where few products meet, as they do where there are few of them.
    """
    if num_products <= MAX_PRODUCTS_PER_ENTRY * (len(a[1]) + len(b[1])):
        return most_entries <= MAX_ROOM
    return num_ranges == 1 and most_entries <= MAX_ROOM and not _fits_bitmaps(b[0], b[1], columns)


def _fits_bitmaps(bp: Array, bj: Array, columns: int) -> bool:
    """Whether B is so dense that bitmaps of its rows count the entries of C in next to no time."""
    return (len(bp) - 1) * (columns >> 6) <= MAX_WORDS_PER_ENTRY * len(bj)


def _count_entries(left: Left, right: CSR, columns: int, ranges: Ranges, *, is_dense: bool) -> Array:
    """Entries of C in every row of `left`, int64."""
    _, ap, aj, _, products = left
    bp, bj, _ = right
    counts = np.zeros(len(ap) - 1, np.int64)
    words = symbolic.bitmaps(bp, bj, (columns >> 6) + 1) if _fits_bitmaps(bp, bj, columns) else None

    def count(start: int, stop: int) -> None:
        if words is not None:
            symbolic.count_by_bitmaps(ap, aj, words, counts, start, stop)
        elif is_dense:
            marks = np.full(columns, -1, np.int32 if len(counts) <= INT32_MAX else np.int64)
            symbolic.count_by_marks(ap, aj, bp, bj, marks, counts, start, stop)
        else:
            symbolic.count_by_hash(ap, aj, bp, bj, products, counts, start, stop)

    run_in_threads(count, ranges)
    return counts


def check_operands(a: CSR, b: CSR, a_shape: tuple[int, int], b_shape: tuple[int, int]) -> None:
    """Raise ValueError unless a @ b is a product of two float CSR matrices in canonical form."""
    if a_shape[1] != b_shape[0]:
        raise ValueError(f"a and b must agree in the inner size, got shapes {tuple(a_shape)} and {tuple(b_shape)}")
    if a[2].dtype != b[2].dtype or a[2].dtype not in (np.float32, np.float64):
        raise ValueError(f"a and b must both be float32 or both float64, got {a[2].dtype} and {b[2].dtype}")
    is_square = a[0] is b[0] and a[1] is b[1]
    for name, (pointers, indices, _), shape in (("a", a, a_shape), ("b", b, b_shape))[: 1 if is_square else 2]:
        row = symbolic.first_unsorted_row(pointers, indices, shape[1])
        if row >= 0:
            raise ValueError(
                f"{name} must have ascending, distinct column indices below {shape[1]} in every row, got row {row}: "
                f"{indices[pointers[row] : pointers[row + 1]][:8]}...; "
                "call sum_duplicates() (SciPy) or to_sparse_coo().coalesce().to_sparse_csr() (torch) first"
            )


def _narrow(indices: Array, limit: int) -> Array:
    """The same numbers, none above `limit`, in half the bytes where that can be: they are read again and again."""
    return indices.astype(np.int32, copy=False) if limit <= INT32_MAX else indices


def _running_sum(counts: Array) -> Array:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _balanced_ranges(products: Array) -> Ranges:
    """Row ranges of nearly equal work, one for each torch thread that has enough of it; running sums of products."""
    num_rows = len(products) - 1
    num_threads = max(1, min(torch.get_num_threads(), int(products[-1]) // MIN_PRODUCTS_PER_THREAD))
    work = products + np.arange(num_rows + 1)  # a row costs something of its own
    cuts = np.searchsorted(work, work[-1] * np.arange(1, num_threads) / num_threads)
    bounds = np.unique(np.concatenate([[0], cuts, [num_rows]]))
    return [(int(start), int(stop)) for start, stop in itertools.pairwise(bounds)] or [(0, 0)]


def _scipy_csr(matrix: Any) -> CSR:
    return matrix.indptr, matrix.indices, matrix.data


def torch_csr(matrix: Tensor, name: str) -> CSR:
    """The three arrays of a torch CSR tensor, without a copy."""
    if matrix.layout != torch.sparse_csr or matrix.device.type != "cpu" or matrix.ndim != 2:
        raise ValueError(
            f"{name} must be a CSR matrix on the CPU, got layout {matrix.layout}, device {matrix.device}, "
            f"{matrix.ndim} dimensions; use to_sparse_csr() and cpu()"
        )
    return (
        matrix.crow_indices().numpy(),
        matrix.col_indices().numpy(),
        matrix.values().detach().numpy(),
    )


def _spgemm_torch(a: Tensor, b: Tensor, accumulator: Accumulator) -> Tensor:
    a_csr = torch_csr(a, "a")
    b_csr = a_csr if b is a else torch_csr(b, "b")
    (a_rows, a_columns), (b_rows, b_columns) = a.shape, b.shape
    shapes = (a_rows, a_columns), (b_rows, b_columns)
    pointers, indices, values = _Product.apply(a.values(), b.values(), a_csr, b_csr, shapes, accumulator)
    return torch.sparse_csr_tensor(pointers, indices, values, (a_rows, b_columns), check_invariants=False)


class _Product(torch.autograd.Function):
    """The product as a function of the stored values."""

    @staticmethod
    def forward(ctx: Any, a_values: Tensor, b_values: Tensor, a: CSR, b: CSR, shapes: Any, accumulator: Any) -> Any:
        pointers, indices, values = multiply(a, b, shapes[0], shapes[1], accumulator)
        ctx.patterns = a[:2], b[:2], (pointers, indices)
        ctx.num_columns = shapes[1][1]
        ctx.save_for_backward(a_values, b_values)
        results = torch.from_numpy(pointers), torch.from_numpy(indices), torch.from_numpy(values)
        ctx.mark_non_differentiable(*results[:2])
        return results

    @staticmethod
    def backward(ctx: Any, _pointers: Any, _indices: Any, grad: Tensor) -> Any:  # type: ignore[override]
        a_values, b_values = (values.detach().numpy() for values in ctx.saved_tensors)
        (ap, aj), (bp, bj), (cp, cj) = ctx.patterns
        grad_a, grad_b = np.empty_like(a_values), np.zeros_like(b_values)
        grad_c = grad.contiguous().numpy()
        kernels.backward(ap, aj, a_values, bp, bj, b_values, cp, cj, grad_c, ctx.num_columns, grad_a, grad_b)
        return torch.from_numpy(grad_a), torch.from_numpy(grad_b), None, None, None, None
