"""Conflict analysis: reasons are asked for in reverse trail order until one literal of the current level is left."""

from dgcomp.hwmodel.satin.decide import RESCALE_ABOVE, bump
from dgcomp.hwmodel.satin.state import FETCH, JOIN, LEARNED, State, emit, kernel

__all__ = ["analyze"]


@kernel
def analyze(s: State, conflict: int) -> None:
    """Learn the clause of the first unique implication point; leaves `learned`, `backjump`, `learned_lbd` and `weak`.

    A reason that the resolvent subsumes but for the resolved literal is noted in `weak`: it may lose that literal
    (on-the-fly strengthening; Han and Somenzi, SAT 2009).
    """
    r = s.registers[0]
    r.num_weak = 0
    size, marked, index, literal, slot = 1, 0, r.trail_size, -1, conflict
    open_here = 0  # marked literals of the current level, not resolved yet
    while True:
        _fetch(s, slot)
        emit(s, JOIN, s.size[slot], 0)
        _bump_clause(s, slot)
        fresh = 0  # literals of the clause above level 0
        for i in range(s.begin[slot], s.begin[slot] + s.size[slot]):
            x = s.arena[i]
            variable = x >> 1
            fresh += s.level[variable] > 0
            if x == literal or s.seen[variable] or s.level[variable] == 0:
                continue
            s.seen[variable] = 1
            s.resolved[marked] = variable
            marked += 1
            bump(s, variable)
            if s.level[variable] == r.level:
                open_here += 1
            else:
                s.learned[size] = x
                size += 1
        if literal >= 0 and open_here >= 2 and open_here + size - 1 == fresh - 1 and r.num_weak < s.weak.shape[0]:
            s.weak[r.num_weak, 0] = slot
            s.weak[r.num_weak, 1] = literal
            r.num_weak += 1
        index -= 1
        while not s.seen[s.trail[index] >> 1] or s.level[s.trail[index] >> 1] != r.level:
            index -= 1
        literal = s.trail[index]
        open_here -= 1
        if open_here == 0:
            break
        slot = s.reason[literal >> 1]
    s.learned[0] = literal ^ 1
    r.learned_size = _minimize(s, size)
    _levels(s)
    for i in range(marked):
        s.seen[s.resolved[i]] = 0


@kernel
def _minimize(s: State, size: int) -> int:
    """Drop literals whose reason holds only marked literals and root literals; returns the new size.

    These requests do not depend on each other, so they are sent back to back.
    """
    kept, fetched = 1, 0
    for i in range(1, size):
        x = s.learned[i]
        reason = s.reason[x >> 1]
        redundant = reason >= 0
        if redundant:
            _fetch(s, reason)
            fetched += s.size[reason]
            for j in range(s.begin[reason], s.begin[reason] + s.size[reason]):
                variable = s.arena[j] >> 1
                if not s.seen[variable] and s.level[variable] > 0:
                    redundant = False
                    break
        if not redundant:
            s.learned[kept] = x
            kept += 1
    if fetched:
        emit(s, JOIN, fetched, 0)
    s.registers[0].minimized_literals += size - kept
    return kept


@kernel
def _levels(s: State) -> None:
    """Level to return to, and the literal block distance (the number of distinct levels) of the learned clause."""
    r = s.registers[0]
    r.backjump = 0
    r.learned_lbd = 1
    for i in range(1, r.learned_size):
        level = s.level[s.learned[i] >> 1]
        r.backjump = max(r.backjump, level)
        if s.stamp[level] != r.conflicts:
            s.stamp[level] = r.conflicts
            r.learned_lbd += 1


@kernel
def _fetch(s: State, slot: int) -> None:
    emit(s, FETCH, slot, s.size[slot])


@kernel
def _bump_clause(s: State, slot: int) -> None:
    r = s.registers[0]
    if s.status[slot] != LEARNED:
        return
    s.clause_activity[slot] += r.clause_increment
    if s.clause_activity[slot] > RESCALE_ABOVE:
        s.clause_activity[:] *= 1 / RESCALE_ABOVE
        r.clause_increment *= 1 / RESCALE_ABOVE
