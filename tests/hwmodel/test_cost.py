"""Costs add and scale; energy tables name their source and refuse what they do not hold."""

import pytest

from dgcomp.hwmodel.cost import Cost
from dgcomp.hwmodel.energy import EIE_TABLE_1, TABLES, EnergyTable


def test_costs_add_and_scale() -> None:
    a = Cost(10, 1.0, 2.0, {"stall_cycles": 3, "dram_bytes": 8}, area_mm2=4, notes=("one",))
    b = Cost(5, 0.5, 1.0, {"stall_cycles": 1, "sram_joules": 1.0}, area_mm2=4, notes=("one", "two"))
    total = a + 2 * b
    assert (total.cycles, total.seconds, total.joules, total.area_mm2) == (20, 2.0, 4.0, 4)
    assert total.breakdown == {"stall_cycles": 5, "dram_bytes": 8, "sram_joules": 2.0}
    assert total.notes == ("one", "two")
    assert total.part("cycles") == {"stall": 5}
    assert total.watts == 2.0
    assert Cost().watts == 0.0
    assert sum([a, b], Cost()) == a + b


def test_breakdown_needs_units() -> None:
    with pytest.raises(ValueError, match=r"must end in one of cycles, .*, got 'dram'"):
        Cost(breakdown={"dram": 1.0})


def test_energy_tables_have_sources_and_known_operations() -> None:
    assert all(table.source for table in TABLES.values())
    assert EIE_TABLE_1["dram_32b"] / EIE_TABLE_1["sram_32b"] == 128  # the paper's sentence about DRAM
    assert EIE_TABLE_1.joules("fp32_mul", 2) == pytest.approx(7.4e-12)
    with pytest.raises(KeyError, match="operation must be one that eie-45nm gives .*, got 'fp8_mul'"):
        EIE_TABLE_1["fp8_mul"]
    with pytest.raises(ValueError, match="source must say"):
        EnergyTable("mine", "", 45, {})
