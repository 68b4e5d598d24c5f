"""The clock, level "wave": closed formulas per wave of implications instead of messages.

Reconstruction. A wave is what one wave before it implied. Only its size, and which literals of the wave before caused
its first and its last one, enter; distances are replaced by their expectation over evenly used banks. With a round trip
R(m) for the farthest of m random banks, a wave of n literals whose causes were sent from F to L is sent from

    begin = max(end of the wave before, F + R(1))    to    end = max(begin + n, L + R(n) + 1),

evenly spaced between. Links never wait. Two contexts follow from mean-value analysis of a closed queue with one server,
the central unit, which each context occupies for a share u of its cycles when alone: they stretch by ``1 + u * u``.
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

__all__ = ["Waves", "new_waves", "run_waves", "stretched_cycles"]

_TOTALS = """now busy begin end width issued first_cause last_cause next_size conflict_at fetches flits literals
flit_hops broadcasts messages clauses clause_cycles spill_done"""
TOTALS = np.dtype([(name, np.float64) for name in _TOTALS.split()])


class Waves(NamedTuple):
    """Clock of one context, and what it has counted."""

    totals: NDArray[Any]  # one record of TOTALS
    cycles: NDArray[np.float64]  # per kind
    counts: NDArray[np.int64]  # per kind
    expected_depth: NDArray[np.float64]  # [m]: expected distance of the farthest of m + 1 random banks, hops


def new_waves(machine: Machine, num_original: int) -> Waves:
    """A clock at zero for a machine that holds so many clauses."""
    totals = np.zeros(1, TOTALS)
    totals["clauses"] = min(num_original, machine.capacity)
    depth = machine.timing().depth
    below = np.cumsum(np.bincount(depth)) / len(depth)
    draws = np.arange(1, 257)
    expected = (1 - below[None, :] ** draws[:, None]).sum(axis=1)
    return Waves(totals, np.zeros(len(TRACE)), np.zeros(len(TRACE), np.int64), expected)


def stretched_cycles(waves: Waves, contexts: int) -> float:
    """Cycles of a context that shares its central unit with another one like it."""
    alone, busy = float(waves.totals["now"][0]), float(waves.totals["busy"][0])
    return alone * (1 + (contexts - 1) * (busy / alone) ** 2) if alone else 0.0


@njit(cache=True, nogil=True)
def run_waves(w: Waves, t: Timing, trace: NDArray[np.int32], spill_from: int) -> None:
    """Advance the clock over the rows of a trace; slots from `spill_from` on are outside the chip."""
    c = w.totals[0]
    for row in range(trace.shape[0]):
        kind, a, b = trace[row, 0], trace[row, 1], trace[row, 2]
        before = c.now
        if kind in (ASSERT, ASSIGN):
            _issue(w, t, kind)
        elif kind <= CONFLICT and kind >= IMPLY:
            _implied(w, t, kind)
        elif kind == SPILL:
            c.spill_done = max(c.now, c.spill_done) + a * t.spill_visit
            c.busy += a * t.spill_visit
            c.now = c.spill_done
        elif kind == FETCH:
            c.now = max(c.now, c.conflict_at)
            c.fetches += 1
            c.literals += b
            flits = clause_flits(t, b)
            c.flits += flits
            _message(w, flits + 1)
        elif kind == JOIN:
            _join(w, t)
        else:
            _central(w, t, kind, a, b, spill_from)
        w.cycles[kind] += c.now - before
        w.counts[kind] += 1
        c.clause_cycles += c.clauses * (c.now - before)


@kernel
def _issue(w: Waves, t: Timing, kind: int) -> None:
    """Broadcast one literal; the first of a wave waits for the wave before."""
    c = w.totals[0]
    if kind == ASSIGN and c.issued == c.width:
        size = c.next_size
        first = _sent(w, c.first_cause) + _round_trip(w, t, 1.0)
        last = _sent(w, c.last_cause) + _round_trip(w, t, size)
        c.begin = max(c.now, first)
        c.end = max(c.begin + size, last + 1)
        c.width, c.issued, c.next_size = size, 0.0, 0.0
    if kind == ASSERT:
        if c.issued == c.width:
            c.begin, c.end, c.width, c.issued, c.next_size = c.now, c.now, 0.0, 0.0, 0.0
        c.width += 1
        c.end += 1
    c.issued += 1
    c.busy += 1
    c.now = max(c.now, _sent(w, c.issued - 1) + 1)
    c.broadcasts += 1
    c.flit_hops += t.depth.size - 1


@kernel
def _sent(w: Waves, index: float) -> float:
    """Cycle at which a literal of the current wave is broadcast."""
    c = w.totals[0]
    return float(c.begin + (c.end - 1 - c.begin) * index / max(c.width - 1, 1.0))


@kernel
def _round_trip(w: Waves, t: Timing, draws: float) -> float:
    depth = w.expected_depth[min(int(draws), w.expected_depth.size) - 1]
    return float(2 * depth * t.hop + t.match + 1 + t.sort)


@kernel
def _implied(w: Waves, t: Timing, kind: int) -> None:
    """Note which literals of this wave caused the first and the last of the next, or the conflict."""
    c = w.totals[0]
    _message(w, 1.0)
    if kind == IMPLY:
        if c.next_size == 0:
            c.first_cause = c.issued - 1
        c.last_cause = c.issued - 1
        c.next_size += 1
    elif kind == CONFLICT:
        c.conflict_at = _sent(w, c.issued - 1) + _round_trip(w, t, 1.0) - t.sort


@kernel
def _join(w: Waves, t: Timing) -> None:
    """Wait for the clauses asked for: the farthest request, or the sorter if it takes longer to take them all."""
    c = w.totals[0]
    far = w.expected_depth[min(int(c.fetches), w.expected_depth.size) - 1]
    near = w.expected_depth[0]
    one = c.flits / c.fetches
    arrived = max(c.fetches + 2 * far * t.hop + one, 1 + 2 * near * t.hop + c.flits) + t.read - 1
    work = c.literals * t.analyze
    c.now += arrived + work
    c.busy += c.fetches + work
    c.fetches = c.flits = c.literals = 0.0


@kernel
def _central(w: Waves, t: Timing, kind: int, a: int, b: int, spill_from: int) -> None:
    """Operations that occupy the central unit for a known time, and the wait for idle."""
    c = w.totals[0]
    if kind == IDLE:
        c.now = max(c.now - 1 + idle_round_trip(t), c.spill_done)
    elif kind == END:
        c.now = max(c.now, c.conflict_at)
    else:
        busy = float(central_cycles(t, kind, a, b))
        if kind == BACKTRACK:
            c.broadcasts += 1
            c.flit_hops += t.depth.size - 1
        elif kind in (LEARN, DELETE, STRENGTHEN):
            _message(w, busy)
            if a < spill_from and kind != STRENGTHEN:
                c.clauses += 1 if kind == LEARN else -1
        c.now += busy
        c.busy += busy
    if kind in (IDLE, BACKTRACK):
        c.width = c.issued = c.next_size = c.conflict_at = 0.0


@kernel
def _message(w: Waves, flits: float) -> None:
    """Count one message of so many flits over the expected distance."""
    c = w.totals[0]
    c.messages += 1
    c.flit_hops += flits * w.expected_depth[0]
