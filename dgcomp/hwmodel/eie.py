"""EIE: cycles, memory reads, energy and area of a compressed matrix times a sparse vector.

Han et al., "EIE: Efficient Inference Engine on Compressed Deep Neural Network", ISCA 2016 (arXiv 1602.01528). The
cycle model is the authors' published simulator (RalphMao/EIE-simulator) written as a recurrence: non-zero activations
are broadcast one per cycle into a queue in front of every processing element (PE); a PE takes one cycle per entry of
its part of the column, padding included, and at least one; the broadcast waits while any queue is full. What averages
hide is all in there: the slowest PE sets the time, padding entries cost cycles, and queues smooth only so much.

Energy is time times constant power, as in the paper. `simulate` is the recurrence alone, `EIE` the whole chip.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dgcomp.hwmodel import eie_kernels as kernels
from dgcomp.hwmodel.cost import Cost
from dgcomp.hwmodel.operation import Operation, mean_and_error
from dgcomp.sparse.eie import EIEMatrix
from dgcomp.sparse.eie_kernels import count_entries

__all__ = ["EIE", "NM28", "NM45", "Process", "entries", "load_balance", "random_layer", "simulate"]

Array = npt.NDArray[Any]

# Section IV: register files of 64 activations a PE; SRAM of one PE is 128 KB of entries and 32 KB of pointers.
ACTIVATIONS_PER_PE = 64
SPMAT_BITS_PER_PE = 128 * 1024 * 8
POINTER_BITS_PER_PE = 32 * 1024 * 8


@dataclass(frozen=True, slots=True)
class Process:
    """Clock, and power and area of one PE by module, in one silicon process."""

    node_nm: int
    clock_ghz: float
    milliwatts: dict[str, float]
    """Power of one PE by module, at `clock_ghz`."""
    square_um: dict[str, float]
    """Area of one PE by module, and the filler between them."""
    lnzd_milliwatts: float
    """Power of one node of the tree that finds the leading non-zero activation."""
    lnzd_square_um: float
    source: str


NM45 = Process(
    node_nm=45,
    clock_ghz=0.8,
    milliwatts={"act_queue": 0.112, "ptr_read": 1.807, "spmat_read": 4.955, "arithm_unit": 1.162, "act_rw": 1.122},
    square_um={
        "act_queue": 758,
        "ptr_read": 121_849,
        "spmat_read": 469_412,
        "arithm_unit": 3_110,
        "act_rw": 18_934,
        "filler": 23_961,
    },
    lnzd_milliwatts=0.023,
    lnzd_square_um=189,
    source="EIE Table II (TSMC 45 nm GP, 800 MHz) and section IV",
)


def _scaled(process: Process, node_nm: int, clock_ghz: float, power: float, area: float, source: str) -> Process:
    return Process(
        node_nm,
        clock_ghz,
        {module: value * power for module, value in process.milliwatts.items()},
        {module: value * area for module, value in process.square_um.items()},
        process.lnzd_milliwatts * power,
        process.lnzd_square_um * area,
        source,
    )


# Only the totals of 256 PEs are published: 2.36 W and 63.8 mm2. The split by module is that of 45 nm.
NM28 = _scaled(
    NM45, 28, 1.2, 2.36 / (4 * 0.5865), 63.8 / (4 * 40.84), "EIE Table V (256 PE, 28 nm, 1200 MHz), split as Table II"
)


def simulate(entries: npt.ArrayLike, fifo_depth: int = 8) -> int:
    """Cycles that EIE takes for one matrix-vector product.

    Parameters
    ----------
    entries : int array, shape (num_pes, active columns)
        Entries, padding included, that each PE holds in each column with a non-zero activation, in order; the bias
        column, if there is one, last. `sparse.EIEMatrix.entries_per_pe(activation)` gives it.
    fifo_depth : int
        Size of the ring buffer in front of a PE, at least 2. A ring of D holds D - 1 activations.

    Raises ValueError for an array that is not two-dimensional or negative, or a `fifo_depth` below 2.
    """
    lengths = _checked_entries(entries)
    finish = np.zeros(lengths.shape[1], np.int64)
    return int(kernels.simulate(lengths, np.arange(len(lengths)), _capacity(fifo_depth), finish)[0])


def entries(weight: Tensor, activation: Tensor, *, num_pes: int = 64, index_bits: int = 4) -> Array:
    """Entries, padding included, of each PE in each active column: what `simulate` takes, from a dense pattern.

    weight: [rows, columns]; activation: [columns]. Returns int64 [num_pes, active columns].
    """
    mask = np.ascontiguousarray(weight.detach().cpu().numpy() != 0)
    counts: Array = count_entries(mask[:, activation.detach().cpu().numpy() != 0], num_pes, 2**index_bits)
    return counts


def load_balance(entries: npt.ArrayLike, fifo_depth: int = 8) -> float:
    """Share of all PEs' cycles that is spent on entries: entries / (num_pes * cycles), Figures 8 and 13."""
    lengths = _checked_entries(entries)
    return float(lengths.sum() / (lengths.shape[1] * simulate(entries, fifo_depth)))


def _checked_entries(entries: npt.ArrayLike) -> Array:
    array: Array = np.asarray(entries)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer) or array.shape[0] < 1:
        raise ValueError(
            f"entries must be integers [num_pes, active columns], got {array.dtype} of shape {array.shape}; "
            "EIEMatrix.entries_per_pe(activation) gives them"
        )
    if array.size and array.min() < 0:
        raise ValueError(f"entries must not be negative, got {array.min()}")
    return np.ascontiguousarray(array.T)


def _capacity(fifo_depth: int) -> int:
    if fifo_depth < 2:
        raise ValueError(f"fifo_depth must be at least 2 (a ring of D holds D - 1 activations), got {fifo_depth}")
    return fifo_depth - 1


@dataclass(frozen=True, slots=True)
class EIE:
    """The EIE chip. Defaults are the paper's: 64 PEs, queue depth 8, 4-bit indices and weights, 45 nm at 800 MHz.

    Raises ValueError for a field out of range.
    """

    num_pes: int = 64
    fifo_depth: int = 8
    """Ring size of the activation queue; see `simulate`."""
    index_bits: int = 4
    codebook_bits: int = 4
    sram_bits: int = 64
    """Width of the weight memory: one read delivers sram_bits / (index_bits + codebook_bits) entries."""
    pointer_bits: int = 16
    """Width of a column pointer. The paper says 16, its authors' simulator uses 32; see `limits`."""
    batch_swap_cycles: int = 0
    """Cycles to store and reload the accumulators between batches of 64 * num_pes inputs. The paper moves them
    between registers and SRAM without giving a time, its simulator charges none."""
    process: Process = NM45

    def __post_init__(self) -> None:
        if self.num_pes < 1:
            raise ValueError(f"num_pes must be at least 1, got {self.num_pes}")
        _capacity(self.fifo_depth)
        for name in ("index_bits", "codebook_bits"):
            if not 1 <= getattr(self, name) <= 16:
                raise ValueError(f"{name} must be in [1, 16], got {getattr(self, name)}")
        if self.sram_bits < self.entry_bits:
            raise ValueError(f"sram_bits must hold an entry of {self.entry_bits} bits, got {self.sram_bits}")

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"eie-{self.num_pes}pe"

    @property
    def entry_bits(self) -> int:
        """Bits of one stored entry: zeros skipped, and codebook index."""
        return self.index_bits + self.codebook_bits

    @property
    def num_lnzd_nodes(self) -> int:
        """Nodes of the 4-ary tree that finds the next non-zero activation: 16 + 4 + 1 for 64 PEs."""
        nodes, level = 0, self.num_pes
        while level > 1:
            level = math.ceil(level / 4)
            nodes += level
        return nodes

    @property
    def watts(self) -> float:
        """Power of the whole chip, constant while it works."""
        pe = sum(self.process.milliwatts.values())
        return (self.num_pes * pe + self.num_lnzd_nodes * self.process.lnzd_milliwatts) * 1e-3

    @property
    def area_mm2(self) -> float:
        """Area of the whole chip."""
        pe = sum(self.process.square_um.values())
        return (self.num_pes * pe + self.num_lnzd_nodes * self.process.lnzd_square_um) * 1e-6

    def run(self, matrix: EIEMatrix | Tensor, activation: Tensor) -> Cost:
        """Cost of `matrix` times `activation` [columns], or of a batch [..., columns] one vector after the other.

        A dense tensor [rows, columns] is priced by the pattern of its nonzeros, without building the codebook.
        Raises ValueError for a matrix made for another number of PEs or entry width, or a wrong activation shape.
        """
        costs, notes = self._costs(matrix, activation)
        return sum(costs, Cost(area_mm2=self.area_mm2, notes=notes))

    def _costs(self, matrix: EIEMatrix | Tensor, activation: Tensor) -> tuple[list[Cost], tuple[str, ...]]:
        """Cost of every vector, and what of the layer does not fit the chip."""
        lengths, real, has_bias = self._lengths(matrix)
        columns = lengths.shape[0] - has_bias
        if activation.shape[-1:] != (columns,):
            raise ValueError(
                f"activation must have {columns} elements in its last dimension, got shape {tuple(activation.shape)}"
            )
        vectors = activation.detach().reshape(-1, columns).cpu().numpy() != 0
        rows = matrix.rows if isinstance(matrix, EIEMatrix) else matrix.shape[0]
        starts = np.concatenate([np.zeros((1, self.num_pes), np.int64), np.cumsum(lengths, axis=0, dtype=np.int64)])
        active = (np.flatnonzero(np.append(vector, True) if has_bias else vector) for vector in vectors)
        return [self._vector_cost(lengths, real, starts, columns) for columns in active], self.limits(lengths, rows)

    def _lengths(self, matrix: EIEMatrix | Tensor) -> tuple[Array, Array, bool]:
        """Entries and real (not padding) entries of each column and PE, and whether the last column is the bias."""
        if isinstance(matrix, EIEMatrix):
            made_for = (matrix.num_pes, matrix.index_bits, matrix.codebook_bits)
            if made_for != (self.num_pes, self.index_bits, self.codebook_bits):
                raise ValueError(
                    f"matrix must be compressed for {self.num_pes} PEs with {self.index_bits} + {self.codebook_bits} "
                    f"bits, got {made_for[0]} with {made_for[1]} + {made_for[2]}; compress it again with from_dense"
                )
            real = matrix.entries_per_pe(padding=False)
            return matrix.lengths, np.ascontiguousarray(real.T), matrix.has_bias
        if matrix.ndim != 2:
            raise ValueError(f"matrix must be two-dimensional, got shape {tuple(matrix.shape)}")
        mask = np.ascontiguousarray(matrix.detach().cpu().numpy() != 0)
        lengths = count_entries(mask, self.num_pes, 2**self.index_bits)
        real = lengths if mask.shape[0] <= self.num_pes * 2**self.index_bits else _rows_by_pe(mask, self.num_pes)
        return np.ascontiguousarray(lengths.T), np.ascontiguousarray(real.T), False

    def _vector_cost(self, lengths: Array, real: Array, starts: Array, active: Array) -> Cost:
        finish = np.zeros(self.num_pes, np.int64)
        cycles, stalled = kernels.simulate(lengths, active, _capacity(self.fifo_depth), finish)
        batches = max(1, math.ceil((lengths.shape[0]) / (ACTIVATIONS_PER_PE * self.num_pes)))
        cycles += (batches - 1) * self.batch_swap_cycles
        reads = kernels.count_spmat_reads(starts, active, self.sram_bits // self.entry_bits)
        visited, useful = int(lengths[active].sum()), int(real[active].sum())
        seconds = cycles / (self.process.clock_ghz * 1e9)
        modules = {f"{name}_joules": mw * 1e-3 * self.num_pes * seconds for name, mw in self.process.milliwatts.items()}
        lnzd = self.process.lnzd_milliwatts * 1e-3 * self.num_lnzd_nodes * seconds
        return Cost(
            cycles=cycles,
            seconds=seconds,
            joules=self.watts * seconds,
            area_mm2=self.area_mm2,
            breakdown={
                **modules,
                "lnzd_joules": lnzd,
                "broadcast_stall_cycles": stalled,
                "theoretical_cycles": visited / self.num_pes,
                "entries_count": visited,
                "multiplies_count": useful,
                "spmat_reads_count": int(reads),
                "ptr_reads_count": len(active) * self.num_pes,
                "spmat_read_bytes": int(reads) * self.sram_bits / 8,
            },
        )

    def limits(self, lengths: Array, rows: int) -> tuple[str, ...]:
        """What of this layer does not fit one chip, each as a sentence; empty if all fits.

        The paper's pointers have 16 bits and reach 65,536 entries of a PE although its SRAM holds 131,072, and 32 KB
        of 16-bit pointers are 16,384 columns although VGG-6 has 25,088: both are said here, not assumed away.
        """
        columns = lengths.shape[0]
        largest = int(lengths.sum(axis=0, dtype=np.int64).max(initial=0))
        capacity = SPMAT_BITS_PER_PE // self.entry_bits
        pointers = POINTER_BITS_PER_PE // self.pointer_bits
        reach = ACTIVATIONS_PER_PE * self.num_pes
        found = (
            (largest > capacity, f"one PE holds {largest} entries, its SRAM {capacity}"),
            (
                largest > 2**self.pointer_bits,
                f"{self.pointer_bits}-bit pointers reach {2**self.pointer_bits} entries, one PE holds {largest}",
            ),
            (columns + 1 > pointers, f"{columns + 1} pointers a PE, its SRAM holds {pointers}"),
            (columns > reach, f"{columns} inputs in {math.ceil(columns / reach)} batches of {reach}"),
            (rows > reach, f"{rows} outputs in {math.ceil(rows / reach)} batches of {reach}"),
        )
        return tuple(sentence for exceeded, sentence in found if exceeded)

    def price(self, operation: Operation) -> Cost | None:
        """Cost of one operation of a training step, or None where EIE cannot run it.

        EIE multiplies a stored weight by a stream of vectors: the forward pass and the gradient of the input (with
        the transposed weight stored as a second matrix). The gradient of the weight is an outer product and has no
        stored sparse operand: not priced. A convolution is one product per output position over its patch, the
        extension that section VII-C of the paper names.
        """
        if not operation.a_is_weight or operation.a is None or operation.x is None:
            return None
        costs, notes = self._costs(operation.a, operation.x)
        cycles, error = mean_and_error([cost.cycles for cost in costs])
        total = sum(costs, Cost()) * (operation.columns * operation.copies / len(costs))
        note = f"cycles from {len(costs)} of {operation.columns} vectors, standard error {error / max(cycles, 1):.1%}"
        return replace(total, area_mm2=self.area_mm2, notes=(*notes, note))


def _rows_by_pe(mask: Array, num_pes: int) -> Array:
    """Nonzeros of each PE and column: int64 [num_pes, columns]."""
    rows = math.ceil(mask.shape[0] / num_pes) * num_pes
    padded = np.zeros((rows, mask.shape[1]), bool)
    padded[: mask.shape[0]] = mask
    counts: Array = padded.reshape(-1, num_pes, mask.shape[1]).sum(axis=0, dtype=np.int64)
    return counts


def random_layer(
    rows: int, columns: int, density: float, activation_density: float, seed: int
) -> tuple[Tensor, Tensor]:
    """An i.i.d. random pattern [rows, columns] and an activation [columns], uint8 ones and zeros, for what-ifs."""
    generator = np.random.default_rng(seed)
    weight = np.empty((rows, columns), np.uint8)
    for row in weight:  # row by row: a whole VGG-6 in float would take a gigabyte
        row[:] = generator.random(columns, dtype=np.float32) < density
    activation = np.zeros(columns, np.uint8)  # exactly the share that is published, as one image has it
    activation[generator.permutation(columns)[: round(columns * activation_density)]] = 1
    return torch.from_numpy(weight), torch.from_numpy(activation)
