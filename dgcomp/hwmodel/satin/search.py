"""The search: propagate, learn from conflicts, decide; restart and delete between. Exact, whatever the clock says."""

import numpy as np
from numba import njit

from dgcomp.hwmodel.satin.analysis import analyze
from dgcomp.hwmodel.satin.array import backtrack, enqueue, has_room, learn, propagate, reduce, simplify, strengthen
from dgcomp.hwmodel.satin.decide import pick
from dgcomp.hwmodel.satin.state import ADD, END, IDLE, Int, State, emit, kernel, log_clause

__all__ = ["PAUSED", "SATISFIABLE", "UNSATISFIABLE", "assert_units", "search"]

PAUSED, SATISFIABLE, UNSATISFIABLE = -1, 1, 0

LUBY_UNIT = 64
# Glucose's rule with exponential averages: restart when recent clauses are worse than the long-term mean
RESTART_MARGIN, RESTART_MIN_CONFLICTS = 1.25, 50
FAST_DECAY, SLOW_DECAY = 1 / 32, 1 / 4096
CLAUSE_DECAY = 0.999


@njit(cache=True, nogil=True)
def search(s: State, max_propagations: int) -> int:
    """Go on until an answer, until so many propagations are done, or until an array is too small (then PAUSED)."""
    r = s.registers[0]
    stop_at = r.propagations + max_propagations
    while True:
        if not has_room(s):
            return PAUSED
        if r.pending:
            _learn_pending(s)
        before = r.propagations
        conflict = propagate(s)
        if conflict >= 0:
            r.conflicts += 1
            if r.level == 0:
                log_clause(s, ADD, s.learned[:0])
                emit(s, END, UNSATISFIABLE, 0)
                return UNSATISFIABLE
            analyze(s, conflict)
            r.pending = 1
            continue
        if r.propagations > before:
            emit(s, IDLE, 0, 0)
        if r.propagations >= stop_at:
            return PAUSED
        if _restart_due(s):
            _restart(s)
        if r.level == 0 and r.trail_size > r.simplified_until:
            simplify(s)
        if r.conflicts >= r.next_reduce or r.num_learned >= r.max_learned:
            reduce(s)
            if r.num_learned >= r.max_learned:  # all of them reasons or good ones: let the array overflow
                r.max_learned = 2 * r.num_learned
        literal = pick(s)
        if literal < 0:
            emit(s, END, SATISFIABLE, 0)
            return SATISFIABLE
        r.decisions += 1
        r.level += 1
        s.level_begin[r.level] = r.trail_size
        enqueue(s, literal, -1)
        r.asserted_until = r.trail_size


@njit(cache=True, nogil=True)
def assert_units(s: State, literals: Int) -> bool:
    """Put the formula's unit clauses on the trail; False if two contradict each other."""
    for literal in literals:
        if s.value[literal] < 0:
            log_clause(s, ADD, s.learned[:0])
            return False
        if s.value[literal] == 0:
            enqueue(s, literal, -1)
    s.registers[0].asserted_until = s.registers[0].trail_size
    return True


@kernel
def _learn_pending(s: State) -> None:
    """Strengthen what the conflict showed to be too weak, go back and learn."""
    r = s.registers[0]
    r.pending = 0
    backtrack(s, r.backjump)
    for i in range(r.num_weak):
        strengthen(s, s.weak[i, 0], s.weak[i, 1])
    learn(s)
    r.variable_increment /= r.variable_decay
    r.clause_increment /= CLAUSE_DECAY
    r.restart_conflicts += 1
    # averages start at the first value instead of 0
    r.lbd_fast += max(FAST_DECAY, 1 / r.conflicts) * (r.learned_lbd - r.lbd_fast)
    r.lbd_slow += max(SLOW_DECAY, 1 / r.conflicts) * (r.learned_lbd - r.lbd_slow)


@kernel
def _restart_due(s: State) -> bool:
    r = s.registers[0]
    if r.luby:
        return bool(r.restart_conflicts >= LUBY_UNIT * r.luby_v)
    return bool(r.restart_conflicts >= RESTART_MIN_CONFLICTS and r.lbd_fast > RESTART_MARGIN * r.lbd_slow)


@kernel
def _restart(s: State) -> None:
    r = s.registers[0]
    backtrack(s, 0)
    r.restarts += 1
    r.restart_conflicts = 0
    r.lbd_fast = r.lbd_slow
    # Knuth's (u, v) recurrence for the Luby sequence 1 1 2 1 1 2 4 ...
    if r.luby_u & -r.luby_u == r.luby_v:
        r.luby_u, r.luby_v = r.luby_u + 1, np.int64(1)
    else:
        r.luby_v *= 2
