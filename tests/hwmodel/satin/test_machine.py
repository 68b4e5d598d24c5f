"""Area and power against the paper's printed totals (arXiv 2303.02588, abstract and pages 8 and 10)."""

import pytest

from dgcomp.hwmodel.satin import Machine, solve
from dgcomp.hwmodel.satin.families import random_ksat


def test_chip_totals() -> None:
    chip = Machine()
    # printed 500 mm2; the nodes alone are 487 and the routers add 6
    assert chip.area_mm2() == pytest.approx(500, rel=0.02)
    # printed 1.85 W at 34 % on 16 x 16; 40 bits per edge is the nearest whole width in bytes
    assert chip.wire_power() == pytest.approx(1.85, rel=0.02)
    # printed 8.3 W; its parts, 6.38 and 1.85, add up to 8.23
    assert chip.clause_power() == pytest.approx(6.38)
    assert chip.clause_power() + chip.wire_power() == pytest.approx(8.3, rel=0.02)


def test_mesh_tables() -> None:
    timing = Machine(rows=3, columns=4, center=(1, 2)).timing()
    assert timing.depth.tolist() == [3, 2, 1, 2, 2, 1, 0, 1, 3, 2, 1, 2]
    assert timing.parent.tolist() == [1, 2, 6, 2, 5, 6, -1, 6, 9, 10, 6, 10]
    assert timing.farthest == 3


def test_energy_of_an_idle_and_a_talking_chip() -> None:
    chip = Machine()
    # all nodes for one second of cycles are the nodes' power
    assert chip.energy_j(chip.capacity / chip.cycle_s, 0) == pytest.approx(chip.clause_power())
    # every edge busy 34 % of one second is the wires' power
    assert chip.energy_j(0, chip.num_edges * 0.34 / chip.cycle_s) == pytest.approx(chip.wire_power())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cycle_s": 0.0}, "cycle_s must be positive, got 0.0"),
        ({"capacity": -1}, "capacity must be positive, got -1"),
        ({"center": (16, 0)}, "center must lie on the 16 x 16 mesh"),
        ({"rows": 100, "columns": 100}, "rows x columns must be at most 4096"),
    ],
)
def test_wrong_constants(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Machine(**wrong)  # type: ignore[arg-type]


def test_more_clauses_than_the_chip_holds() -> None:
    clauses = random_ksat(60, 240, seed=1)
    small = Machine(capacity=100)
    with pytest.raises(ValueError, match="cnf must have at most 100 clauses, the chip's capacity, got 240"):
        solve(clauses, machine=small, spill="refuse")
    for fidelity in ("event", "wave"):
        spilled, fits = (solve(clauses, machine=m, fidelity=fidelity) for m in (small, Machine()))
        assert spilled.stats["spilled_clauses"] >= 140
        assert spilled.stats["messages_by_kind"]["SPILL"] > 0
        assert spilled.cycles > 1.2 * fits.cycles
        assert fits.stats["spilled_clauses"] == 0
        assert spilled.satisfiable == fits.satisfiable
