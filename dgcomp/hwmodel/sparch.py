"""SpArch and OuterSPACE: memory traffic, cycles and energy of sparse matrix times sparse matrix.

A RECONSTRUCTION of Zhang et al., "SpArch: Efficient Architecture for Sparse Matrix Multiplication", HPCA 2020 (arXiv
2002.08947), from its abstract, its published factors and constants visible in public re-implementations; and of the
analytical form of OuterSPACE (Pal et al., HPCA 2018). Its four ideas are switches here:

1. pipelined multiply and merge: products enter a 64-way merge tree and never touch memory as such;
2. condensing (`condense`): the i-th nonzeros of all rows of A form one left column, so there are far fewer partial
   matrices than columns of A;
3. merge `order`: a Huffman tree merges the smallest partial results first;
4. row `prefetch`: a look-ahead tells which rows of B are used next, and the buffer keeps these.

Traffic = A once + rows of B that miss + twice the intermediate results + C. What the readable sources do not give, the
order in which the design points without Huffman merge, is an option.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dgcomp.hwmodel import sparch_kernels as kernels
from dgcomp.hwmodel.cost import Cost
from dgcomp.hwmodel.energy import EIE_TABLE_1, HBM
from dgcomp.hwmodel.merge_order import ORDERS, MergeOrder, MergePlan, plan_merges
from dgcomp.hwmodel.operation import Operation
from dgcomp.hwmodel.pattern import Pattern

__all__ = ["OuterSPACE", "SpArch", "SpArchWork", "design_points"]

Array = npt.NDArray[Any]

ELEMENT_BYTES = 12  # of A, B and C: 4-byte index and 8-byte value
PARTIAL_BYTES = 16  # of an intermediate result: row, column and value

# Event energies; arithmetic is double precision in SpArch, but the readable energy tables stop at 32 bits, so a value
# counts as one fp32 operation and two 32-bit words.
ON_CHIP = EIE_TABLE_1


@dataclass(frozen=True, slots=True, eq=False)
class SpArchWork:
    """What one product makes the machine do, by merge: every array has one element for each node of the plan."""

    a_elements: Array
    b_elements: Array
    """Elements of B fetched from memory."""
    multiplies: Array
    merged_before: Array
    """Elements of earlier results read back from memory."""
    results: Array
    """Elements of this merge's result; the last is the number of entries of C."""
    prefetch_hit_rate: float

    def scaled(self, factor: float) -> "SpArchWork":
        """The work of `factor` times as many columns of B: A is still read once."""
        return replace(
            self,
            b_elements=self.b_elements * factor,
            multiplies=self.multiplies * factor,
            merged_before=self.merged_before * factor,
            results=self.results * factor,
        )

    def deeper(self, factor: float) -> "SpArchWork":
        """The work of `factor` times as long an inner dimension, with as many merges and results."""
        return replace(
            self,
            a_elements=self.a_elements * factor,
            b_elements=self.b_elements * factor,
            multiplies=self.multiplies * factor,
        )


@dataclass(frozen=True, slots=True)
class SpArch:
    """SpArch: 64-way merge, 16 multipliers, 1 GHz, 128 GB/s, prefetch buffer of 1024 lines of 48 elements.

    Raises ValueError for a field out of range.
    """

    condense: bool = True
    order: MergeOrder = "huffman"
    prefetch: bool = True
    ways: int = 64
    multipliers: int = 16
    merge_width: int = 16
    """Elements that the merge tree takes in a cycle."""
    clock_ghz: float = 1.0
    bytes_per_cycle: float = 128.0
    """16 channels of 8 bytes a cycle."""
    prefetch_lines: int = 1024
    line_elements: int = 48
    look_ahead: int = 8192
    """Elements of A that the look-ahead queue holds."""

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")
        for name in ("multipliers", "merge_width", "prefetch_lines", "line_elements", "look_ahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.ways < 2:
            raise ValueError(f"ways must be at least 2, got {self.ways}")

    @property
    def name(self) -> str:
        """Short name for tables."""
        return "sparch"

    def run(self, a: Any, b: Any) -> Cost:
        """Cost of a @ b: tensors (dense, CSR, COO), scipy matrices or `Pattern`s.

        Raises ValueError where the inner dimensions differ.
        """
        return self.cost(self.work(a, b))

    def work(self, a: Any, b: Any) -> SpArchWork:
        """What a @ b makes the machine do, merge by merge; exact for the given patterns."""
        a, b = _operands(a, b)
        leaves = _condensed(a) if self.condense else _uncondensed(a)
        b_lengths = b.row_lengths()
        products = b_lengths[a.indices]
        num_leaves = int(leaves.max(initial=-1)) + 1
        plan = plan_merges(np.bincount(leaves, products, num_leaves).astype(np.int64), ways=self.ways, order=self.order)
        num_nodes = len(plan.node_parent)
        node_of_entry = plan.leaf_parent[leaves] if num_leaves else np.zeros(0, np.int64)
        results = kernels.merged_sizes(
            a.starts, a.indices, leaves, b.starts, b.indices, b.columns, plan.leaf_parent, plan.node_parent
        )
        inner = plan.node_parent[:-1]
        b_elements, hit_rate = self._b_traffic(a, b_lengths, node_of_entry, plan)
        return SpArchWork(
            a_elements=np.bincount(node_of_entry, minlength=num_nodes),
            b_elements=b_elements,
            multiplies=np.bincount(node_of_entry, products, num_nodes),
            merged_before=np.bincount(inner, results[:-1], num_nodes),
            results=results,
            prefetch_hit_rate=hit_rate,
        )

    def _b_traffic(self, a: Pattern, b_lengths: Array, node: Array, plan: MergePlan) -> tuple[Array, float]:
        """Elements of B fetched by each node, and the share of lines found in the buffer.

        The left columns of one merge are fetched together, row by row. Without condensing, a left column is a column
        of A and meets one row of B, which is read once.
        """
        num_nodes = len(plan.node_parent)
        if not self.condense:
            used, first = np.unique(a.indices, return_index=True)
            return np.bincount(node[first], b_lengths[used], num_nodes), 0.0
        order = np.argsort(node, kind="stable")
        rows = a.indices[order]
        if not self.prefetch:
            return np.bincount(node[order], b_lengths[rows], num_nodes), 0.0
        following = kernels.next_uses(rows, len(b_lengths))
        fetched, hits, asked = kernels.prefetch_misses(
            rows, following, b_lengths, self.prefetch_lines, self.line_elements, self.look_ahead
        )
        return np.bincount(node[order], fetched, num_nodes), hits / max(asked, 1)

    def cost(self, work: SpArchWork) -> Cost:
        """Time and energy of `work`: each merge takes as long as its slowest of multipliers, merger and memory."""
        entering = work.multiplies + work.merged_before
        last = np.zeros(len(work.results))
        last[-1:] = 1
        traffic = {
            "dram_a": work.a_elements * ELEMENT_BYTES,
            "dram_b": work.b_elements * ELEMENT_BYTES,
            "dram_intermediate_read": work.merged_before * PARTIAL_BYTES,
            "dram_intermediate_write": work.results * PARTIAL_BYTES * (1 - last),
            "dram_c": work.results * ELEMENT_BYTES * last,
        }
        limits = {
            "multiplier": work.multiplies / self.multipliers,
            "merger": entering / self.merge_width,
            "memory": np.sum(list(traffic.values()), axis=0) / self.bytes_per_cycle,
        }
        slowest = np.maximum(np.maximum(limits["multiplier"], limits["merger"]), limits["memory"])
        cycles = float(np.ceil(slowest).sum())
        total_bytes = float(sum(float(part.sum()) for part in traffic.values()))
        joules = {
            "dram_joules": HBM.joules("byte", total_bytes),
            "multiplier_joules": ON_CHIP.joules("fp32_mul", float(work.multiplies.sum())),
            **self._on_chip_joules(float(work.multiplies.sum()), float(entering.sum()), float(work.results.sum())),
        }
        return Cost(
            cycles=cycles,
            seconds=cycles / (self.clock_ghz * 1e9),
            joules=sum(joules.values()),
            breakdown={
                **joules,
                **{f"{name}_bytes": float(part.sum()) for name, part in traffic.items()},
                **{f"{name}_cycles": float(part.sum()) for name, part in limits.items()},
                "multiplies_count": float(work.multiplies.sum()),
                "merges_count": len(work.results),
            },
            notes=("SpArch is a reconstruction; double precision is priced as fp32, the widest with a source",),
        )

    def _on_chip_joules(self, multiplies: float, entering: float, results: float) -> dict[str, float]:
        """Additions where equal positions meet, comparisons and FIFO words of the tree's layers, buffer reads of B."""
        layers = math.ceil(math.log2(self.ways))
        words = PARTIAL_BYTES / 4
        return {
            "adder_joules": ON_CHIP.joules("fp32_add", entering - results),
            "merger_joules": ON_CHIP.joules("int32_add", entering * layers * 2)
            + ON_CHIP.joules("sram_32b", entering * words),
            "prefetch_buffer_joules": ON_CHIP.joules("sram_32b", multiplies * ELEMENT_BYTES / 4),
        }

    def price(self, operation: Operation) -> Cost | None:
        """Cost of one operation as a sparse product, from the sampled columns of x; None without captured values.

        A is read once, everything else grows with the columns. Where the inner dimension is a sample too (the gradient
        of a weight), the factors grow with it but no further merges are assumed: a lower bound.
        """
        if operation.a is None or operation.x is None:
            return None
        sampled, inner = operation.x.shape
        work = self.work(operation.a, operation.x.T)
        work = work.deeper(operation.inner / inner).scaled(operation.columns / sampled)
        cost = self.cost(work) * operation.copies
        note = f"from {sampled} of {operation.columns} columns"
        if inner < operation.inner:
            note += f" and {inner} of {operation.inner} inner positions (merges: a lower bound)"
        return replace(cost, notes=(*cost.notes, note))


def design_points(order: MergeOrder = "balanced") -> dict[str, SpArch]:
    """The paper's ablation: each design adds one idea. `order` is that of the designs before Huffman's."""
    return {
        "pipelined": SpArch(condense=False, order=order, prefetch=False),
        "+condense": SpArch(condense=True, order=order, prefetch=False),
        "+huffman": SpArch(condense=True, order="huffman", prefetch=False),
        "+prefetch": SpArch(),
    }


def _operands(a: Any, b: Any) -> tuple[Pattern, Pattern]:
    a, b = Pattern.of(a), Pattern.of(b)
    if a.columns != b.rows:
        raise ValueError(
            f"a must have as many columns as b has rows, got {a.rows} x {a.columns} and {b.rows} x {b.columns}"
        )
    return a, b


def _condensed(a: Pattern) -> Array:
    """Left column of each entry: its place within its row."""
    place: Array = np.arange(a.num_entries) - np.repeat(a.starts[:-1], a.row_lengths())
    return place


def _uncondensed(a: Pattern) -> Array:
    """Left column of each entry: its column, counted among the columns that have entries."""
    rank: Array = np.unique(a.indices, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return rank


@dataclass(frozen=True, slots=True)
class OuterSPACE:
    """OuterSPACE: outer products written to memory, then merged row by row. 256 elements at 1.5 GHz, 128 GB/s.

    Work and traffic of each task follow the analytical form of its public simulator: a multiply task for each column
    of A, a merge task for each row of the result, dealt out in turn; an element takes the longer of its work and its
    share of the memory; the two phases follow each other.
    """

    num_elements: int = 256
    clock_ghz: float = 1.5
    gigabytes_per_s: float = 128.0
    block_bytes: int = 64

    @property
    def name(self) -> str:
        """Short name for tables."""
        return "outerspace"

    def run(self, a: Any, b: Any) -> Cost:
        """Cost of a @ b; see `SpArch.run` for what it accepts."""
        a, b = _operands(a, b)
        column_lengths = np.bincount(a.indices, minlength=a.columns)
        b_lengths = b.row_lengths()
        products = column_lengths * b_lengths
        plan = plan_merges(np.zeros(1, np.int64), ways=2, order="balanced")
        one_leaf = np.zeros(a.num_entries, np.int64)
        num_results = kernels.merged_sizes(
            a.starts, a.indices, one_leaf, b.starts, b.indices, b.columns, plan.leaf_parent, plan.node_parent
        )[0]
        total = int(products.sum())
        traffic = {
            "dram_a_bytes": a.num_entries * ELEMENT_BYTES,
            "dram_b_bytes": b.num_entries * ELEMENT_BYTES,
            "dram_intermediate_write_bytes": total * ELEMENT_BYTES,
            "dram_intermediate_read_bytes": total * ELEMENT_BYTES,
            "dram_c_bytes": int(num_results) * ELEMENT_BYTES,
        }
        cycles = self._multiply_cycles(column_lengths, b_lengths) + self._merge_cycles(a, b_lengths, int(num_results))
        joules = {
            "dram_joules": HBM.joules("byte", sum(traffic.values())),
            "multiplier_joules": ON_CHIP.joules("fp32_mul", total),
            "adder_joules": ON_CHIP.joules("fp32_add", total - int(num_results)),
        }
        return Cost(
            cycles=cycles,
            seconds=cycles / (self.clock_ghz * 1e9),
            joules=sum(joules.values()),
            breakdown={**joules, **traffic, "multiplies_count": total},
            notes=("OuterSPACE is a reconstruction of its analytical form",),
        )

    def _multiply_cycles(self, column_lengths: Array, b_lengths: Array) -> float:
        tasks = np.flatnonzero(column_lengths * b_lengths)
        work = column_lengths[tasks] * b_lengths[tasks]
        elements = (work, column_lengths[tasks], b_lengths[tasks])
        return self._phase_cycles(work, sum(self._blocks(part) for part in elements))

    def _merge_cycles(self, a: Pattern, b_lengths: Array, num_results: int) -> float:
        """Task of a row: its inputs' elements, times their number (an insertion into a list of that many heads)."""
        sizes = np.add.reduceat(np.append(b_lengths[a.indices], 0), a.starts[:-1]) * (a.row_lengths() > 0)
        tasks = np.flatnonzero(sizes)
        # Which row a result falls in changes only the spread of its write, so results are spread as the inputs are.
        written = sizes[tasks] * (num_results / max(int(sizes.sum()), 1))
        traffic = self._blocks(sizes[tasks]) + self._blocks(written)
        return self._phase_cycles(sizes[tasks] * a.row_lengths()[tasks], traffic)

    def _blocks(self, elements: Array) -> Array:
        """Bytes of whole blocks."""
        return np.ceil(elements * ELEMENT_BYTES / self.block_bytes) * self.block_bytes

    def _phase_cycles(self, work: Array, traffic: Any) -> float:
        element = np.arange(len(work)) % self.num_elements
        bytes_per_cycle = self.gigabytes_per_s / self.clock_ghz / self.num_elements
        busy = np.bincount(element, work, self.num_elements)
        moving = np.bincount(element, np.broadcast_to(traffic, work.shape), self.num_elements) / bytes_per_cycle
        return float(np.maximum(busy, moving).max())
