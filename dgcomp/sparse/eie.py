"""EIE's compressed weight matrix: pruned, weight-shared, relative row indices, rows interleaved over elements.

Han et al., "EIE: Efficient Inference Engine on Compressed Deep Neural Network", ISCA 2016, sections III-B and III-C.
Processing element (PE) k of `num_pes` owns the rows k, k + num_pes, ... of the weight. For each of its columns it
stores a list of entries: a codebook index and the count of zeros skipped within its own rows. Where more zeros lie
between two nonzeros than the index can count, padding entries (code 0, largest count) stand in between; none follows
the last nonzero. Hardware decodes the codebook to 16-bit fixed point; here it keeps the weight's own float type.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dgcomp.sparse import eie_kernels as kernels
from dgcomp.sparse.codebook import assign_codes, fit_codebook
from dgcomp.sparse.threads import run_in_threads, split_evenly

__all__ = ["EIEMatrix", "expected_padding"]

Array = npt.NDArray[Any]
FILE_FORMAT = "dgcomp.eie.1"


@dataclass(frozen=True, eq=False)
class EIEMatrix:
    """A weight [rows, columns] in EIE's format, built by `from_dense` or `load`.

    Products accept float32 and float64 activations and run in `torch.get_num_threads()` threads; each row belongs to
    one PE and each PE to one thread, so the result does not depend on the number of threads.
    """

    entries: Array
    """`gap << codebook_bits | code`, smallest unsigned type: one byte an entry at 4 + 4 bits. Column by column,
    within a column PE by PE."""
    lengths: Array
    """uint16 or uint32 [columns (+1 with bias), num_pes]: entries of each PE in each column, padding included."""
    column_starts: Array
    """int64 [columns (+1) + 1]: where each column begins in `entries`."""
    codebook: Array
    """Zero, then ascending centroids; at most 2**codebook_bits values."""
    rows: int
    num_pes: int
    index_bits: int
    codebook_bits: int
    has_bias: bool
    """The bias is one more column, multiplied by a constant activation of 1 (section III-A)."""

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        num_pes: int = 64,
        index_bits: int = 4,
        codebook_bits: int = 4,
        codebook: Tensor | None = None,
    ) -> "EIEMatrix":
        """Compress a weight [rows, columns]; exact if it has at most 2**codebook_bits - 1 distinct nonzero values.

        Otherwise every nonzero weight becomes its nearest centroid of a k-means codebook, or of `codebook` (zero,
        then ascending values) where that is given. Raises ValueError for a weight that is not a finite float matrix,
        and for bits or elements out of range.
        """
        dense = _checked_dense(weight, bias)
        for name, bits in (("index_bits", index_bits), ("codebook_bits", codebook_bits)):
            if not 1 <= bits <= 16:
                raise ValueError(f"{name} must be in [1, 16], got {bits}")
        if num_pes < 1:
            raise ValueError(f"num_pes must be at least 1, got {num_pes}")
        table = fit_codebook(dense, codebook_bits) if codebook is None else _checked_codebook(codebook, codebook_bits)
        table = table.astype(dense.dtype)
        codes = assign_codes(dense, table)
        counts = kernels.count_entries(codes, num_pes, 2**index_bits)
        lengths = np.ascontiguousarray(counts.T)
        ends = np.cumsum(lengths.ravel())
        starts = np.concatenate([np.zeros(1, np.int64), ends])
        entries = np.empty(starts[-1], _entry_type(index_bits + codebook_bits))
        cursors = starts[:-1].reshape(lengths.shape).T.copy()  # the kernel moves them
        kernels.write_entries(codes, cursors, 2**index_bits, codebook_bits, entries)
        return cls(
            entries=entries,
            lengths=lengths.astype(np.uint16 if lengths.max(initial=0) < 2**16 else np.uint32),
            column_starts=np.ascontiguousarray(starts[::num_pes]),
            codebook=table,
            rows=dense.shape[0],
            num_pes=num_pes,
            index_bits=index_bits,
            codebook_bits=codebook_bits,
            has_bias=bias is not None,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the weight, without the bias column."""
        return self.rows, len(self.column_starts) - 1 - self.has_bias

    @property
    def num_entries(self) -> int:
        """Stored entries, padding and bias column included."""
        return len(self.entries)

    @property
    def num_nonzeros(self) -> int:
        """Entries that are no padding."""
        return int(np.count_nonzero(self.entries & (2**self.codebook_bits - 1)))

    def to_dense(self) -> Tensor:
        """The weight [rows, columns] with its shared values; the bias is left out (see `bias`)."""
        return self._decoded()[:, : self.shape[1]].contiguous()

    @property
    def bias(self) -> Tensor | None:
        """The bias [rows] with its shared values, or None."""
        return self._decoded()[:, -1].clone() if self.has_bias else None

    def _decoded(self) -> Tensor:
        dense = np.zeros((self.rows, len(self.column_starts) - 1), self.codebook.dtype)
        if not kernels.decode_entries(self.entries, self.lengths, self.codebook, self.codebook_bits, dense):
            raise ValueError(f"entries must lie within {self.rows} rows and {len(self.codebook)} codebook values")
        return torch.from_numpy(dense)

    def matvec(self, x: Tensor) -> Tensor:
        """W x + bias for one activation vector x [columns] -> [rows]; columns where x is zero are never touched."""
        if x.ndim != 1:
            raise ValueError(f"x must be a vector of {self.shape[1]} activations, got shape {tuple(x.shape)}")
        values = self._with_bias_input(x)
        out = np.zeros(self.rows, values.dtype)
        self._run(kernels.matvec, np.flatnonzero(values), values, out)
        return torch.from_numpy(out)

    def matmul(self, x: Tensor) -> Tensor:
        """Apply the matrix to a batch x [..., columns] -> [..., rows]; skips columns that are zero in all of x."""
        values = np.ascontiguousarray(self._with_bias_input(x).reshape(-1, len(self.column_starts) - 1).T)
        out = np.zeros((self.rows, values.shape[1]), values.dtype)
        self._run(kernels.matmul, np.flatnonzero(values.any(axis=1)), values, out)
        return torch.from_numpy(np.ascontiguousarray(out.T)).reshape(*x.shape[:-1], self.rows)

    def _with_bias_input(self, x: Tensor) -> Array:
        if x.shape[-1] != self.shape[1] or x.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"x must be float32 or float64 [..., {self.shape[1]}], got {x.dtype} of shape {tuple(x.shape)}"
            )
        if self.has_bias:
            x = torch.nn.functional.pad(x, (0, 1), value=1.0)
        return x.detach().cpu().contiguous().numpy()

    def _run(self, kernel: Any, active: Array, x: Array, out: Array) -> None:
        codebook = self.codebook.astype(x.dtype)
        arguments = (self.entries, self.lengths, self.column_starts, codebook, self.codebook_bits, active, x, out)
        run_in_threads(partial(kernel, *arguments), split_evenly(self.num_pes, torch.get_num_threads()))

    def entries_per_pe(self, activation: Tensor | None = None, *, padding: bool = True) -> Array:
        """Entries that each PE visits in each column: int64 [num_pes, active columns], the bias column last.

        This is what `hwmodel.eie.simulate` takes. `activation` [columns] keeps the columns where it is not zero (all
        without it); the bias column, which exists where `from_dense` got a bias, is always active.
        `padding=False` counts the nonzero weights alone.
        """
        if padding:
            lengths = self.lengths.astype(np.int64)
        else:
            lengths = kernels.count_real_entries(self.entries, self.lengths, self.codebook_bits)
        if activation is not None:
            if activation.shape != (self.shape[1],):
                raise ValueError(f"activation must have shape ({self.shape[1]},), got {tuple(activation.shape)}")
            active = activation.detach().cpu().numpy() != 0
            lengths = lengths[np.append(active, True) if self.has_bias else active]
        return np.ascontiguousarray(lengths.T)

    def pointers(self) -> Array:
        """Column pointers of every PE into its own entries, int64 [num_pes, columns (+1) + 1]."""
        ends = np.cumsum(self.lengths.T, axis=1, dtype=np.int64)
        return np.concatenate([np.zeros((self.num_pes, 1), np.int64), ends], axis=1)

    def size_bits(self, *, pointer_bits: int = 32, value_bits: int = 16) -> int:
        """Bits of the hardware's storage: entries, column pointers, and a codebook of `value_bits` fixed point.

        The paper's pointers have 16 bits; its authors' simulator uses 32. Raises ValueError where a PE holds more
        entries than a pointer can reach.
        """
        pointers: Array = self.pointers()
        largest = int(pointers[:, -1].max(initial=0))
        if largest >= 2**pointer_bits:
            raise ValueError(
                f"pointer_bits must reach {largest} entries of one element, got {pointer_bits}; "
                f"use {largest.bit_length()} bits or more processing elements"
            )
        entry_bits = self.num_entries * (self.index_bits + self.codebook_bits)
        return entry_bits + int(pointers.size) * pointer_bits + (1 << self.codebook_bits) * value_bits

    def save(self, path: str | Path) -> None:
        """Write the matrix to a safetensors file (needs `pip install safetensors`)."""
        tensors = {name: getattr(self, name) for name in ("entries", "lengths", "column_starts", "codebook")}
        fields = {name: str(int(getattr(self, name))) for name in _SCALARS}
        _safetensors().numpy.save_file(tensors, str(path), metadata={"format": FILE_FORMAT, **fields})

    @classmethod
    def load(cls, path: str | Path) -> "EIEMatrix":
        """Read a matrix written by `save`; raises ValueError for another file or one that contradicts itself."""
        with _safetensors().safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FILE_FORMAT:
                raise ValueError(f"{path} must be a {FILE_FORMAT} file, got format {metadata.get('format')!r}")
            arrays = {name: file.get_tensor(name) for name in ("entries", "lengths", "column_starts", "codebook")}
        scalars: dict[str, Any] = {name: int(metadata[name]) for name in _SCALARS}
        scalars["has_bias"] = bool(scalars["has_bias"])
        matrix = cls(**arrays, **scalars)
        ends = np.concatenate([[0], np.cumsum(matrix.lengths.sum(axis=1, dtype=np.int64))])
        if not np.array_equal(ends, matrix.column_starts) or ends[-1] != len(matrix.entries):
            raise ValueError(f"{path} must hold lengths that add up to its {len(matrix.entries)} entries")
        matrix._decoded()  # raises for entries outside the matrix, which the products would not notice
        return matrix


def expected_padding(density: float, *, index_bits: int = 4, rows_per_pe: int | None = None) -> float:
    """Padding entries for each nonzero of a weight whose nonzeros are independent, each there with share `density`.

    In an endless column it is q / (1 - q) with q = (1 - density) ** span and span = 2**index_bits. A column that holds
    `rows_per_pe` rows of a PE has an edge: before position i at most i // span paddings fit, so a nonzero there has
    q + q**2 + ... + q**(i // span) of them on average, and the mean over i is exact. Raises ValueError for a density
    outside of (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}")
    span = 2**index_bits
    q = float((1 - density) ** span)
    if rows_per_pe is None:
        return q / (1 - q)
    most = np.arange(rows_per_pe) // span
    return float(np.mean(q * (1 - q**most) / (1 - q)))


_SCALARS = ("rows", "num_pes", "index_bits", "codebook_bits", "has_bias")


def _checked_dense(weight: Tensor, bias: Tensor | None) -> Array:
    """The finite float matrix [rows, columns (+1)] that is compressed."""
    if weight.ndim != 2 or weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"weight must be a float32 or float64 matrix, got {weight.dtype} {tuple(weight.shape)}")
    if bias is not None:
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
        weight = torch.cat([weight, bias[:, None].to(weight)], dim=1)
    dense: Array = weight.detach().cpu().contiguous().numpy()
    if not np.isfinite(dense).all():
        bad = int(np.count_nonzero(~np.isfinite(dense)))
        raise ValueError(f"weight must be finite, got {bad} NaN or infinite values; mask or repair them first")
    return dense


def _checked_codebook(codebook: Tensor, bits: int) -> Array:
    values: Array = codebook.detach().cpu().numpy()
    if values.ndim != 1 or not 1 <= len(values) <= 2**bits:
        raise ValueError(f"codebook must be a vector of 1 to {2**bits} values, got shape {tuple(codebook.shape)}")
    if values[0] != 0 or (np.diff(values[1:]) < 0).any():
        raise ValueError(f"codebook must be zero followed by ascending values, got {values[:4]}...")
    return values


def _entry_type(bits: int) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("EIEMatrix files need safetensors: pip install 'dgcomp[sparse]'") from error
    return safetensors
