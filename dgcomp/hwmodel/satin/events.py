"""The clock, level "event": every message of the trace travels the mesh hop by hop and waits where links are taken.

Reconstruction. The central unit sends at most one flit per cycle. What it broadcasts leaves it along a tree (its column
first, then the rows), so two broadcasts never meet; a bank hears one ``depth x hop`` cycles after it was sent. Messages
to the centre go the same tree backwards, one flit per link and cycle, first come first served, and end in the sorter,
which takes one flit per cycle. Implied literals are broadcast in the order of their causes, so the search does not
depend on the clock. Idle is known when the last broadcast has reached the farthest bank, an AND-tree has brought that
back and no message is left.

Each context plays its own trace; all of them share the central unit, the mesh and the array. `run` stops when a context
has played all rows that it was given, and goes on from there after `feed`.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dgcomp.hwmodel.satin.charges import central_cycles, clause_flits, idle_round_trip
from dgcomp.hwmodel.satin.machine import Machine, Timing
from dgcomp.hwmodel.satin.state import (
    ASSERT,
    ASSIGN,
    BACKTRACK,
    CONFLICT,
    DELETE,
    END,
    FETCH,
    IDLE,
    IMPLY,
    JOIN,
    LEARN,
    SPILL,
    STRENGTHEN,
    TRACE,
    kernel,
)

__all__ = ["Engine", "feed", "new_engine", "run"]

REPLY = len(TRACE)  # message kinds are IMPLY, DUPLICATE, CONFLICT and this
STARVED, WAITING, SLEEPING, DONE = range(4)
RING = 4096

# by numba: as calls, the two that every hop takes would spend their time on passing the engine's arrays
inlined = njit(inline="always")

# in_flight, replies_open: messages that this phase, or an analysis, still waits for; clock: end of the last operation
_CONTEXT = """row rows state phase ready num_original num_sent num_assigned in_flight last_issue last_arrival
spill_done conflict_open replies_open clock"""
CONTEXT = np.dtype([(name, np.int64) for name in _CONTEXT.split()])
_GLOBAL = "now center_free busy num_events num_free flit_hops broadcasts messages clauses clauses_at logged"
GLOBAL = np.dtype([(name, np.int64) for name in _GLOBAL.split()] + [("clause_cycles", np.float64)])


class Engine(NamedTuple):
    """State of a replay. C = contexts, M = messages in flight at most, T = trace rows at most."""

    shared: NDArray[Any]  # one record of GLOBAL
    contexts: NDArray[Any]  # [C] of CONTEXT
    trace: NDArray[np.int32]  # [C, T, 3]
    arrival: NDArray[np.int64]  # [C, variables]: when the implication of each assignment reached the sorter, -1 not yet
    cycles: NDArray[np.int64]  # [C, kinds]: cycles that each kind of operation took, as its context saw it
    counts: NDArray[np.int64]  # [C, kinds]
    link_free: NDArray[np.int64]  # per bank: when its link inwards (the centre's: the sorter) is free
    ring: NDArray[np.int64]  # [RING, 2]: first and last event of each of the next cycles, -1 for none
    event: NDArray[
        np.int64
    ]  # [M, 2]: cycle, next event of the same; numbers below C wake a context, others move a message
    message: NDArray[np.int64]  # [M, 6]: bank, context, kind, flits, phase, index
    free: NDArray[np.int64]  # [M]: stack of unused event numbers
    log: NDArray[np.int64]  # [L, 5]: cycle, context, kind, a, b


def new_engine(machine: Machine, num_original: int, num_vars: int, contexts: int) -> Engine:
    """An idle machine that holds so many clauses for so many contexts."""
    in_flight = 1024
    shared = np.zeros(1, GLOBAL)
    shared["clauses"] = min(num_original, machine.capacity)
    shared["num_free"] = in_flight - contexts
    states = np.zeros(contexts, CONTEXT)
    states["num_original"] = num_original
    return Engine(
        shared=shared,
        contexts=states,
        trace=np.zeros((contexts, 0, 3), np.int32),
        arrival=np.full((contexts, num_vars + 1), -1, np.int64),
        cycles=np.zeros((contexts, len(TRACE)), np.int64),
        counts=np.zeros((contexts, len(TRACE)), np.int64),
        link_free=np.zeros(machine.num_banks, np.int64),
        ring=np.full((RING, 2), -1, np.int64),
        event=np.zeros((in_flight, 2), np.int64),
        message=np.zeros((in_flight, 6), np.int64),
        free=np.roll(np.arange(in_flight), -contexts),
        log=np.zeros((0, 5), np.int64),
    )


def feed(engine: Engine, context: int, trace: NDArray[np.int32], *, log: bool = False) -> Engine:
    """Give a context its next rows; it must have played those before."""
    longest = max(engine.trace.shape[1], len(trace))
    rows = engine.trace
    if longest > rows.shape[1]:
        rows = np.zeros((len(rows), longest, 3), np.int32)
        rows[:, : engine.trace.shape[1]] = engine.trace
    rows[context, : len(trace)] = trace
    engine.contexts["row"][context] = 0
    engine.contexts["rows"][context] = len(trace)
    # an implied literal may be a message in flight, a row played leaves one line in the log
    most = len(engine.message) - int(engine.shared["num_free"][0]) + len(rows) * longest + 64
    engine = engine._replace(
        trace=rows, log=np.zeros((2 * len(rows) * longest + 64, 5), np.int64) if log else engine.log
    )
    return engine if len(engine.message) >= most else _more_messages(engine, 2 * most)


def _more_messages(engine: Engine, length: int) -> Engine:
    old = len(engine.message)
    message, event, free = (
        np.zeros((length, *x.shape[1:]), np.int64) for x in (engine.message, engine.event, engine.free)
    )
    message[:old], event[:old] = engine.message, engine.event
    count = int(engine.shared["num_free"][0])
    free[:count] = engine.free[:count]
    free[count : count + length - old] = np.arange(old, length)
    engine.shared["num_free"] = count + length - old
    return engine._replace(message=message, event=event, free=free)


@njit(cache=True, nogil=True)
def run(e: Engine, t: Timing) -> int:
    """Play until a context starves (its number is returned) or one reaches its end (-1)."""
    g = e.shared[0]
    for context in range(e.contexts.size):
        if e.contexts[context].state == STARVED:
            _advance(e, t, context)
    while True:
        for context in range(e.contexts.size):
            if e.contexts[context].state == DONE:
                return -1
            if e.contexts[context].state == STARVED:
                return context
        if g.num_events == 0:
            return -2  # cannot happen: every context waits for a message and none is under way
        number = _pop(e)
        if e.event[number, 0] > g.now:
            _push(e, e.event[number, 0], number)
        elif number < e.contexts.size:
            e.contexts[number].state = WAITING
            _advance(e, t, number)
        elif e.message[number, 0] < 0:
            _arrive(e, t, number)
        else:
            # over one link, or from the centre's router into the sorter, which has a message when its last flit is in
            bank, flits = e.message[number, 0], e.message[number, 3]
            leave = max(g.now, e.link_free[bank])
            e.link_free[bank] = leave + flits
            e.message[number, 0] = t.parent[bank]
            _push(e, leave + (t.hop if t.parent[bank] >= 0 else flits), number)


@kernel
def _advance(e: Engine, t: Timing, context: int) -> None:
    """Let a context do what it can do now."""
    g, c = e.shared[0], e.contexts[context]
    while True:
        if c.row == c.rows:
            c.state = STARVED
            return
        kind = np.int64(e.trace[context, c.row, 0])
        a = np.int64(e.trace[context, c.row, 1])
        b = np.int64(e.trace[context, c.row, 2])
        if IMPLY <= kind <= CONFLICT or kind == SPILL:
            _log(e, _answer(e, t, context, kind, a), context, kind, a, b)
        else:
            start = _earliest(e, t, context, kind)
            if start < 0:
                c.state = WAITING
                return
            if start > g.now:
                c.state = SLEEPING
                _push(e, start, context)
                return
            _log(e, g.now, context, kind, a, b)
            _execute(e, t, context, kind, a, b)
            e.cycles[context, kind] += c.ready - c.clock
            c.clock = c.ready
            if kind == END:
                c.state = DONE
                return
        e.counts[context, kind] += 1
        c.row += 1


@kernel
def _earliest(e: Engine, t: Timing, context: int, kind: int) -> int:
    """Cycle at which an operation can begin, as far as is known; -1 if a message must come first."""
    g, c = e.shared[0], e.contexts[context]
    if kind == IDLE:
        if c.in_flight > 0:
            return -1
        return int(max(c.ready, c.last_issue + idle_round_trip(t), c.last_arrival + 1, c.spill_done))
    if c.conflict_open and (kind in (FETCH, END)):
        return -1
    if kind == JOIN and c.replies_open > 0:
        return -1
    start = max(g.center_free, c.ready)
    if kind == ASSIGN:
        arrival = e.arrival[context, c.num_assigned]
        if arrival < 0:
            return -1
        start = max(start, arrival + t.sort)
    return int(c.ready if kind == END else start)


@kernel
def _execute(e: Engine, t: Timing, context: int, kind: int, a: int, b: int) -> None:
    """Occupy the central unit with an operation that begins now, and send what it sends."""
    g, c = e.shared[0], e.contexts[context]
    busy = central_cycles(t, kind, a, b)
    if kind in (ASSERT, ASSIGN):
        c.num_assigned += kind == ASSIGN
        c.last_issue = g.now
        _broadcast(e, 1)
    elif kind in (IDLE, BACKTRACK):
        # a new phase: messages still under way for a conflict's phase are dropped at the sorter
        c.phase += 1
        e.arrival[context, : c.num_sent] = -1
        c.num_sent = c.num_assigned = c.in_flight = 0
        c.spill_done = 0
        if kind == BACKTRACK:
            _broadcast(e, 1)
    elif kind == FETCH:
        _request(e, t, context, a, b)
    elif kind == LEARN:
        _unicast(e, t, context, a, busy)
        _count_clauses(e, t, context, a, 1)
    elif kind == DELETE:
        _unicast(e, t, context, a, busy)
        _count_clauses(e, t, context, a, -1)
    elif kind == STRENGTHEN:
        _unicast(e, t, context, a, busy)
    elif kind == END:
        _count_clauses(e, t, context, 0, 0)
    c.ready = g.now + busy
    if busy > 0:
        g.center_free = c.ready
        g.busy += busy


@kernel
def _answer(e: Engine, t: Timing, context: int, kind: int, a: int) -> int:
    """What clauses do about the last broadcast: send implications and conflicts, or (spilled ones) occupy the CPU.

    Returns the cycle of the first.
    """
    g, c = e.shared[0], e.contexts[context]
    if kind == SPILL:
        begin = max(g.center_free, c.last_issue + 1)
        g.center_free = c.spill_done = begin + a * t.spill_visit
        g.busy += a * t.spill_visit
        return int(begin)
    index = np.int64(-1)
    if kind == IMPLY:
        index = c.num_sent
        c.num_sent += 1
    elif kind == CONFLICT:
        c.conflict_open = 1
    c.in_flight += 1
    bank = _bank(e, t, context, a)
    if bank < 0:  # found by the CPU among the spilled clauses
        bank, time = t.center, c.last_issue + t.spill_visit
    else:
        time = c.last_issue + t.depth[bank] * t.hop + t.match
    _send(e, t, time, bank, context, kind, 1, index)
    return int(time)


@kernel
def _request(e: Engine, t: Timing, context: int, slot: int, literals: int) -> None:
    """Ask a clause node for its literals; a spilled clause is at hand."""
    g, c = e.shared[0], e.contexts[context]
    bank = _bank(e, t, context, slot)
    c.replies_open += 1
    flits = clause_flits(t, literals)
    if bank < 0:
        _send(e, t, g.now + t.spill_visit, t.center, context, REPLY, flits, -1)
    else:
        _unicast(e, t, context, slot, 1)
        _send(e, t, g.now + t.depth[bank] * t.hop + t.read, bank, context, REPLY, flits, -1)


@kernel
def _bank(e: Engine, t: Timing, context: int, slot: int) -> int:
    """Bank of a context's clause; -1 if it is spilled. Original clauses are shared, learned ones take turns."""
    place = _place(e, context, slot)
    return int(place * t.stride % t.depth.size if place < t.capacity else -1)


@kernel
def _place(e: Engine, context: int, slot: int) -> int:
    original = int(e.contexts[context].num_original)
    return int(slot if slot < original else original + (slot - original) * e.contexts.size + context)


@kernel
def _broadcast(e: Engine, flits: int) -> None:
    g = e.shared[0]
    g.broadcasts += 1
    g.flit_hops += flits * (e.link_free.size - 1)


@kernel
def _unicast(e: Engine, t: Timing, context: int, slot: int, flits: int) -> None:
    bank = _bank(e, t, context, slot)
    if bank >= 0:
        e.shared[0].messages += 1
        e.shared[0].flit_hops += flits * t.depth[bank]


@kernel
def _count_clauses(e: Engine, t: Timing, context: int, slot: int, change: int) -> None:
    """Keep the integral of occupied clause nodes over time."""
    g = e.shared[0]
    g.clause_cycles += g.clauses * (g.now - g.clauses_at)
    g.clauses_at = g.now
    if _place(e, context, slot) < t.capacity:
        g.clauses += change


@kernel
def _send(e: Engine, t: Timing, time: int, bank: int, context: int, kind: int, flits: int, index: int) -> None:
    """Let a message to the centre appear at a bank."""
    g = e.shared[0]
    g.num_free -= 1
    number = e.free[g.num_free]
    row = e.message[number]
    row[0], row[1], row[2], row[3], row[4], row[5] = bank, context, kind, flits, e.contexts[context].phase, index
    g.messages += 1
    g.flit_hops += flits * t.depth[bank]
    _push(e, time, number)


@kernel
def _arrive(e: Engine, t: Timing, number: int) -> None:
    """Hand a message that is in the sorter to its context."""
    g = e.shared[0]
    e.free[g.num_free] = number
    g.num_free += 1
    context, kind = e.message[number, 1], e.message[number, 2]
    c = e.contexts[context]
    if kind == REPLY:
        c.replies_open -= 1
    elif e.message[number, 4] == c.phase:
        c.in_flight -= 1
        c.last_arrival = g.now
        if kind == IMPLY:
            e.arrival[context, e.message[number, 5]] = g.now
        elif kind == CONFLICT:
            c.conflict_open = 0
    if c.state == WAITING:
        _advance(e, t, context)


@kernel
def _log(e: Engine, time: int, context: int, kind: int, a: int, b: int) -> None:
    g = e.shared[0]
    if g.logged < e.log.shape[0]:
        row = e.log[g.logged]
        row[0], row[1], row[2], row[3], row[4] = time, context, kind, a, b
        g.logged += 1


@inlined
def _push(e: Engine, time: int, number: int) -> None:
    """Enter an event for a cycle; what lies beyond the ring waits in its last place and is entered again there."""
    g = e.shared[0]
    place = e.ring[min(time, g.now + RING - 1) % RING]
    e.event[number, 0], e.event[number, 1] = time, -1
    if place[0] < 0:
        place[0] = number
    else:
        e.event[place[1], 1] = number
    place[1] = number
    g.num_events += 1


@inlined
def _pop(e: Engine) -> int:
    """Take the next event and set the clock to its place in the ring."""
    g = e.shared[0]
    while e.ring[g.now % RING, 0] < 0:
        g.now += 1
    place = e.ring[g.now % RING]
    number = place[0]
    place[0] = e.event[number, 1]
    g.num_events -= 1
    return int(number)
