"""The proof checker: it accepts what follows and nothing else."""

from pathlib import Path

import pytest

from dgcomp.hwmodel.satin import as_formula, check_proof

SQUARE = [[1, 2], [1, -2], [-1, 2], [-1, -2]]


def _check(clauses: list[list[int]], proof: str, folder: Path) -> None:
    (folder / "p").write_text(proof)
    check_proof(as_formula(clauses), folder / "p")


@pytest.mark.parametrize(
    ("clauses", "proof"),
    [
        (SQUARE, "1 0\n0\n"),
        (SQUARE, "-2 0\nd 1 2 0\n0\n"),
        (SQUARE, "1 0\nd 1 2 0\nd 1 -2 0\n0\n"),
        ([[1], [-1]], ""),
        ([[1, 2], []], "0\n"),
        ([[1], [-1, 2], [-2]], "d 1 0\n0\n"),  # the deletion of a unit is ignored
    ],
)
def test_accepts(tmp_path: Path, clauses: list[list[int]], proof: str) -> None:
    _check(clauses, proof, tmp_path)


def test_accepts_a_definition_that_is_only_rat(tmp_path: Path) -> None:
    # 3 is new: (3 or not 1) and (not 3 or 1) define it; neither is implied, both are RAT on 3
    _check(SQUARE, "3 -1 0\n-3 1 0\n1 0\n0\n", tmp_path)


@pytest.mark.parametrize(
    ("clauses", "proof", "message"),
    [
        ([[1, 2], [-1, -2]], "1 0\n", "proof line 1 does not follow"),
        ([[1, 2], [-1, -2]], "0\n", "proof line 1 does not follow"),
        (SQUARE, "d 1 2 0\nd 1 -2 0\n1 0\n", "proof line 3 does not follow"),
        (SQUARE, "d 1 2 0\n", "must derive the empty clause"),
        (SQUARE, "d 1 3 0\n", "proof line 1 deletes a clause that is not there"),
        (SQUARE, "1\n0\n", "proof line 1 must end with 0"),
        ([[1, 2]], "", "must derive the empty clause"),
    ],
)
def test_refuses(tmp_path: Path, clauses: list[list[int]], proof: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _check(clauses, proof, tmp_path)


def test_checker_is_short() -> None:
    import dgcomp.hwmodel.satin.drat as module

    assert len(Path(module.__file__).read_text().splitlines()) < 150
