"""Every constant of the SatIn machine, with its source, and the chip's area and power.

Sources: [paper] = SatIn (arXiv 2303.02588), the abstract and the two pages on energy that were at hand; [deduced] =
follows from numbers of the paper; [reconstruction] = ours, as that part was not at hand. The messages and
all latencies but the clock are reconstructions.
"""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Machine", "Timing"]


class Timing(NamedTuple):
    """What the replay kernels need of a `Machine`: integers, and per bank its distance and the next router inwards."""

    hop: int
    match: int
    sort: int
    read: int
    decide: int
    analyze: int
    literals_per_flit: int
    spill_visit: int
    farthest: int  # hops from the centre to the farthest bank
    capacity: int
    center: int  # bank at the central unit
    stride: int  # slot s lives in bank s * stride % banks
    depth: NDArray[np.int32]  # per bank
    parent: NDArray[np.int32]  # per bank; -1 at the centre


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A SatIn chip: banks of clause nodes on a mesh, one central unit; counts, cycles, watts, millimetres."""

    cycle_s: float = 1e-9
    """Clock period. [paper] 1 ns in the 32 nm educational kit."""
    clause_area_um2: float = 4867.0
    """Area of one clause node. [paper]"""
    clause_power_w: float = 63.8e-6
    """Dynamic power of one clause node. [paper] Leakage and a global clock are not counted there, nor here."""
    capacity: int = 100_000
    """Clauses that fit the chip. [paper] One clause takes one node however long it is [reconstruction]."""
    chip_area_mm2: float = 500.0
    """Area of the whole chip, which sets the wire lengths. [paper]"""
    router_area_um2: float = 22_861.0
    """Area of one router. [paper] printed as 22.861 um2, read as 22,861."""
    rows: int = 16
    """Rows of the mesh. [paper] The wire power is given for 16 x 16."""
    columns: int = 16
    """Columns of the mesh. [paper]"""
    center: tuple[int, int] = (8, 8)
    """Row and column of the router that the central unit hangs on. [reconstruction]"""
    wire_energy_j_per_bit_mm: float = 0.2e-12
    """Energy of one bit over one millimetre. [paper] metal 7 at 1.05 V."""
    activity: float = 0.34
    """Share of cycles in which a wire is busy at the paper's wire power. [paper]"""
    link_bits: int = 40
    """Bits of one flit: a literal and a slot. [deduced] 1.85 W at 34 % activity is 40.5 bits on each of 480 edges."""
    hop_cycles: int = 1
    """Router and wire to the next bank. [reconstruction]"""
    match_cycles: int = 1
    """From an assignment at a bank to its unit clauses known. [reconstruction] One associative match per cycle."""
    sort_cycles: int = 1
    """From an implication's arrival at the sorter to its broadcast. [reconstruction]"""
    read_cycles: int = 1
    """Reading a clause for the central unit. [reconstruction]"""
    decide_cycles: int = 10
    """The central CPU picks a decision. [reconstruction]"""
    analyze_cycles_per_literal: int = 1
    """The central CPU resolves one literal of a fetched clause. [reconstruction]"""
    literals_per_flit: int = 2
    """Literals that one message cycle carries when clauses are read or written. [reconstruction] 20 bits each."""
    spill_cycles_per_visit: int = 10
    """The central CPU updates one clause that found no node. [reconstruction] About a hit in a second-level cache."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "center":
                if not (0 <= value[0] < self.rows and 0 <= value[1] < self.columns):
                    raise ValueError(f"center must lie on the {self.rows} x {self.columns} mesh, got {value}")
            elif not value > 0:
                raise ValueError(f"{field.name} must be positive, got {value}")
        if self.rows * self.columns > 4096:
            raise ValueError(f"rows x columns must be at most 4096, got {self.rows} x {self.columns}")

    @property
    def num_banks(self) -> int:
        """Banks, one per router."""
        return self.rows * self.columns

    @property
    def hop_mm(self) -> float:
        """Wire between neighbouring routers: the chip is square and evenly divided. [deduced]"""
        return math.sqrt(self.chip_area_mm2 / self.num_banks)

    @property
    def num_edges(self) -> int:
        """Edges of the mesh."""
        return self.rows * (self.columns - 1) + self.columns * (self.rows - 1)

    def area_mm2(self, num_clauses: int | None = None) -> float:
        """Area of so many clause nodes (default: all of them) and the routers, square millimetres."""
        clauses = self.capacity if num_clauses is None else num_clauses
        return (clauses * self.clause_area_um2 + self.num_banks * self.router_area_um2) * 1e-6

    def clause_power(self, num_clauses: int | None = None) -> float:
        """Dynamic power of so many clause nodes (default: all of them), watts."""
        return (self.capacity if num_clauses is None else num_clauses) * self.clause_power_w

    def wire_power(self, activity: float | None = None) -> float:
        """Power of all mesh wires at an activity (default: the paper's 34 %), watts."""
        share = self.activity if activity is None else activity
        bits_per_s = self.num_edges * self.link_bits * share / self.cycle_s
        return bits_per_s * self.hop_mm * self.wire_energy_j_per_bit_mm

    def energy_j(self, clause_cycles: float, flit_hops: float) -> float:
        """Energy of clause nodes in use (clauses times cycles) and of messages (flits times hops), joules.

        63.8 uW x clauses x time + bits x mm x 0.2 pJ; the central CPU is not counted, as in the paper's totals.
        """
        wires = flit_hops * self.link_bits * self.hop_mm * self.wire_energy_j_per_bit_mm
        return clause_cycles * self.cycle_s * self.clause_power_w + wires

    def timing(self) -> Timing:
        """Integers and tables for the replay kernels; messages inwards go along the row, then along the column."""
        row, column = np.divmod(np.arange(self.num_banks), self.columns)
        to_row, to_column = self.center[0] - row, self.center[1] - column
        step = np.where(to_column != 0, np.sign(to_column), np.sign(to_row) * self.columns)
        depth = (np.abs(to_row) + np.abs(to_column)).astype(np.int32)
        parent = np.where(depth > 0, np.arange(self.num_banks) + step, -1).astype(np.int32)
        return Timing(
            hop=self.hop_cycles,
            match=self.match_cycles,
            sort=self.sort_cycles,
            read=self.read_cycles,
            decide=self.decide_cycles,
            analyze=self.analyze_cycles_per_literal,
            literals_per_flit=self.literals_per_flit,
            spill_visit=self.spill_cycles_per_visit,
            farthest=int(depth.max()),
            capacity=self.capacity,
            center=self.center[0] * self.columns + self.center[1],
            stride=_scattering_stride(self.num_banks),
            depth=depth,
            parent=parent,
        )


def _scattering_stride(num_banks: int) -> int:
    """A stride near the golden section without a common factor, so that a few slots spread over the whole mesh."""
    stride = max(1, round(0.618 * num_banks))
    while math.gcd(stride, num_banks) > 1:
        stride -= 1
    return stride
