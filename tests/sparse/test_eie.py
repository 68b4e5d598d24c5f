"""EIE's format against the paper's own example, against dense products, and against its closed forms."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp.sparse import EIEMatrix, expected_padding

VALUES = torch.tensor([-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, -0.125, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0])
# Table III of the paper: inputs, outputs, weight density
TABLE_III = {
    "Alex-6": (9216, 4096, 0.09),
    "Alex-7": (4096, 4096, 0.09),
    "Alex-8": (4096, 1000, 0.25),
    "VGG-8": (4096, 1000, 0.23),
    "NT-We": (4096, 600, 0.10),
    "NT-Wd": (600, 8791, 0.11),
    "NT-LSTM": (1201, 2400, 0.10),
}
# The same with the widest layers, which take seconds
LARGE = {"VGG-6": (25088, 4096, 0.04), "VGG-7": (4096, 4096, 0.04)}


def random_layer(rows: int, columns: int, density: float, seed: int = 0) -> torch.Tensor:
    """Independent nonzeros that share 15 values."""
    generator = torch.Generator().manual_seed(seed)
    values = VALUES[torch.randint(len(VALUES), (rows, columns), generator=generator)]
    return values * (torch.rand(rows, columns, generator=generator) < density)


def slow_entries(weight: torch.Tensor, num_pes: int, index_bits: int) -> list[list[list[tuple[float, int]]]]:
    """(value, gap) of every entry, [columns][num_pes], straight from the paper's words."""
    most = 2**index_bits - 1
    lists: list[list[list[tuple[float, int]]]] = []
    for column in weight.T:
        per_pe = []
        for pe in range(num_pes):
            entries, zeros = [], 0
            for value in column[pe::num_pes].tolist():
                if value == 0:
                    zeros += 1
                    continue
                while zeros > most:
                    entries.append((0.0, most))
                    zeros -= most + 1
                entries.append((value, zeros))
                zeros = 0
            per_pe.append(entries)
        lists.append(per_pe)
    return lists


def test_the_papers_example() -> None:
    column = torch.zeros(23)
    column[2], column[3], column[22] = 1.0, 2.0, 3.0  # [0, 0, 1, 2, (18 zeros), 3]
    matrix = EIEMatrix.from_dense(column[:, None], num_pes=1)
    assert (matrix.entries & 15).tolist() == [1, 2, 0, 3]  # v
    assert (matrix.entries >> 4).tolist() == [2, 0, 15, 2]  # z
    assert matrix.pointers().tolist() == [[0, 4]]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 90),
    columns=st.integers(1, 12),
    num_pes=st.integers(1, 9),
    index_bits=st.integers(1, 6),
    codebook_bits=st.integers(4, 9),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
    double=st.booleans(),
)
def test_format_and_products(
    rows: int, columns: int, num_pes: int, index_bits: int, codebook_bits: int, density: float, seed: int, double: bool
) -> None:
    weight = random_layer(rows, columns, density, seed).to(torch.float64 if double else torch.float32)
    matrix = EIEMatrix.from_dense(weight, num_pes=num_pes, index_bits=index_bits, codebook_bits=codebook_bits)
    assert torch.equal(matrix.to_dense(), weight)
    assert matrix.shape == (rows, columns)

    slow = slow_entries(weight, num_pes, index_bits)
    flat = [entry for per_pe in slow for entries in per_pe for entry in entries]
    codes, gaps = matrix.entries & (2**codebook_bits - 1), matrix.entries >> codebook_bits
    assert list(zip(matrix.codebook[codes].tolist(), gaps.tolist(), strict=True)) == flat
    assert matrix.entries_per_pe().T.tolist() == [[len(entries) for entries in per_pe] for per_pe in slow]

    x = torch.randn(columns, dtype=weight.dtype) * (torch.rand(columns) < 0.5)
    # products differ from the dense ones by the order of `columns` additions
    tolerance = 4 * columns * torch.finfo(weight.dtype).eps
    torch.testing.assert_close(matrix.matvec(x), weight @ x, rtol=tolerance, atol=10 * tolerance)
    batch = torch.randn(2, 3, columns, dtype=weight.dtype)
    torch.testing.assert_close(matrix.matmul(batch), batch @ weight.T, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("layer", [*TABLE_III, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_table_iii_layers_round_trip_at_eight_bits_an_entry(layer: str) -> None:
    columns, rows, density = (TABLE_III | LARGE)[layer]
    weight = random_layer(rows, columns, density)
    matrix = EIEMatrix.from_dense(weight)
    assert torch.equal(matrix.to_dense(), weight)
    assert matrix.entries.nbytes * 8 == 8 * matrix.num_entries  # 4 + 4 bits, in memory as in the format
    padding = matrix.num_entries / matrix.num_nonzeros - 1
    assert padding == pytest.approx(expected_padding(density, rows_per_pe=-(-rows // 64)), rel=0.02, abs=2e-3)
    pointer_bits = 64 * (columns + 1) * 32
    assert matrix.size_bits() == 8 * matrix.num_entries + pointer_bits + 16 * 16


@pytest.mark.parametrize("layer", ["Alex-7", "NT-We", "NT-LSTM", "VGG-7"])
def test_padding_of_long_columns_matches_the_closed_form(layer: str) -> None:
    columns, rows, density = (TABLE_III | LARGE)[layer]
    # one PE, and its columns one under the other: as long as a column can be with so many weights
    matrix = EIEMatrix.from_dense(random_layer(rows * columns // 64, 64, density), num_pes=1)
    padding = matrix.num_entries / matrix.num_nonzeros - 1
    assert padding == pytest.approx(expected_padding(density), rel=0.02)
    assert expected_padding(density, rows_per_pe=10**6) == pytest.approx(expected_padding(density), rel=1e-3)


def test_expected_padding_by_enumeration() -> None:
    """Every column of 7 rows, weighted with its probability; gaps of up to 1 in an index of one bit."""
    density, paddings, nonzeros = 0.3, 0.0, 0.0
    for column in itertools.product((0.0, 1.0), repeat=7):
        kept = sum(column)
        share = density**kept * (1 - density) ** (7 - kept)
        entries = slow_entries(torch.tensor(column)[:, None], 1, index_bits=1)[0][0]
        paddings += share * (len(entries) - kept)
        nonzeros += share * kept
    assert paddings / nonzeros == pytest.approx(expected_padding(density, index_bits=1, rows_per_pe=7))
    with pytest.raises(ValueError, match="density must be in"):
        expected_padding(0.0)


def test_short_columns_never_pad() -> None:
    matrix = EIEMatrix.from_dense(random_layer(16 * 8, 50, 0.05), num_pes=8)
    assert matrix.num_entries == matrix.num_nonzeros


def test_entries_of_active_columns_with_the_bias_last() -> None:
    weight, bias = random_layer(100, 30, 0.2), torch.ones(100)
    matrix = EIEMatrix.from_dense(weight, bias, num_pes=8)
    activation = torch.zeros(30)
    activation[[3, 17]] = 1.0
    every = matrix.entries_per_pe()
    active = matrix.entries_per_pe(activation)
    assert every.shape == (8, 31)
    assert np.array_equal(active, every[:, [3, 17, 30]])
    real = matrix.entries_per_pe(padding=False)
    for pe in range(8):
        assert np.array_equal(real[pe, :30], np.count_nonzero(weight[pe::8].numpy(), axis=0))
    assert real.sum() == matrix.num_nonzeros
    torch.testing.assert_close(matrix.matvec(activation), weight @ activation + bias)
    assert matrix.bias is not None
    assert torch.equal(matrix.bias, bias)


def test_more_values_than_centroids_become_the_nearest_centroid() -> None:
    weight = torch.randn(64, 64) * (torch.rand(64, 64) < 0.3)
    matrix = EIEMatrix.from_dense(weight, num_pes=4)
    shared = matrix.to_dense()
    assert len(matrix.codebook) == 16
    assert torch.equal(shared != 0, weight != 0)
    centroids = torch.from_numpy(matrix.codebook[1:])
    nearest = (weight[weight != 0][:, None] - centroids).abs().min(dim=1).values
    torch.testing.assert_close((shared - weight)[weight != 0].abs(), nearest)


def test_threads_do_not_change_a_bit() -> None:
    matrix = EIEMatrix.from_dense(random_layer(500, 400, 0.1), num_pes=7)
    x = torch.randn(400)
    one = matrix.matvec(x)
    torch.set_num_threads(3)
    assert torch.equal(matrix.matvec(x), one)


def test_files_keep_every_bit_and_refuse_damage(tmp_path: Path) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    matrix = EIEMatrix.from_dense(random_layer(70, 40, 0.2), torch.ones(70), num_pes=4, index_bits=3)
    matrix.save(tmp_path / "layer.safetensors")
    loaded = EIEMatrix.load(tmp_path / "layer.safetensors")
    assert torch.equal(loaded.to_dense(), matrix.to_dense())
    assert (loaded.index_bits, loaded.has_bias, loaded.shape) == (3, True, (70, 40))
    assert loaded.entries.dtype == matrix.entries.dtype

    numpy_files.save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"must be a dgcomp\.eie\.1 file"):
        EIEMatrix.load(tmp_path / "other.safetensors")
    matrix.lengths[0, 0] += 1
    matrix.save(tmp_path / "damaged.safetensors")
    with pytest.raises(ValueError, match="lengths that add up"):
        EIEMatrix.load(tmp_path / "damaged.safetensors")


def test_refuses_bad_input() -> None:
    weight = random_layer(20, 10, 0.5)
    bad = weight.clone()
    bad[3, 3] = float("nan")
    with pytest.raises(ValueError, match="weight must be finite, got 1 NaN"):
        EIEMatrix.from_dense(bad)
    with pytest.raises(ValueError, match="index_bits must be in"):
        EIEMatrix.from_dense(weight, index_bits=0)
    with pytest.raises(ValueError, match="num_pes must be at least 1"):
        EIEMatrix.from_dense(weight, num_pes=0)
    with pytest.raises(ValueError, match="weight must be a float32 or float64 matrix"):
        EIEMatrix.from_dense(weight.half())
    with pytest.raises(ValueError, match="codebook must be zero followed"):
        EIEMatrix.from_dense(weight, codebook=torch.tensor([1.0, 2.0]))
    matrix = EIEMatrix.from_dense(weight, num_pes=2)
    with pytest.raises(ValueError, match=r"x must be .*\[\.\.\., 10\]"):
        matrix.matvec(torch.zeros(11))
    with pytest.raises(ValueError, match="pointer_bits must reach"):
        EIEMatrix.from_dense(torch.ones(64, 64), num_pes=1).size_bits(pointer_bits=8)


def test_an_empty_weight_is_fine() -> None:
    matrix = EIEMatrix.from_dense(torch.zeros(10, 4))
    assert matrix.num_entries == 0
    assert torch.equal(matrix.matvec(torch.ones(4)), torch.zeros(10))
    assert torch.equal(matrix.to_dense(), torch.zeros(10, 4))
