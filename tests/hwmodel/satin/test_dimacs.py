"""DIMACS files, good and bad; every message names the file and the line."""

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp.hwmodel.satin import Formula, as_formula, read_dimacs, solve, write_dimacs
from dgcomp.hwmodel.satin.families import random_ksat

GOOD = b"c caf\xe9: a comment that is not UTF-8\np cnf 3 2\n1 -2 0\n2\n3 0\n"


def _file(folder: Path, data: bytes, name: str = "f.cnf") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _lists(formula: Formula) -> list[list[int]]:
    return list(formula.clauses())


@pytest.mark.parametrize(("name", "pack"), [("f.cnf", bytes), ("f.cnf.gz", gzip.compress), ("f.cnf.xz", lzma.compress)])
def test_reads_plain_and_compressed(tmp_path: Path, name: str, pack: object) -> None:
    formula = read_dimacs(_file(tmp_path, pack(GOOD), name))  # type: ignore[operator]
    assert (formula.num_vars, _lists(formula)) == (3, [[1, -2], [2, 3]])


@pytest.mark.parametrize("name", ["f.cnf", "f.cnf.gz", "f.cnf.xz"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    formula = as_formula(random_ksat(30, 100, seed=3))
    write_dimacs(formula, tmp_path / name)
    again = read_dimacs(tmp_path / name)
    assert again.num_vars == formula.num_vars
    assert np.array_equal(again.literals, formula.literals)
    assert np.array_equal(again.offsets, formula.offsets)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"line 1: expected the header 'p cnf VARIABLES CLAUSES', got ''"),
        (b"c x\n1 2 0\n", r"line 2: expected the header .* got '1 2 0'"),
        (b"p cnf 3\n1 0\n", r"line 1: expected the header .* got 'p cnf 3'"),
        (b"p dnf 3 1\n1 0\n", r"line 1: expected the header"),
        (b"p cnf -3 1\n1 0\n", r"line 1: expected the header"),
        (b"p cnf 3 1 7\n1 0\n", r"line 1: expected the header"),
        (b"p cnf 99999999 1\n1 0\n", r"line 1: expected the header"),
        (b"p cnf 3 1\np cnf 3 1\n1 0\n", r"line 2: a second header"),
        (b"p cnf 3 2\n1 2 0\n\n1 x2 0\n", r"line 4: expected an integer literal, got 'x2'"),
        (b"p cnf 3 1\n1 2.5 0\n", r"line 2: expected an integer literal, got '2.5'"),
        (b"p cnf 3 1\n- 0\n", r"line 2: expected an integer literal, got '-'"),
        (b"p cnf 3 1\n1 99999999999999999999 0\n", r"line 2: expected an integer literal"),
        (b"p cnf 3 1\n1 1_0 0\n", r"line 2: expected an integer literal, got '1_0'"),
        (b"p cnf 3 1\n+1 0\n", r"line 2: expected an integer literal, got '\+1'"),
        (b"p cnf 3 1\n1 --2 0\n", r"line 2: expected an integer literal, got '--2'"),
        (b"p cnf 3 1\n1 caf\xe9 0\n", r"line 2: expected an integer literal, got 'caf\\xe9'"),
        (b"p cnf 3 2\n1 0\n-4 2 0\n", r"line 3: variable 4 is out of range, the header allows 1 to 3"),
        (b"p cnf 3 1\n1 2\n", r"line 3: the file ends inside a clause"),
        (b"p cnf 3 2\n1 2 0\n", r"line 3: the header promises 2 clauses, the file has 1"),
        (b"p cnf 3 1\n1 0\n2 0\n", r"line 4: the header promises 1 clauses, the file has 2"),
        ("p cnf 3 1\n1 0\n".encode("utf-16"), r"line 1: expected the header"),
    ],
)
def test_malformed_files_name_the_line(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"f\.cnf: {message}"):
        read_dimacs(_file(tmp_path, data))


def test_truncated_archives(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"must be a whole \.xz file"):
        read_dimacs(_file(tmp_path, lzma.compress(GOOD)[:-9], "f.xz"))
    with pytest.raises(OSError, match="gzip"):
        read_dimacs(_file(tmp_path, GOOD, "f.gz"))


def test_tautologies_and_duplicates(tmp_path: Path) -> None:
    formula = read_dimacs(_file(tmp_path, b"p cnf 3 3\n1 2 1 0\n1 -2 2 3 0\n-3 -3 0\n"))
    assert _lists(formula) == [[1, 2], [-3]]
    assert (formula.num_tautologies, formula.num_duplicates) == (1, 2)
    result = solve([[1, -1], [2, 2]])
    assert result.satisfiable
    assert (result.stats["tautologies"], result.stats["duplicate_literals"]) == (1, 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(-4, 4).filter(bool), max_size=6), max_size=8))
def test_normalizing_is_what_the_words_say(clauses: list[list[int]]) -> None:
    kept = [list(dict.fromkeys(clause)) for clause in clauses if not any(-x in clause for x in clause)]
    formula = as_formula(clauses)
    assert _lists(formula) == kept
    assert formula.num_tautologies == len(clauses) - len(kept)
    sound = sum(len(clause) for clause in clauses if not any(-x in clause for x in clause))
    assert formula.num_duplicates == sound - sum(map(len, kept))


def test_empty_clause_and_no_clause(tmp_path: Path) -> None:
    empty = read_dimacs(_file(tmp_path, b"p cnf 2 2\n1 2 0\n0\n"))
    assert _lists(empty) == [[1, 2], []]
    assert solve(empty).satisfiable is False
    nothing = solve(_file(tmp_path, b"p cnf 2 0\n"))
    assert nothing.satisfiable
    assert len(nothing.model or []) == 2


def test_satlib_end_mark(tmp_path: Path) -> None:
    assert _lists(read_dimacs(_file(tmp_path, b"p cnf 2 1\n1 -2 0\n%\n0\n\n"))) == [[1, -2]]


def test_other_inputs() -> None:
    with pytest.raises(ValueError, match=r"cnf must not hold the literal 0, got \[2, 0\] as clause 1"):
        as_formula([[1], [2, 0]])
    with pytest.raises(TypeError, match="cnf must be a path, a python-sat CNF or an iterable"):
        as_formula(7)
    with pytest.raises(ValueError, match="at most"):
        as_formula([[2**30]])
    assert as_formula([]).num_vars == 0


@pytest.mark.optional
def test_python_sat_objects() -> None:
    cnf = pytest.importorskip("pysat.formula").CNF(from_clauses=[[1, 2], [-1], [-2, 4]])
    assert as_formula(cnf).num_vars == 4
    assert solve(cnf).model == [-1, 2, -3, 4]
