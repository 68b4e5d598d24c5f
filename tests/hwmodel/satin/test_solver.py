"""The search is exact: brute force and a reference solver agree, models satisfy, proofs check."""

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp.hwmodel import satin
from dgcomp.hwmodel.satin.families import (
    adder_equivalence,
    factoring,
    pigeonhole,
    planted_communities,
    random_ksat,
)

DRAT_TRIM = os.environ.get("DRAT_TRIM") or shutil.which("drat-trim")

SIZES = st.tuples(st.integers(3, 40), st.floats(2.0, 6.5), st.integers(0, 2**31), st.sampled_from(["glucose", "luby"]))


def _brute_force(clauses: list[list[int]], num_vars: int) -> bool:
    table = np.array(list(itertools.product([False, True], repeat=num_vars)))
    alive = np.ones(len(table), bool)
    for clause in clauses:
        alive &= np.logical_or.reduce([table[:, abs(x) - 1] == (x > 0) for x in clause])
    return bool(alive.any())


def _solve_and_check(clauses: list[list[int]], folder: Path, **options: object) -> bool:
    """Answer, after checking the model or the proof."""
    formula = satin.as_formula(clauses)
    proof = folder / "p.drat"
    result = satin.solve(formula, proof=proof, **options)  # type: ignore[arg-type]
    if result.satisfiable:
        assert result.model is not None
        assert formula.satisfied_by(result.model)
    else:
        satin.check_proof(formula, proof)
    assert result.satisfiable is not None
    return result.satisfiable


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 10), st.floats(0.5, 7), st.integers(1, 4), st.integers(0, 2**31))
def test_brute_force_agrees(tmp_path_factory: pytest.TempPathFactory, n: int, ratio: float, k: int, seed: int) -> None:
    clauses = random_ksat(n, max(1, int(ratio * n)), k=min(k, n), seed=seed)
    answer = _solve_and_check(clauses, tmp_path_factory.getbasetemp(), fidelity="wave")
    assert answer == _brute_force(clauses, n)


@pytest.mark.optional
@settings(max_examples=300, deadline=None)
@given(SIZES)
def test_cadical_agrees(tmp_path_factory: pytest.TempPathFactory, sizes: tuple[int, float, int, str]) -> None:
    _compare(tmp_path_factory.getbasetemp(), *sizes)


@pytest.mark.slow
@pytest.mark.optional
@settings(max_examples=2000, deadline=None)
@given(SIZES)
def test_cadical_agrees_2000_times(
    tmp_path_factory: pytest.TempPathFactory, sizes: tuple[int, float, int, str]
) -> None:
    n, *rest = sizes
    _compare(tmp_path_factory.getbasetemp(), 3 * n, *rest)


def _compare(folder: Path, n: int, ratio: float, seed: int, restarts: str) -> None:
    solvers = pytest.importorskip("pysat.solvers")
    clauses = random_ksat(n, int(ratio * n), seed=seed)
    answer = _solve_and_check(clauses, folder, fidelity="none", restarts=restarts, seed=seed % 3)
    with solvers.Solver("cadical195", bootstrap_with=clauses) as reference:
        assert answer == reference.solve()


@pytest.mark.parametrize(
    ("clauses", "answer"),
    [
        (pigeonhole(5), False),
        (adder_equivalence(8), False),
        (factoring(221), True),
        (factoring(113), False),
        (planted_communities(500, 2000), True),
        ([[1], [-1]], False),
        ([[1], [-1, 2], [-2]], False),
        ([[5], [-5, 3]], True),
    ],
)
def test_families(tmp_path: Path, clauses: list[list[int]], answer: bool) -> None:
    assert _solve_and_check(clauses, tmp_path, fidelity="none") is answer


def test_factors_multiply_to_the_number() -> None:
    model = satin.solve(factoring(221)).model
    assert model is not None
    bits = (221).bit_length()
    a = sum((model[1 + i] > 0) << i for i in range(bits - 1))
    b = sum((model[bits + i] > 0) << i for i in range((bits + 1) // 2))
    assert sorted((a, b)) == [13, 17]


def test_deletion_strengthening_and_restarts_happen(tmp_path: Path) -> None:
    clauses = random_ksat(170, 730, seed=1)
    formula = satin.as_formula(clauses)
    result = satin.solve(formula, fidelity="none", proof=tmp_path / "p")
    counts = result.stats
    assert min(counts[k] for k in ("deleted", "strengthened", "restarts", "minimized_literals", "reductions")) > 0
    if result.satisfiable is False:
        satin.check_proof(formula, tmp_path / "p")


def test_search_does_not_depend_on_the_clock() -> None:
    clauses = random_ksat(90, 380, seed=5)
    slow = satin.Machine(hop_cycles=3, decide_cycles=100, rows=4, columns=4, center=(0, 0))
    runs = [satin.solve(clauses, fidelity=f, machine=m) for f in ("none", "wave", "event") for m in (None, slow)]
    assert len({(r.stats["conflicts"], r.stats["propagations"], r.satisfiable) for r in runs}) == 1


def test_time_limit_and_progress_stop() -> None:
    hard = pigeonhole(10)
    assert satin.solve(hard, fidelity="none", time_limit_s=0.0).satisfiable is None
    seen: list[int] = []
    result = satin.solve(hard, progress=lambda stats: seen.append(stats["conflicts"]) is None and len(seen) == 3)
    assert result.satisfiable is None
    assert len(seen) == 3
    assert result.stats["conflicts"] > 0


@pytest.mark.parametrize("options", [{"contexts": 3}, {"fidelity": "x"}, {"restarts": "x"}, {"spill": "x"}])
def test_unknown_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be one of"):
        satin.solve([[1]], **options)  # type: ignore[arg-type]


def test_trace_needs_events() -> None:
    with pytest.raises(ValueError, match="trace must be used with"):
        satin.solve([[1]], fidelity="wave", trace=print)


@pytest.mark.slow
@pytest.mark.optional
@pytest.mark.skipif(DRAT_TRIM is None, reason="drat-trim is neither on PATH nor named by DRAT_TRIM")
@pytest.mark.parametrize("seed", range(40))
def test_drat_trim_accepts_what_the_checker_accepts(tmp_path: Path, seed: int) -> None:
    formula = satin.as_formula(random_ksat(60 + 2 * seed, int(4.6 * (60 + 2 * seed)), seed=seed))
    result = satin.solve(formula, fidelity="none", proof=tmp_path / "p")
    if result.satisfiable:
        pytest.skip("satisfiable")
    satin.write_dimacs(formula, tmp_path / "f")
    lines = (tmp_path / "p").read_text().splitlines()
    satin.check_proof(formula, tmp_path / "p")
    assert _drat_trim(tmp_path)
    # and both refuse a proof whose first half is missing
    (tmp_path / "p").write_text("\n".join(lines[-2:]) + "\n")
    with pytest.raises(ValueError, match="proof line"):
        satin.check_proof(formula, tmp_path / "p")
    assert not _drat_trim(tmp_path)


def _drat_trim(folder: Path) -> bool:
    assert DRAT_TRIM is not None  # guarded by skipif
    command = [DRAT_TRIM, str(folder / "f"), str(folder / "p")]
    return "s VERIFIED" in subprocess.run(command, capture_output=True, text=True, check=False).stdout
