"""Formulas in conjunctive normal form: DIMACS files in and out, and everything else that `solve` accepts as one.

A literal is coded as ``2 * variable + sign`` with variables from 0 inside the package, and as in DIMACS (1-based,
negative for negated) outside it.
"""

import gzip
import lzma
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Formula", "as_formula", "read_dimacs", "write_dimacs"]

MAX_VARIABLES = 2**26
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}

_REASONS = {
    "literal": "expected an integer literal, got '{word}'; write comments on lines of their own, starting with c",
    "header": "expected the header 'p cnf VARIABLES CLAUSES', got '{word}'",
    "range": "variable {value} is out of range, the header allows 1 to {limit}; raise the header's number",
    "unfinished": "the file ends inside a clause; end every clause with 0",
    "count": "the header promises {limit} clauses, the file has {value}; correct the header",
    "second header": "a second header; keep one 'p cnf' line",
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
    return _normalized(num_vars, _coded(signed), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


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
    try:
        num_vars, signed = _parse(data)
    except _Malformed as error:
        raise ValueError(f"{path}: {error}") from None
    ends = np.flatnonzero(signed == 0)
    offsets = np.concatenate([[0], ends - np.arange(len(ends))])
    signed = signed[signed != 0]
    return _normalized(num_vars, _coded(signed), offsets)


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


def _coded(signed: NDArray[Any]) -> NDArray[np.int32]:
    """Coded literals of DIMACS ones."""
    coded: NDArray[np.int32] = (2 * np.abs(signed) - 2 + (signed < 0)).astype(np.int32)
    return coded


def _normalized(num_vars: int, literals: NDArray[np.int32], offsets: NDArray[np.int64]) -> Formula:
    """Formula without tautologies and repeated literals; what is kept keeps its order."""
    num_clauses, width = len(offsets) - 1, 2 * max(num_vars, 1)
    clause = np.repeat(np.arange(num_clauses), np.diff(offsets))
    key = clause * width + literals
    order = np.argsort(key, kind="stable")
    is_new = np.diff(key[order], prepend=-1) > 0
    repeated = np.zeros(len(key), bool)
    repeated[order[~is_new]] = True
    # a literal and its negation are neighbours among the sorted keys, the even one first
    distinct = key[order[is_new]]
    opposite = (np.diff(distinct) == 1) & (distinct[1:] % 2 == 1)
    tautology = np.zeros(num_clauses, bool)
    tautology[distinct[1:][opposite] // width] = True
    dropped = tautology[clause]
    kept = ~(repeated | dropped)
    sizes = np.bincount(clause[kept], minlength=num_clauses)[~tautology]
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Formula(num_vars, literals[kept], bounds, int(tautology.sum()), int((repeated & ~dropped).sum()))


class _Malformed(Exception):
    """What is wrong with a file, and in which line."""

    def __init__(self, line: int, reason: str, **details: object) -> None:
        super().__init__(f"line {line}: {_REASONS[reason].format(**details)}")


def _parse(data: bytes) -> tuple[int, NDArray[np.int32]]:
    """Number of variables, and all literals in DIMACS's own numbers with the 0 behind each clause."""
    num_vars = num_clauses = -1
    found = array("i")
    number = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        words = line.split()
        if not words or words[0][:1] == b"c":
            continue
        first = words[0][:1]
        if first == b"%":  # SATLIB's end mark
            break
        if first == b"p" and num_vars >= 0:
            raise _Malformed(number, "second header")
        if num_vars < 0:
            num_vars, num_clauses = _header(number, line)
        else:
            found.extend(_literals(number, words, num_vars))
    if num_vars < 0:
        raise _Malformed(number, "header", word="")
    signed = np.frombuffer(found, np.int32)
    if len(signed) and signed[-1] != 0:
        raise _Malformed(number, "unfinished")
    ends = int((signed == 0).sum())
    if ends != num_clauses:
        raise _Malformed(number, "count", limit=num_clauses, value=ends)
    return num_vars, signed


def _header(number: int, line: bytes) -> tuple[int, int]:
    """Variables and clauses of a ``p cnf`` line."""
    words = line.split()
    if words[:2] == [b"p", b"cnf"] and len(words) == 4 and all(w.isdigit() and len(w) < 19 for w in words[2:]):
        num_vars, num_clauses = int(words[2]), int(words[3])
        if num_vars <= MAX_VARIABLES:
            return num_vars, num_clauses
    raise _Malformed(number, "header", word=_shown(line.strip()))


def _literals(number: int, words: list[bytes], num_vars: int) -> list[int]:
    """Integers of a line; int() alone would also take 1_0 and +1."""
    for word in words:
        if not word.removeprefix(b"-").isdigit() or len(word) > 18:
            raise _Malformed(number, "literal", word=_shown(word))
    values = [int(word) for word in words]
    farthest = max(values, key=abs)
    if abs(farthest) > num_vars:
        raise _Malformed(number, "range", value=abs(farthest), limit=num_vars)
    return values


def _shown(word: bytes) -> str:
    """At most 40 bytes of what a file holds, printable."""
    return word[:40].decode("utf-8", "backslashreplace")
