"""Sparse products against SciPy's, in both algorithms; gradients; refusals; the graphs of SpArch's evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp.sparse import product, spgemm
from dgcomp.sparse.sparch import huffman_schedule, multiply_condensed
from tests.conftest import data_file

scipy_sparse = pytest.importorskip("scipy.sparse")


def random_csr(rows: int, columns: int, density: float, seed: int, dtype: Any = np.float64) -> Any:
    matrix = scipy_sparse.random(rows, columns, density, "csr", dtype=dtype, random_state=np.random.default_rng(seed))
    matrix.sort_indices()
    return matrix


def to_torch(matrix: Any) -> torch.Tensor:
    pointers, indices = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    values = torch.from_numpy(matrix.data)
    return torch.sparse_csr_tensor(pointers, indices, values, matrix.shape, check_invariants=True)


def assert_equal(result: Any, expected: Any) -> None:
    expected.sort_indices()
    assert result.shape == expected.shape
    assert np.array_equal(result.indptr, expected.indptr)
    assert np.array_equal(result.indices, expected.indices)
    eps = np.finfo(expected.dtype).eps
    np.testing.assert_allclose(result.data, expected.data, rtol=100 * eps, atol=100 * eps)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 5, 70, 400, 9000])),
    densities=st.tuples(st.floats(0, 1), st.floats(0, 0.5)),
    seed=st.integers(0, 999),
    accumulator=st.sampled_from(["auto", "dense", "hash"]),
    dtype=st.sampled_from([np.float32, np.float64]),
    threads=st.integers(1, 3),
)
def test_equals_scipy(
    sizes: tuple[int, int, int], densities: tuple[float, float], seed: int, accumulator: Any, dtype: Any, threads: int
) -> None:
    torch.set_num_threads(threads)
    a = random_csr(sizes[0], sizes[1], densities[0], seed, dtype)
    b = random_csr(sizes[1], sizes[2], densities[1], seed + 1, dtype)
    assert_equal(spgemm(a, b, accumulator=accumulator), a @ b)
    c = spgemm(to_torch(a), to_torch(b), accumulator=accumulator)
    torch.testing.assert_close(c.to_dense().numpy(), (a @ b).toarray(), rtol=1e-5, atol=1e-5)
    torch.sparse_csr_tensor(c.crow_indices(), c.col_indices(), c.values(), c.shape, check_invariants=True)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 60), st.integers(1, 60), st.sampled_from([1, 63, 300, 9000, 70000])),
    densities=st.tuples(st.floats(0, 1), st.floats(0, 0.6)),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([np.float32, np.float64]),
    threads=st.integers(1, 4),
)
def test_every_way_to_the_product_agrees_to_the_bit(
    sizes: tuple[int, int, int], densities: tuple[float, float], seed: int, dtype: Any, threads: int
) -> None:
    torch.set_num_threads(threads)
    a = random_csr(sizes[0], sizes[1], densities[0], seed, dtype)
    b = random_csr(sizes[1], sizes[2], densities[1] * min(1, 5000 / sizes[2]), seed + 1, dtype)
    ways: list[dict[str, Any]] = [
        {"MAX_PRODUCTS_PER_ENTRY": 10**9},  # one pass, gaps closed
        {"MAX_ROOM": 0, "MAX_WORDS_PER_ENTRY": 10**9},  # counted by bitmaps
        {"MAX_ROOM": 0, "MAX_WORDS_PER_ENTRY": 0},  # counted by marks
        {"MAX_ROOM": 0, "MAX_WORDS_PER_ENTRY": 0, "MAX_DENSE_COLUMNS": 0},  # counted by and added in hash tables
        {"MAX_PRODUCTS_PER_ENTRY": 10**9, "MAX_DENSE_COLUMNS": 0},
        {"UINT16_MAX": 0},  # columns in 32 bits
    ]
    results = []
    for way in ways:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(product, "MIN_PRODUCTS_PER_THREAD", 1)
            for name, value in way.items():
                patch.setattr(product, name, value)
            results.append(spgemm(a, b))
    assert_equal(results[0], a @ b)
    for result in results[1:]:
        for name in ("indptr", "indices", "data"):
            np.testing.assert_array_equal(getattr(result, name), getattr(results[0], name))


def banded(rows: int, columns: int, entries: int, stride: int) -> Any:
    """`entries` in every row, `stride` apart, from a column on that moves with the row."""
    row, entry = (index.ravel() for index in np.indices((rows, entries)))
    values = np.random.default_rng(0).standard_normal(rows * entries)
    return scipy_sparse.csr_matrix((values, (row, (row * 7 + entry * stride) % columns)), (rows, columns))


@pytest.mark.parametrize("columns", [64, 1000, 2**16 - 1, 2**16, 100_000])
@pytest.mark.parametrize("products", [1, 2, 15, 16, 17, 127, 128, 129, 1000])
def test_rows_of_every_length(columns: int, products: int) -> None:
    """Rows just below and above where the kernel changes its mind, whose products meet and do not meet."""
    for entries in (1, 2, 5):
        for stride in (1, 3, 1_000):
            b = banded(8, columns, min(-(-products // entries), columns), stride)
            a = scipy_sparse.csr_matrix(np.triu(np.ones((6, 8)), 1)[:, :8] * (np.arange(8) < entries + 1))
            assert_equal(spgemm(a, b), a @ b)
            last = scipy_sparse.csr_matrix(([1.0], ([0], [columns - 1])), (8, columns))
            assert_equal(spgemm(a, (b + last).tocsr()), a @ (b + last))


def test_columns_beyond_32_bits() -> None:
    columns = 2**40
    indices = np.array([5, 2**31 + 1, columns - 1, 2**31 + 1, columns - 1, 7], np.int64)
    b = scipy_sparse.csr_matrix((np.arange(1.0, 7.0), indices, np.array([0, 3, 5, 5, 6])), (4, columns))
    a = scipy_sparse.csr_matrix(np.array([[1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 2.0]]))
    used, compact = np.unique(b.indices, return_inverse=True)  # SciPy has no memory for so many columns
    expected = a @ scipy_sparse.csr_matrix((b.data, compact, b.indptr), (4, len(used)))
    expected.sort_indices()
    c = spgemm(a, b)
    assert c.shape == (3, columns)
    assert np.array_equal(c.indptr, expected.indptr)
    assert np.array_equal(c.indices, used[expected.indices])
    np.testing.assert_allclose(c.data, expected.data)
    with pytest.raises(ValueError, match="accumulator must be 'hash' for more than 2147483647 columns"):
        spgemm(a, b, accumulator="dense")


@pytest.mark.parametrize("width", [1, 200, 3000, 80_000])
def test_zeros_that_are_stored_or_cancel_stay_entries(width: int) -> None:
    """Also where all terms are -0.0, in rows of every kind: scaled, ranked, swept and marked."""
    row = np.full(width, 1.0) if width <= 3000 else np.where(np.arange(width) % 100 == 0, 1.0, 0.0)
    b = scipy_sparse.csr_matrix(np.stack([row, row]))
    cancelled = spgemm(scipy_sparse.csr_matrix(np.array([[1.0, -1.0]])), b)
    assert cancelled.nnz == np.count_nonzero(row)
    assert not cancelled.data.any()
    b.data[:] = 0.0
    for factors in ([[-1.0, -1.0]], [[-1.0, 0.0]]):
        stored = spgemm(scipy_sparse.csr_matrix(np.array(factors)), b)
        assert stored.nnz == np.count_nonzero(row)
        assert not stored.data.any()


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 30), inner=st.integers(1, 30), seed=st.integers(0, 999), ways=st.integers(2, 8))
def test_sparchs_order_gives_the_same_product(rows: int, inner: int, seed: int, ways: int) -> None:
    a, b = random_csr(rows, inner, 0.3, seed), random_csr(inner, 25, 0.2, seed + 1)
    arrays = [(m.indptr, m.indices, m.data) for m in (a, b)]
    product = multiply_condensed(*arrays, a.shape, b.shape, ways=ways)
    pointers, indices, values = product.csr
    assert_equal(scipy_sparse.csr_matrix((values, indices, pointers), (rows, 25)), a @ b)
    assert sum(r.products for r in product.rounds) == product.multiplies
    assert sum(r.reread for r in product.rounds) == product.intermediate_elements
    assert product.condensed_columns == np.diff(a.indptr).max()
    if product.rounds:
        assert product.rounds[-1].written == (a @ b).nnz


def test_huffman_schedule() -> None:
    assert huffman_schedule([5]) == [(0,)]
    assert huffman_schedule([]) == []
    assert huffman_schedule([4, 1, 3, 2], ways=2) == [(1, 3), (2, 4), (0, 5)]
    for leaves in range(2, 300):
        rounds = huffman_schedule(np.ones(leaves), ways=64)
        assert len(rounds[0]) == (leaves - 2) % 63 + 2
        assert all(len(nodes) == 64 for nodes in rounds[1:])
        assert sum(map(len, rounds)) == leaves + len(rounds) - 1


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_gradients_of_the_values() -> None:
    a, b = to_torch(random_csr(6, 8, 0.4, 0)), to_torch(random_csr(8, 7, 0.3, 1))

    def product(a_values: torch.Tensor, b_values: torch.Tensor) -> torch.Tensor:
        left = torch.sparse_csr_tensor(a.crow_indices(), a.col_indices(), a_values, a.shape, check_invariants=True)
        right = torch.sparse_csr_tensor(b.crow_indices(), b.col_indices(), b_values, b.shape, check_invariants=True)
        return spgemm(left, right).values()

    values = [matrix.values().clone().requires_grad_() for matrix in (a, b)]
    assert torch.autograd.gradcheck(product, values)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_refuses_bad_input() -> None:
    a = random_csr(5, 6, 0.5, 0)
    with pytest.raises(ValueError, match=r"inner size, got shapes \(5, 6\) and \(5, 6\)"):
        spgemm(a, a)
    with pytest.raises(ValueError, match="both be float32 or both float64"):
        spgemm(a, a.T.tocsr().astype(np.float32))
    with pytest.raises(ValueError, match="CSR matrix"):
        spgemm(a, a.T.tocsc())
    with pytest.raises(ValueError, match="CSR matrix on the CPU"):
        spgemm(torch.eye(3), torch.eye(3).to_sparse_csr())
    with pytest.raises(ValueError, match="accumulator must be"):
        spgemm(a, a, accumulator="tree")  # type: ignore[arg-type]
    for columns in ([1, 0], [1, 1]):
        bad = scipy_sparse.csr_matrix((np.ones(2), columns, [0, 2, 2]), (2, 2))
        with pytest.raises(ValueError, match="b must have ascending, distinct column indices below 2 .* got row 0"):
            spgemm(random_csr(2, 2, 1.0, 0), bad)


def test_cancelled_entries_stay_and_nan_follows_stored_entries() -> None:
    a = scipy_sparse.csr_matrix(np.array([[1.0, -1.0], [0.0, np.nan]]))
    b = scipy_sparse.csr_matrix(np.array([[1.0, 0.0], [1.0, 0.0]]))
    c = spgemm(a, b)
    assert c.nnz == 2
    assert c.data[0] == 0
    assert np.isnan(c.data[1])


def read_graph(path: Path) -> Any:
    """The three graphs as SpArch used them: facebook is symmetrised, Gnutella counts from 1."""
    pairs = np.loadtxt(path, comments="%", dtype=np.int64, usecols=(0, 1))
    rows = {"wiki-Vote": 8297, "facebook_combined": 4039, "p2p-Gnutella31": 62586}[path.stem]
    if path.stem == "wiki-Vote":
        pairs = pairs[1:] - 1
    elif path.stem == "facebook_combined":
        pairs = np.concatenate([pairs, pairs[:, ::-1]])
    else:
        pairs = pairs - 1
    matrix = scipy_sparse.coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (rows, rows)).tocsr()
    matrix.sort_indices()
    return matrix


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "multiplies", "nonzeros", "condensed"),
    [
        ("wiki-Vote.mtx", 4_542_805, 1_831_112, 893),
        ("facebook_combined.txt", 18_806_166, 2_896_485, 1_045),
        ("p2p-Gnutella31.e", 538_318, 537_601, 78),
    ],
)
def test_graphs_of_sparch(name: str, multiplies: int, nonzeros: int, condensed: int) -> None:
    a = read_graph(data_file(f"graphs/{name}"))
    a.data = np.random.default_rng(0).standard_normal(a.nnz)
    c = spgemm(a, a)
    assert c.nnz == nonzeros
    assert_equal(c, a @ a)
    arrays = a.indptr, a.indices, a.data
    product = multiply_condensed(arrays, arrays, a.shape, a.shape)
    assert (product.multiplies, product.condensed_columns) == (multiplies, condensed)
    assert np.array_equal(product.csr[1], c.indices)
    np.testing.assert_allclose(product.csr[2], c.data, rtol=1e-10, atol=1e-10)
