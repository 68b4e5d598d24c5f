"""Formulas in conjunctive normal form: DIMACS files in and out, and everything else that `solve` accepts as one.

A literal is coded as ``2 * variable + sign`` with variables from 0 inside the package, and as in DIMACS (1-based,
negative for negated) outside it.
"""

import gzip
import lzma
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["Formula", "as_formula", "read_dimacs", "write_dimacs"]

MAX_VARIABLES = 2**26
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}

_ERRORS = {
    1: "line {line}: expected an integer literal, got '{word}'; write comments on lines of their own, starting with c",
    2: "line {line}: expected the header 'p cnf VARIABLES CLAUSES', got '{word}'",
    3: "line {line}: variable {value} is out of range, the header allows 1 to {limit}; raise the header's number",
    4: "line {line}: the file ends inside a clause; end every clause with 0",
    5: "line {line}: the header promises {limit} clauses, the file has {value}; correct the header",
    6: "line {line}: a second header; keep one 'p cnf' line",
}


@dataclass(frozen=True, slots=True)
class Formula:
    """A CNF: clause i is ``literals[offsets[i]:offsets[i + 1]]``, without duplicate literals and not a tautology."""

    num_vars: int
    """Number of variables, whether they occur or not."""
    literals: NDArray[np.int32]
    """All clauses end to end, shape (L,), coded literals."""
    offsets: NDArray[np.int64]
    """Clause boundaries, shape (clauses + 1,)."""
    num_tautologies: int = 0
    """Clauses dropped because they hold a literal and its negation."""
    num_duplicates: int = 0
    """Repeated literals dropped."""

    @property
    def num_clauses(self) -> int:
        """Number of clauses kept."""
        return len(self.offsets) - 1

    def clauses(self) -> Iterator[list[int]]:
        """Clauses as lists of DIMACS literals."""
        signed = _to_dimacs(self.literals).tolist()
        bounds = self.offsets.tolist()
        return (signed[a:b] for a, b in zip(bounds, bounds[1:], strict=False))

    def satisfied_by(self, model: Iterable[int]) -> bool:
        """Whether every clause holds a literal of `model`, an iterable of DIMACS literals."""
        true = np.zeros(2 * self.num_vars, bool)
        true[[2 * abs(x) - 2 + (x < 0) for x in model]] = True
        if not self.num_clauses:
            return True
        if (np.diff(self.offsets) == 0).any():
            return False
        return bool(np.logical_or.reduceat(true[self.literals], self.offsets[:-1]).all())


def as_formula(cnf: Any) -> Formula:
    """Take a `Formula`, a path of a DIMACS file, a python-sat CNF (``.clauses``, ``.nv``) or an iterable of clauses.

    Raises ValueError for a literal 0 or too many variables, TypeError for anything else.
    """
    if isinstance(cnf, Formula):
        return cnf
    if isinstance(cnf, (str, os.PathLike)):
        return read_dimacs(cnf)
    clauses = getattr(cnf, "clauses", cnf)
    try:
        clauses = [[int(x) for x in clause] for clause in clauses]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"cnf must be a path, a python-sat CNF or an iterable of integer clauses, got {type(cnf).__name__}: {error}"
        ) from None
    sizes = np.fromiter((len(c) for c in clauses), np.int64, len(clauses))
    signed = np.fromiter((x for c in clauses for x in c), np.int64, int(sizes.sum()))
    if (signed == 0).any():
        index = int(np.searchsorted(np.cumsum(sizes), np.flatnonzero(signed == 0)[0], side="right"))
        raise ValueError(
            f"cnf must not hold the literal 0, got {clauses[index]} as clause {index}; number variables from 1"
        )
    num_vars = max(int(np.abs(signed).max(initial=0)), int(getattr(cnf, "nv", 0)))
    if num_vars > MAX_VARIABLES:
        raise ValueError(f"cnf must have at most {MAX_VARIABLES} variables, got {num_vars}; renumber them without gaps")
    coded = (2 * np.abs(signed) - 2 + (signed < 0)).astype(np.int32)
    return _normalized(num_vars, coded, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def read_dimacs(path: str | os.PathLike[str]) -> Formula:
    """Read a DIMACS CNF file, plain, ``.gz`` or ``.xz``.

    Comments may be in any encoding and a line that starts with ``%`` ends the file, as in SATLIB. Duplicate literals
    are merged and tautologies dropped (both counted); an empty clause is kept and makes the formula false.

    Raises
    ------
    ValueError
        Naming file and line: malformed header or literal, variable out of range, unfinished clause, wrong clause count.
    OSError
        If the file cannot be read or is not what its suffix says.
    """
    path = Path(path)
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            data = file.read()
    except (EOFError, lzma.LZMAError) as error:
        raise OSError(f"{path} must be a whole {path.suffix} file: {error}") from None
    text = np.frombuffer(data, np.uint8)
    # every literal and every 0 takes at least two bytes
    literals = np.empty(len(text) // 2 + 1, np.int32)
    offsets = np.zeros(len(text) // 2 + 2, np.int64)
    code, line, start, value, limit, num_vars, num_clauses, used = _scan(text, literals, offsets)
    if code:
        word = bytes(text[start : start + 40]).split(b"\n")[0].split(b"\r")[0]
        word = word if code == 2 else word.split()[0] if word.split() else b""
        reason = _ERRORS[code].format(
            line=line, word=word.decode("utf-8", "backslashreplace"), value=value, limit=limit
        )
        raise ValueError(f"{path}: {reason}")
    return _normalized(num_vars, literals[:used].copy(), offsets[: num_clauses + 1].copy())


def write_dimacs(formula: Formula, path: str | os.PathLike[str]) -> None:
    """Write a DIMACS CNF file, compressed if the name ends in ``.gz`` or ``.xz``."""
    lines = [f"p cnf {formula.num_vars} {formula.num_clauses}"]
    lines += [" ".join(map(str, [*clause, 0])) for clause in formula.clauses()]
    with _OPENERS.get(Path(path).suffix, open)(path, "wb") as file:
        file.write(("\n".join(lines) + "\n").encode())


def _to_dimacs(coded: NDArray[np.int32]) -> NDArray[np.int64]:
    """DIMACS literals of coded ones."""
    variable = (coded >> 1).astype(np.int64) + 1
    return np.where(coded & 1, -variable, variable)


def _normalized(num_vars: int, literals: NDArray[np.int32], offsets: NDArray[np.int64]) -> Formula:
    """Formula without tautologies and repeated literals."""
    kept, bounds, tautologies, duplicates = _clean(literals, offsets, np.full(2 * num_vars, -1, np.int64))
    return Formula(num_vars, kept, bounds, tautologies, duplicates)


@njit(cache=True, nogil=True)
def _clean(
    literals: NDArray[Any], offsets: NDArray[np.int64], last: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64], int, int]:
    """Drop repeated literals and tautologies; `last` remembers the clause in which each literal was seen last."""
    kept, bounds = np.empty_like(literals), np.zeros_like(offsets)
    used = clauses = tautologies = duplicates = 0
    for i in range(offsets.size - 1):
        start, tautology, repeated = used, False, 0
        for j in range(offsets[i], offsets[i + 1]):
            x = literals[j]
            if last[x] == i:
                repeated += 1
                continue
            tautology |= last[x ^ 1] == i
            last[x] = i
            kept[used] = x
            used += 1
        if tautology:
            used = start
            tautologies += 1
            continue
        duplicates += repeated
        clauses += 1
        bounds[clauses] = used
    return kept[:used].copy(), bounds[: clauses + 1].copy(), tautologies, duplicates


@njit(cache=True, nogil=True)
def _scan(
    text: NDArray[np.uint8], literals: NDArray[Any], offsets: NDArray[np.int64]
) -> tuple[int, int, int, int, int, int, int, int]:
    """One pass over a file: (error code, line, start of the word, value, limit, variables, clauses, literals)."""
    n, at, line = text.size, 0, 1
    num_vars = num_clauses = -1
    clauses = used = 0
    fresh = True  # at the start of a line
    while at < n:
        byte = text[at]
        if byte == 10:
            line, at, fresh = line + 1, at + 1, True
        elif byte == 32 or (9 <= byte <= 13):
            at += 1
        elif fresh and byte == 99:  # c: comment
            at = _line_end(text, at)
        elif fresh and byte == 37:  # %: SATLIB's end mark
            break
        elif fresh and byte == 112:  # p: header
            if num_vars >= 0:
                return 6, line, at, 0, 0, 0, 0, 0
            num_vars, num_clauses = _header(text, at)
            if num_vars < 0:
                return 2, line, at, 0, 0, 0, 0, 0
            at = _line_end(text, at)
        else:
            if num_vars < 0:
                return 2, line, at, 0, 0, 0, 0, 0
            fresh = False
            value, end = _integer(text, at)
            if end < 0:
                return 1, line, at, 0, 0, 0, 0, 0
            if abs(value) > num_vars:
                return 3, line, at, abs(value), num_vars, 0, 0, 0
            at = end
            if value == 0:
                clauses += 1
                offsets[clauses] = used
            else:
                literals[used] = 2 * abs(value) - 2 + (1 if value < 0 else 0)
                used += 1
    if num_vars < 0:
        return 2, line, at, 0, 0, 0, 0, 0
    if used > offsets[clauses]:
        return 4, line, at, 0, 0, 0, 0, 0
    if clauses != num_clauses:
        return 5, line, at, clauses, num_clauses, 0, 0, 0
    return 0, line, at, 0, 0, num_vars, clauses, used


@njit(cache=True, nogil=True)
def _line_end(text: NDArray[np.uint8], at: int) -> int:
    while at < text.size and text[at] != 10:
        at += 1
    return at


@njit(cache=True, nogil=True)
def _integer(text: NDArray[np.uint8], at: int) -> tuple[int, int]:
    """Value of the integer at `at` and where it ends; end -1 if the word is not an integer or too long for one."""
    negative = text[at] == 45
    at += negative
    start, value = at, 0
    while at < text.size and 48 <= text[at] <= 57 and at - start < 12:
        value = 10 * value + int(text[at]) - 48
        at += 1
    if at == start or (at < text.size and text[at] != 32 and not 9 <= text[at] <= 13):
        return 0, -1
    return -value if negative else value, at


@njit(cache=True, nogil=True)
def _header(text: NDArray[np.uint8], at: int) -> tuple[int, int]:
    """Variables and clauses of a ``p cnf`` line, or (-1, -1)."""
    numbers = np.full(2, -1, np.int64)
    end = _line_end(text, at)
    word = 0
    at += 1
    while at < end:
        if text[at] == 32 or 9 <= text[at] <= 13:
            at += 1
            continue
        if word == 0:
            if at + 3 > end or text[at] != 99 or text[at + 1] != 110 or text[at + 2] != 102:  # "cnf"
                return -1, -1
            at += 3
        else:
            value, at = _integer(text, at)
            if at < 0 or word > 2 or value < 0 or value > MAX_VARIABLES:
                return -1, -1
            numbers[word - 1] = value
        word += 1
    if numbers[1] < 0:
        return -1, -1
    return numbers[0], numbers[1]
