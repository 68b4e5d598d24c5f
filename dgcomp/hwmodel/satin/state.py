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
MAX_STRENGTHENED = 8  # clauses per conflict

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

    Seed 0 decides false first and breaks ties of activity by the heap; other seeds shuffle both.
    """
    variables, clauses = _variable_arrays(formula.num_vars, seed), _clause_arrays(formula)
    r = np.zeros(1, REGISTERS)
    r["num_slots"] = r["num_original"] = np.count_nonzero(clauses["status"])
    r["arena_used"], r["occurrence_used"] = len(clauses["arena"]), len(clauses["occurrence"])
    r["heap_size"], r["variable_decay"] = formula.num_vars, variable_decay
    r["tracing"], r["proving"], r["luby"] = tracing, proving, luby
    r["spill_from"] = r["max_learned"] = 2**31
    r["next_reduce"], r["luby_u"], r["luby_v"] = 2000, 1, 1
    r["variable_increment"] = r["clause_increment"] = 1.0
    empty: dict[str, NDArray[Any]] = {"trace": np.zeros((0, 3), np.int32), "proof": np.zeros(0, np.int32)}
    return grow(State(registers=r, **variables, **clauses, **empty))


def _variable_arrays(num_vars: int, seed: int) -> dict[str, NDArray[Any]]:
    """Everything that has one entry per variable, literal or level."""
    random = np.random.default_rng(seed)
    activity = random.random(num_vars) * 1e-3 if seed else np.zeros(num_vars)
    order = np.argsort(-activity, kind="stable").astype(np.int32)
    names = ("level", "position", "trail")
    zeros: dict[str, NDArray[Any]] = {name: np.zeros(num_vars, np.int32) for name in names}
    return zeros | {
        "value": np.zeros(2 * num_vars, np.int8),
        "reason": np.full(num_vars, -1, np.int32),
        "phase": random.integers(0, 2, num_vars, dtype=np.int8) if seed else np.ones(num_vars, np.int8),
        "level_begin": np.zeros(num_vars + 2, np.int32),
        "activity": activity,
        "heap": order,
        "heap_index": np.argsort(order).astype(np.int32),
        "seen": np.zeros(num_vars, np.int8),
        "learned": np.zeros(num_vars + 1, np.int32),
        "resolved": np.zeros(num_vars + 1, np.int32),
        "stamp": np.zeros(num_vars + 2, np.int64),
        "weak": np.zeros((MAX_STRENGTHENED, 2), np.int32),
    }


def _clause_arrays(formula: Formula) -> dict[str, NDArray[Any]]:
    """Everything that has one entry per slot or literal of a clause; holds the clauses of two or more literals."""
    sizes = np.diff(formula.offsets)
    literals = formula.literals[np.repeat(sizes >= 2, sizes)]
    sizes = sizes[sizes >= 2]
    count = len(sizes)
    slots = count + max(1024, count // 4)
    arrays: dict[str, NDArray[Any]] = {
        "begin": np.zeros(slots, np.int64),
        "size": np.zeros(slots, np.int32),
        "status": np.zeros(slots, np.int8),
        "lbd": np.zeros(slots, np.int32),
        "clause_activity": np.zeros(slots),
        "free_slots": np.zeros(slots, np.int32),
        "open_clause": np.zeros((slots, 2), np.int32),
        "arena": literals.astype(np.int32),
    }
    arrays["size"][:count], arrays["status"][:count] = sizes, ORIGINAL
    arrays["begin"][1:count] = np.cumsum(sizes)[:-1]
    arrays["open_clause"][:count, 0] = sizes
    if count:
        arrays["open_clause"][:count, 1] = np.bitwise_xor.reduceat(literals, arrays["begin"][:count])
    return arrays | _occurrences(literals, arrays["size"][:count], formula.num_vars)


def _occurrences(literals: Int, size: Int, num_vars: int) -> dict[str, NDArray[Any]]:
    """Lists of slots per literal, each with room to grow by a half and in the order of the slots."""
    count = np.bincount(literals, minlength=2 * num_vars).astype(np.int32)
    capacity = (count + count // 2 + 4).astype(np.int32)
    begin = np.cumsum(capacity, dtype=np.int64) - capacity
    occurrence = np.zeros(int(capacity.sum()), np.int32)
    packed = np.repeat(np.arange(len(size), dtype=np.int32), size)[np.argsort(literals, kind="stable")]
    first = np.cumsum(count, dtype=np.int64) - count
    occurrence[np.arange(len(packed)) + np.repeat(begin - first, count)] = packed
    return {
        "occurrence_begin": begin,
        "occurrence_size": count,
        "occurrence_capacity": capacity,
        "occurrence": occurrence,
    }


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
