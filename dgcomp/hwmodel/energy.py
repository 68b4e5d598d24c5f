"""Energies of arithmetic and memory, as named tables: each with its source and process node, never mixed.

Two tables disagree about the same operation (Horowitz's 32 KB SRAM read is not EIE's), because they describe other
circuits in other processes. So a model takes all its on-chip energies from one table, and names it. Memory outside
the chip is another device and has its own table.
"""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["EIE_TABLE_1", "HBM", "HOROWITZ_2014", "TABLES", "EnergyTable"]


@dataclass(frozen=True, slots=True)
class EnergyTable:
    """Picojoules by operation, from one source at one process node.

    `table["int16_mul"]` raises KeyError with the known operations for one that the source does not give.
    """

    name: str
    source: str
    node_nm: int | None
    """Process node in nanometres; None where the source does not say."""
    picojoules: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("source must say where the energies come from, got an empty text")

    def __getitem__(self, operation: str) -> float:
        if operation not in self.picojoules:
            known = ", ".join(self.picojoules)
            raise KeyError(f"operation must be one that {self.name} gives ({known}), got {operation!r}")
        return self.picojoules[operation]

    def joules(self, operation: str, count: float = 1.0) -> float:
        """Energy of `count` operations."""
        return self[operation] * count * 1e-12


# Words are 32 bit: one SRAM read delivers 32 bits from a 32 KB array. int16_mul is derived from the paper's text:
# "5x less than int32 mul, 6.2x less than fp32 mul" (3.1 / 5 = 0.62, 3.7 / 6.2 = 0.60).
EIE_TABLE_1 = EnergyTable(
    name="eie-45nm",
    source="Han et al., EIE, ISCA 2016, Table I and section VI (int16_mul)",
    node_nm=45,
    picojoules={
        "int32_add": 0.1,
        "fp32_add": 0.9,
        "int16_mul": 0.6,
        "int32_mul": 3.1,
        "fp32_mul": 3.7,
        "sram_32b": 5.0,
        "dram_32b": 640.0,
    },
)

HOROWITZ_2014 = EnergyTable(
    name="horowitz-45nm",
    source="Horowitz, Computing's energy problem, ISSCC 2014, as listed by stillwater-sc/esim",
    node_nm=45,
    picojoules={
        "int8_add": 0.03,
        "int16_add": 0.05,
        "int32_add": 0.1,
        "int8_mul": 0.2,
        "int32_mul": 3.1,
        "fp16_add": 0.4,
        "fp32_add": 0.9,
        "fp16_mul": 1.1,
        "fp32_mul": 3.7,
    },
)

# A device of its own beside the chip, so it may stand next to any on-chip table.
HBM = EnergyTable(
    name="hbm",
    source="3.9 pJ/bit, the figure sparse-accelerator papers use for HBM",
    node_nm=None,
    picojoules={"byte": 3.9 * 8},
)

TABLES = {table.name: table for table in (EIE_TABLE_1, HOROWITZ_2014, HBM)}
