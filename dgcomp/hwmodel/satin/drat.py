"""A forward checker of DRAT proofs, small enough to read in one sitting; no code shared with the solver.

Added clauses must be reverse unit propagations (RUP) or resolution asymmetric tautologies (RAT) on the first literal
(Wetzler, Heule, Hunt, SAT 2014). As in drat-trim, the deletion of a clause that is unit at that point is ignored.
"""

import os
from pathlib import Path

import numpy as np
from numba import njit

from dgcomp.hwmodel.satin.dimacs import Formula

__all__ = ["check_proof"]
Ints = np.typing.NDArray[np.int64]


def check_proof(formula: Formula, proof: str | os.PathLike[str]) -> None:
    """Check that a textual DRAT proof derives the empty clause from `formula`.

    Raises ValueError, naming the proof's line, if a step does not follow or the empty clause is not reached.
    """
    clauses = [c.tolist() for c in np.split(formula.literals, formula.offsets[1:-1])] if formula.num_clauses else []
    places: dict[tuple[int, ...], list[int]] = {}
    for i, clause in enumerate(clauses):
        places.setdefault(tuple(sorted(clause)), []).append(i)
    steps = [(i, False) for i in range(len(clauses))]  # clause, whether it is deleted here
    for number, line in enumerate(Path(proof).read_text().splitlines(), 1):
        words = line.split()
        deletion = words[:1] == ["d"]
        if words[-1:] != ["0"]:
            raise ValueError(f"proof line {number} must end with 0, got {line!r}")
        clause = [2 * abs(x) - 2 + (x < 0) for x in map(int, words[deletion:-1])]
        same = places.setdefault(tuple(sorted(clause)), [])
        if deletion and not same:
            raise ValueError(f"proof line {number} deletes a clause that is not there: {line!r}")
        steps.append((same.pop() if deletion else len(clauses), deletion))
        if not deletion:
            same.append(len(clauses))
            clauses.append(clause)
    offsets = np.cumsum([0] + [len(c) for c in clauses])
    literals = np.fromiter((x for c in clauses for x in c), np.int64, int(offsets[-1]))
    num_literals = max(2 * formula.num_vars, int(literals.max(initial=0)) // 2 * 2 + 2)
    failed = _check(np.array(steps).reshape(-1, 2), literals, offsets, formula.num_clauses, num_literals)
    if failed >= 0:
        why = f"line {failed - formula.num_clauses + 1} does not follow: neither RUP nor RAT on its first literal"
        raise ValueError(f"proof {why if failed < len(steps) else 'must derive the empty clause, but it ends before'}")


@njit(cache=True, nogil=True)
def _check(steps: Ints, literals: Ints, offsets: Ints, num_original: int, num_literals: int) -> int:
    """The first step that does not follow; -1 if the empty clause is reached, len(steps) if it never is."""
    value = np.zeros(num_literals, np.int64)
    reason = np.full(num_literals, -1, np.int64)
    trail = np.zeros(num_literals // 2 + 1, np.int64)
    alive = np.zeros(offsets.size - 1, np.int64)
    watch_head = np.full(num_literals, -1, np.int64)  # per literal: first watch; its clause is watch // 2
    watch_next = np.full(2 * (offsets.size - 1), -1, np.int64)
    work = (value, reason, trail, alive, watch_head, watch_next, literals, offsets)
    root = 0  # size of the part of the trail that follows from units alone
    for step in range(steps.shape[0]):
        clause, deletion = steps[step]
        begin, end = offsets[clause], offsets[clause + 1]
        if deletion:
            alive[clause] = False
            for x in literals[begin:end]:
                alive[clause] |= reason[x] == clause and value[x] > 0
            continue
        if clause >= num_original and not _follows(work, clause, root):
            return step
        kept = begin  # literals that are not false come first, to be watched
        for i in range(begin, end):
            if value[literals[i]] >= 0:
                literals[kept], literals[i] = literals[i], literals[kept]
                kept += 1
        alive[clause] = True
        for k in range(min(end - begin, 2)):
            watch_next[2 * clause + k] = watch_head[literals[begin + k]]
            watch_head[literals[begin + k]] = 2 * clause + k
        if kept == begin + 1 and value[literals[begin]] == 0:
            conflict, root = _propagate(work, literals[begin], clause, root)
            kept -= conflict
        if kept == begin:
            return -1
    return int(steps.shape[0])


@njit(cache=True, nogil=True)
def _propagate(work: tuple[Ints, ...], literal: int, cause: int, size: int) -> tuple[bool, int]:
    """Make a literal true and propagate with two watched literals per clause; (conflict, trail size)."""
    value, reason, trail, alive, watch_head, watch_next, literals, offsets = work
    head, conflict = size, False
    value[literal], value[literal ^ 1], reason[literal], trail[size] = 1, -1, cause, literal
    size += 1
    while head < size and not conflict:
        false = trail[head] ^ 1
        head += 1
        watch, watch_head[false] = watch_head[false], -1
        while watch >= 0:
            following, clause = watch_next[watch], watch // 2
            begin, end = offsets[clause], offsets[clause + 1]
            mine = begin + watch % 2
            other = literals[begin + 1 - watch % 2] if end - begin > 1 else false
            active = alive[clause] and not conflict and value[other] <= 0
            for i in range(begin + 2, end if active else begin):
                if value[literals[i]] >= 0:
                    literals[mine], literals[i] = literals[i], literals[mine]
                    break
            watch_next[watch], watch_head[literals[mine]] = watch_head[literals[mine]], watch
            if active and literals[mine] == false:
                conflict = value[other] < 0
                if not conflict:
                    value[other], value[other ^ 1], reason[other], trail[size] = 1, -1, clause, other
                    size += 1
            watch = following
    return conflict, size


@njit(cache=True, nogil=True)
def _follows(work: tuple[Ints, ...], clause: int, root: int) -> bool:
    """Whether a clause is RUP or RAT; the assignment is as before afterwards."""
    value, reason, trail, alive, watch_head, watch_next, literals, offsets = work
    lemma = literals[offsets[clause] : offsets[clause + 1]]
    follows, base = _refute(work, lemma, -1, root)
    if not follows and lemma.size > 0:
        follows = True
        for other in range(clause):
            partner = literals[offsets[other] : offsets[other + 1]]
            if follows and alive[other] and (partner == lemma[0] ^ 1).any():
                follows, size = _refute(work, partner, lemma[0] ^ 1, base)
                for x in trail[base:size]:
                    value[x] = value[x ^ 1] = 0
    for x in trail[root:base]:
        value[x] = value[x ^ 1] = 0
    return bool(follows)


@njit(cache=True, nogil=True)
def _refute(work: tuple[Ints, ...], clause: Ints, skipped: int, size: int) -> tuple[bool, int]:
    """Assume a clause's literals false, but for one; (conflict, trail size)."""
    conflict = False
    for x in clause.copy():
        if x != skipped and not conflict:
            conflict = work[0][x] > 0
            if work[0][x] == 0:
                conflict, size = _propagate(work, x ^ 1, -1, size)
    return conflict, size
