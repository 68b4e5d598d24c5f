"""The clause array: broadcast assignment, associative unit detection, and clauses written, strengthened and deleted."""

import numpy as np

from dgcomp.hwmodel.satin.decide import heap_insert
from dgcomp.hwmodel.satin.state import (
    ADD,
    ASSERT,
    ASSIGN,
    BACKTRACK,
    CONFLICT,
    DELETE,
    DUPLICATE,
    FREE,
    IMPLY,
    LEARN,
    LEARNED,
    REMOVE,
    SPILL,
    STRENGTHEN,
    State,
    emit,
    kernel,
    log_clause,
)

__all__ = ["backtrack", "enqueue", "has_room", "learn", "propagate", "reduce", "simplify", "strengthen"]

KEEP_LBD = 2
REDUCE_STEP = 300


@kernel
def enqueue(s: State, literal: int, reason: int) -> None:
    """Put a literal on the trail as true."""
    r = s.registers[0]
    variable = literal >> 1
    s.value[literal] = 1
    s.value[literal ^ 1] = -1
    s.level[variable] = r.level
    s.position[variable] = r.trail_size
    s.reason[variable] = reason
    s.trail[r.trail_size] = literal
    r.trail_size += 1


@kernel
def propagate(s: State) -> int:
    """Broadcast the trail's literals in order until no implication is left; slot of a conflicting clause, or -1.

    A broadcast that has begun reaches every clause even after a conflict, as on the chip.
    """
    r = s.registers[0]
    conflict = -1
    while r.queue_head < r.trail_size and conflict < 0:
        literal = s.trail[r.queue_head]
        emit(s, ASSERT if r.queue_head < r.asserted_until else ASSIGN, literal, 0)
        r.queue_head += 1
        false = literal ^ 1
        spilled = 0
        begin = s.occurrence_begin[false]
        for i in range(begin, begin + s.occurrence_size[false]):
            slot = s.occurrence[i]
            spilled += slot >= r.spill_from
            left = s.open_clause[slot, 0] - 1
            rest = s.open_clause[slot, 1] ^ false
            s.open_clause[slot, 0] = left
            s.open_clause[slot, 1] = rest
            if left != 1:
                continue
            value = s.value[rest]
            if value == 0:
                emit(s, IMPLY, slot, rest)
                enqueue(s, rest, slot)
            elif value < 0:
                # the sorter holds the negation, which no broadcast has told the clause yet
                emit(s, CONFLICT if conflict < 0 else DUPLICATE, slot, rest)
                conflict = slot if conflict < 0 else conflict
            elif s.position[rest >> 1] >= r.queue_head:
                emit(s, DUPLICATE, slot, rest)
        if spilled:
            emit(s, SPILL, spilled, 0)
        r.propagations += 1
    return conflict


@kernel
def backtrack(s: State, level: int) -> None:
    """Take back every assignment above `level`."""
    r = s.registers[0]
    emit(s, BACKTRACK, level, 0)
    if r.level <= level:
        return
    keep = s.level_begin[level + 1]
    for index in range(r.trail_size - 1, keep - 1, -1):
        literal = s.trail[index]
        variable = literal >> 1
        if index < r.queue_head:
            false = literal ^ 1
            begin = s.occurrence_begin[false]
            for i in range(begin, begin + s.occurrence_size[false]):
                slot = s.occurrence[i]
                s.open_clause[slot, 0] += 1
                s.open_clause[slot, 1] ^= false
        s.value[literal] = 0
        s.value[literal ^ 1] = 0
        s.reason[variable] = -1
        s.phase[variable] = literal & 1
        heap_insert(s, variable)
    r.trail_size = keep
    r.queue_head = min(r.queue_head, keep)
    r.level = level


@kernel
def has_room(s: State) -> bool:
    """Whether the pending clause fits its arrays and the next step fits the trace and the proof."""
    r = s.registers[0]
    occurrences = r.occurrence_used
    for i in range(r.learned_size):
        x = s.learned[i]
        if s.occurrence_size[x] == s.occurrence_capacity[x]:
            occurrences += _grown(s.occurrence_capacity[x])
    return (
        r.num_slots < s.size.size
        and r.arena_used + s.level.size < s.arena.size
        and occurrences <= s.occurrence.size
        and (not r.tracing or r.trace_used + 4 * s.size.size + 8 * s.level.size + 64 <= s.trace.shape[0])
        and (
            not r.proving or r.proof_used + 2 * s.arena.size + 4 * s.size.size + 20 * s.level.size + 64 <= s.proof.size
        )
    )


@kernel
def learn(s: State) -> None:
    """Write the learned clause into a free slot and put its asserting literal on the trail."""
    r = s.registers[0]
    literals = s.learned[: r.learned_size]
    log_clause(s, ADD, literals)
    slot = -1
    if literals.size > 1:
        slot = _free_slot(s)
        s.begin[slot] = r.arena_used
        s.size[slot] = literals.size
        s.status[slot] = LEARNED
        s.lbd[slot] = r.learned_lbd
        s.clause_activity[slot] = r.clause_increment
        s.arena[r.arena_used : r.arena_used + literals.size] = literals
        r.arena_used += literals.size
        r.num_learned += 1
        # all but the asserting literal are false, and every clause has been told so
        s.open_clause[slot, 0] = 1
        s.open_clause[slot, 1] = literals[0]
        for x in literals:
            _append_occurrence(s, x, slot)
        emit(s, LEARN, slot, literals.size)
    r.learned_literals += literals.size
    enqueue(s, literals[0], slot)
    r.asserted_until = r.trail_size
    r.learned_size = 0


@kernel
def strengthen(s: State, slot: int, literal: int) -> None:
    """Remove an unassigned literal from a clause."""
    size, begin = s.size[slot], s.begin[slot]
    clause = s.arena[begin : begin + size]
    for i in range(size):
        if clause[i] == literal:
            clause[i] = clause[size - 1]
            clause[size - 1] = literal
            break
    log_clause(s, ADD, clause[: size - 1])
    log_clause(s, REMOVE, clause)
    s.size[slot] = size - 1
    s.open_clause[slot, 0] -= 1
    s.open_clause[slot, 1] ^= literal
    first = s.occurrence_begin[literal]
    last = first + s.occurrence_size[literal] - 1
    for i in range(first, last + 1):
        if s.occurrence[i] == slot:
            s.occurrence[i] = s.occurrence[last]
            break
    s.occurrence_size[literal] -= 1
    s.registers[0].strengthened += 1
    emit(s, STRENGTHEN, slot, size - 1)


@kernel
def reduce(s: State) -> None:
    """Delete about half of the learned clauses by two thresholds that every clause node can check for itself.

    The histogram of LBDs gives the first: all clauses above it go, and of those at it the less active ones. Reasons and
    clauses of LBD <= 2 stay.
    """
    r = s.registers[0]
    counts = np.zeros(s.level.size + 2, np.int64)
    activity = np.zeros(s.level.size + 2, np.float64)
    for slot in range(r.num_slots):
        if s.status[slot] == LEARNED:
            counts[s.lbd[slot]] += 1
            activity[s.lbd[slot]] += s.clause_activity[slot]
    threshold, above = s.level.size + 1, 0
    while threshold > KEEP_LBD + 1 and above + counts[threshold] < r.num_learned // 2:
        above += counts[threshold]
        threshold -= 1
    mean_activity = activity[threshold] / max(counts[threshold], 1)
    for slot in range(r.num_slots):
        worse = s.lbd[slot] > threshold or (s.lbd[slot] == threshold and s.clause_activity[slot] < mean_activity)
        if s.status[slot] == LEARNED and worse and not _is_reason(s, slot):
            _delete(s, slot)
    r.reductions += 1
    r.next_reduce = r.conflicts + 2000 + REDUCE_STEP * r.reductions
    _compact(s)


@kernel
def simplify(s: State) -> None:
    """At level 0: delete satisfied clauses and strengthen the others by their false literals."""
    r = s.registers[0]
    for index in range(r.simplified_until, r.trail_size):
        log_clause(s, ADD, s.trail[index : index + 1])
        s.reason[s.trail[index] >> 1] = -1
    r.simplified_until = r.trail_size
    for slot in range(r.num_slots):
        if s.status[slot] == FREE:
            continue
        clause = s.arena[s.begin[slot] : s.begin[slot] + s.size[slot]]
        kept, satisfied = 0, False
        for i in range(clause.size):
            x = clause[i]
            satisfied |= s.value[x] > 0
            if s.value[x] >= 0:
                clause[i] = clause[kept]
                clause[kept] = x
                kept += 1
        if satisfied:
            _delete(s, slot)
        elif kept < clause.size:
            log_clause(s, ADD, clause[:kept])
            log_clause(s, REMOVE, clause)
            s.size[slot] = kept  # the false literals have left open_clause already
            r.strengthened += 1
            emit(s, STRENGTHEN, slot, kept)
    _compact(s)


@kernel
def _is_reason(s: State, slot: int) -> bool:
    for i in range(s.begin[slot], s.begin[slot] + s.size[slot]):
        x = s.arena[i]
        if s.value[x] > 0 and s.reason[x >> 1] == slot:
            return True
    return False


@kernel
def _delete(s: State, slot: int) -> None:
    """Free a slot; its occurrences stay until `_compact`."""
    r = s.registers[0]
    log_clause(s, REMOVE, s.arena[s.begin[slot] : s.begin[slot] + s.size[slot]])
    r.num_learned -= s.status[slot] == LEARNED
    s.status[slot] = FREE
    s.free_slots[r.num_free] = slot
    r.num_free += 1
    r.deleted += 1
    emit(s, DELETE, slot, 0)


@kernel
def _compact(s: State) -> None:
    """Close the gaps in the arena and in the occurrence lists after deletions."""
    r = s.registers[0]
    old = s.arena[: r.arena_used].copy()
    used = 0
    counts = np.zeros(s.occurrence_size.size, np.int32)
    for slot in range(r.num_slots):
        if s.status[slot] != FREE:
            begin, size = s.begin[slot], s.size[slot]
            s.arena[used : used + size] = old[begin : begin + size]
            s.begin[slot] = used
            used += size
            for i in range(begin, begin + size):
                counts[old[i]] += 1
    r.arena_used = used
    used = 0
    for x in range(counts.size):
        s.occurrence_begin[x] = used
        s.occurrence_capacity[x] = min(counts[x] + counts[x] // 2 + 4, s.occurrence_capacity[x])
        s.occurrence_size[x] = 0
        used += s.occurrence_capacity[x]
    r.occurrence_used = used
    for slot in range(r.num_slots):
        if s.status[slot] != FREE:
            for i in range(s.begin[slot], s.begin[slot] + s.size[slot]):
                x = s.arena[i]
                s.occurrence[s.occurrence_begin[x] + s.occurrence_size[x]] = slot
                s.occurrence_size[x] += 1


@kernel
def _free_slot(s: State) -> int:
    r = s.registers[0]
    if r.num_free > 0:
        r.num_free -= 1
        return int(s.free_slots[r.num_free])
    r.num_slots += 1
    return int(r.num_slots - 1)


@kernel
def _append_occurrence(s: State, literal: int, slot: int) -> None:
    """Add a slot to a literal's list, moving the list to the end of the pool when it is full."""
    r = s.registers[0]
    size = s.occurrence_size[literal]
    if size == s.occurrence_capacity[literal]:
        begin = s.occurrence_begin[literal]
        s.occurrence[r.occurrence_used : r.occurrence_used + size] = s.occurrence[begin : begin + size]
        s.occurrence_begin[literal] = r.occurrence_used
        s.occurrence_capacity[literal] = _grown(size)
        r.occurrence_used += s.occurrence_capacity[literal]
    s.occurrence[s.occurrence_begin[literal] + size] = slot
    s.occurrence_size[literal] = size + 1


@kernel
def _grown(capacity: int) -> int:
    return capacity + capacity // 2 + 4
