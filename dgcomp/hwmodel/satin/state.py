"""The memory of one CDCL search: flat arrays that numba kernels share, and the trace they leave for the machine model.

A literal is coded as ``2 * variable + sign`` with variables from 0, so ``literal ^ 1`` negates it. A clause lives in
a numbered *slot*, as on the chip. Per slot two integers stand for the state of a clause node: how many of its literals
are not false yet (`open_count`) and the exclusive-or of those literals (`open_xor`), which at a count of one *is* the
unit literal. So a clause needs no watched literals: an assignment reaches every clause that holds the negated literal.

Sizes: V = variables, S = slots, A = arena cells, T = trace rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dgcomp.hwmodel.satin.dimacs import Formula

__all__ = ["COUNTERS", "TRACE", "State", "emit", "grow", "log_clause", "new_state"]

Int = NDArray[np.int32]

# Rows of the trace: (kind, a, b). What the search did, in order, and nothing about how long it takes.
# DECIDE (literal): the central unit picks; ASSERT (literal): broadcast of one that the centre knows by itself;
# ASSIGN (literal): broadcast of an implied one, in the order of the IMPLY messages; IMPLY, DUPLICATE, CONFLICT
# (slot, literal): messages to the centre that the last broadcast caused; IDLE: no implication is left;
# FETCH (slot, literals): a clause is asked for; JOIN (literals): all asked for are there; BACKTRACK (level);
# LEARN (slot, literals); DELETE (slot); STRENGTHEN (slot, literals); SPILL (visits): clauses outside the chip that the
# last broadcast touched; END (1 satisfiable, 0 unsatisfiable).
(
    DECIDE,
    ASSERT,
    ASSIGN,
    IMPLY,
    DUPLICATE,
    CONFLICT,
    IDLE,
    FETCH,
    JOIN,
    BACKTRACK,
    LEARN,
    DELETE,
    STRENGTHEN,
    SPILL,
    END,
) = range(15)
_KINDS = "DECIDE ASSERT ASSIGN IMPLY DUPLICATE CONFLICT IDLE FETCH JOIN BACKTRACK LEARN DELETE STRENGTHEN SPILL END"
TRACE = _KINDS.split()

FREE, ORIGINAL, LEARNED = 0, 1, 2
ADD, REMOVE = 0, 1

_INTEGERS = """queue_head trail_size level num_slots num_free num_learned arena_used occurrence_used trace_used
proof_used heap_size learned_size learned_lbd backjump num_weak pending asserted_until num_original spill_from
max_learned tracing proving luby restart_conflicts next_reduce simplified_until luby_u luby_v"""
COUNTERS = [
    "conflicts",
    "decisions",
    "propagations",
    "restarts",
    "learned_literals",
    "minimized_literals",
    "strengthened",
]
COUNTERS += ["deleted", "reductions"]
_FLOATS = ["variable_increment", "clause_increment", "variable_decay", "lbd_fast", "lbd_slow"]
REGISTERS = np.dtype(
    [(name, np.int64) for name in _INTEGERS.split() + COUNTERS] + [(name, np.float64) for name in _FLOATS]
)


# Without their Python wrappers, which unpack every array, the kernels compile in half the time.
kernel = njit(cache=True, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)  # type: ignore[call-overload]


class State(NamedTuple):
    """Arrays of one search; `grow` returns a new tuple when one of them gets too small."""

    registers: NDArray[Any]  # one record of REGISTERS
    value: NDArray[np.int8]  # per literal: 1 true, -1 false, 0 open
    level: Int  # per variable
    position: Int  # per variable: its place on the trail
    reason: Int  # per variable: slot of the clause that implied it, -1 for none
    phase: NDArray[np.int8]  # per variable: sign bit to decide next
    trail: Int
    level_begin: Int  # per level: trail size when it was opened
    activity: NDArray[np.float64]
    heap: Int
    heap_index: Int  # per variable, -1 when not in the heap
    seen: NDArray[np.int8]
    learned: Int  # the clause being learned, the asserting literal first
    resolved: Int  # literals to unmark after an analysis
    stamp: NDArray[np.int64]  # per level, for counting distinct levels
    weak: Int  # pairs (slot, literal): clauses to strengthen after this conflict
    begin: NDArray[np.int64]  # per slot: first arena cell
    size: Int  # per slot: literals
    status: NDArray[np.int8]  # per slot: FREE, ORIGINAL or LEARNED
    lbd: Int
    clause_activity: NDArray[np.float64]
    free_slots: Int  # stack
    open_clause: Int  # [S, 2]: open_count, open_xor; side by side for one cache line
    arena: Int
    occurrence_begin: NDArray[np.int64]  # per literal: its list in `occurrence`
    occurrence_size: Int
    occurrence_capacity: Int
    occurrence: Int
    trace: Int  # [T, 3]
    proof: Int  # records (ADD or REMOVE, size, literals...)


@kernel
def emit(s: State, kind: int, a: int, b: int) -> None:
    """Append one row to the trace; a search without a machine leaves none."""
    r = s.registers[0]
    if r.tracing:
        row = s.trace[r.trace_used]
        row[0] = kind
        row[1] = a
        row[2] = b
        r.trace_used += 1


@kernel
def log_clause(s: State, kind: int, literals: Int) -> None:
    """Append one clause to the proof."""
    r = s.registers[0]
    if r.proving:
        s.proof[r.proof_used] = kind
        s.proof[r.proof_used + 1] = literals.size
        s.proof[r.proof_used + 2 : r.proof_used + 2 + literals.size] = literals
        r.proof_used += 2 + literals.size


def new_state(formula: Formula, *, seed: int, luby: bool, variable_decay: float, tracing: bool, proving: bool) -> State:
    """Arrays with every clause of two or more literals in its slot, in the formula's order; the caller asserts units.

    Seed 0 decides the lowest variable first and false first; other seeds shuffle both.
    """
    num_vars = formula.num_vars
    sizes = np.diff(formula.offsets)
    long = np.flatnonzero(sizes >= 2)
    num_clauses = len(long)
    slots = num_clauses + max(1024, num_clauses // 4)
    begin = np.zeros(slots, np.int64)
    size = np.zeros(slots, np.int32)
    size[:num_clauses] = sizes[long]
    begin[1:num_clauses] = np.cumsum(size[:num_clauses])[:-1]
    literals = formula.literals[np.repeat(sizes >= 2, sizes)]
    arena = literals.astype(np.int32)
    open_clause = np.zeros((slots, 2), np.int32)
    open_clause[:num_clauses, 0] = size[:num_clauses]
    if num_clauses:
        open_clause[:num_clauses, 1] = np.bitwise_xor.reduceat(literals, begin[:num_clauses])
    status = np.zeros(slots, np.int8)
    status[:num_clauses] = ORIGINAL
    occurrence_begin, occurrence_size, capacity, occurrence = _occurrences(literals, size[:num_clauses], num_vars)
    random = np.random.default_rng(seed)
    activity = random.random(num_vars) * 1e-3 if seed else np.zeros(num_vars)
    order = np.argsort(-activity, kind="stable").astype(np.int32)
    registers = np.zeros(1, REGISTERS)
    registers["num_slots"] = registers["num_original"] = num_clauses
    registers["arena_used"], registers["occurrence_used"] = len(literals), int(capacity.sum())
    registers["heap_size"], registers["variable_decay"] = num_vars, variable_decay
    registers["tracing"], registers["proving"], registers["luby"] = tracing, proving, luby
    registers["spill_from"] = registers["max_learned"] = 2**31
    registers["next_reduce"], registers["luby_u"], registers["luby_v"] = 2000, 1, 1
    registers["variable_increment"] = registers["clause_increment"] = 1.0
    state = State(
        registers=registers,
        value=np.zeros(2 * num_vars, np.int8),
        level=np.zeros(num_vars, np.int32),
        position=np.zeros(num_vars, np.int32),
        reason=np.full(num_vars, -1, np.int32),
        phase=random.integers(0, 2, num_vars, dtype=np.int8) if seed else np.ones(num_vars, np.int8),
        trail=np.zeros(num_vars, np.int32),
        level_begin=np.zeros(num_vars + 2, np.int32),
        activity=activity,
        heap=order,
        heap_index=np.argsort(order).astype(np.int32),
        seen=np.zeros(num_vars, np.int8),
        learned=np.zeros(num_vars + 1, np.int32),
        resolved=np.zeros(num_vars + 1, np.int32),
        stamp=np.zeros(num_vars + 2, np.int64),
        weak=np.zeros((8, 2), np.int32),
        begin=begin,
        size=size,
        status=status,
        lbd=np.zeros(slots, np.int32),
        clause_activity=np.zeros(slots),
        free_slots=np.zeros(slots, np.int32),
        open_clause=open_clause,
        arena=arena,
        occurrence_begin=occurrence_begin,
        occurrence_size=occurrence_size,
        occurrence_capacity=capacity,
        occurrence=occurrence,
        trace=np.zeros((0, 3), np.int32),
        proof=np.zeros(0, np.int32),
    )
    return grow(state)


def _occurrences(literals: Int, size: Int, num_vars: int) -> tuple[NDArray[np.int64], Int, Int, Int]:
    """Lists of slots per literal, each with room to grow by a half and in the order of the slots."""
    count = np.bincount(literals, minlength=2 * num_vars).astype(np.int32)
    capacity = (count + count // 2 + 4).astype(np.int32)
    begin = np.concatenate([[0], np.cumsum(capacity[:-1], dtype=np.int64)]) if num_vars else np.zeros(0, np.int64)
    occurrence = np.zeros(int(capacity.sum()), np.int32)
    order = np.argsort(literals, kind="stable")
    packed = np.repeat(np.arange(len(size), dtype=np.int32), size)[order]
    first = np.concatenate([[0], np.cumsum(count[:-1], dtype=np.int64)]) if num_vars else begin
    occurrence[np.arange(len(packed)) + np.repeat(begin - first, count)] = packed
    return begin, count, capacity, occurrence


def grow(state: State) -> State:
    """Make room for at least one more step of the search, whatever it learns, deletes or logs."""
    r = state.registers[0]
    num_vars, changed = len(state.level), {}
    if len(state.arena) - r["arena_used"] < 2 * num_vars + 16:
        changed["arena"] = _longer(state.arena, 2 * len(state.arena) + 4 * num_vars)
    if len(state.occurrence) < 3 * r["occurrence_used"] + 8 * num_vars:
        changed["occurrence"] = _longer(state.occurrence, 4 * int(r["occurrence_used"]) + 16 * num_vars)
    slots = len(state.size)
    if slots - r["num_slots"] < 16:
        slots *= 2
        for name in ("begin", "size", "status", "lbd", "clause_activity", "free_slots", "open_clause"):
            changed[name] = _longer(getattr(state, name), slots)
    if r["tracing"] and len(state.trace) < trace_bound(num_vars, slots):
        changed["trace"] = _longer(state.trace, max(1 << 16, 2 * trace_bound(num_vars, slots)))
    cells = len(changed.get("arena", state.arena))
    if r["proving"] and len(state.proof) < proof_bound(num_vars, slots, cells):
        changed["proof"] = _longer(state.proof, 2 * proof_bound(num_vars, slots, cells))
    return state._replace(**changed)


def trace_bound(num_vars: int, slots: int) -> int:
    """Rows that one step can add: a clause implies or conflicts once, a variable is assigned and explained once."""
    return 4 * slots + 8 * num_vars + 64


def proof_bound(num_vars: int, slots: int, cells: int) -> int:
    """Cells that one step can add: a clause learned, eight strengthened, at worst every clause rewritten or deleted."""
    return 2 * cells + 4 * slots + 20 * num_vars + 64


def _longer(array: NDArray[Any], length: int) -> NDArray[Any]:
    """A copy with zeros appended."""
    longer = np.zeros((length, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


def drain(state: State) -> tuple[Int, Int]:
    """Copies of the trace rows and proof cells since the last call; both buffers are empty afterwards."""
    r = state.registers[0]
    trace, proof = state.trace[: r["trace_used"]].copy(), state.proof[: r["proof_used"]].copy()
    r["trace_used"] = r["proof_used"] = 0
    return trace, proof


def proof_lines(proof: Int) -> Sequence[str]:
    """Lines of a DRAT file, one clause each, deletions with a leading ``d``."""
    cells, lines, at = proof.tolist(), [], 0
    while at < len(cells):
        kind, size = cells[at], cells[at + 1]
        words = [str(-(x >> 1) - 1 if x & 1 else (x >> 1) + 1) for x in cells[at + 2 : at + 2 + size]]
        lines.append(" ".join([*(["d"] if kind == REMOVE else []), *words, "0"]))
        at += 2 + size
    return lines
