"""The two clocks: events against a simulator that moves every flit every cycle, waves against events, contexts."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp.hwmodel import satin
from dgcomp.hwmodel.satin import events, state
from dgcomp.hwmodel.satin.families import adder_equivalence, pigeonhole, planted_communities, random_ksat
from dgcomp.hwmodel.satin.search import search

SMALL = satin.Machine(rows=4, columns=5, center=(2, 1), capacity=1000)

INSTANCES = {
    "random 50": random_ksat(50, 213, seed=1),
    "random 100": random_ksat(100, 426, seed=2),
    "pigeonhole 6": pigeonhole(6),
    "adders 12": adder_equivalence(12),
    "planted 600": planted_communities(600, 2400),
}


def _arrivals_by_cycle(machine: satin.Machine, sends: list[tuple[int, int]]) -> list[int]:
    """Cycles at which one-flit messages, sent at (cycle, bank), reach the sorter; looks at every router every cycle."""
    timing = machine.timing()
    queues: list[deque[int]] = [deque() for _ in range(machine.num_banks)]
    arrived: list[int] = []
    now = 0
    while len(arrived) < len(sends):
        for sent, bank in sends:
            if sent == now:
                queues[bank].append(now)
        moved = [(bank, queue.popleft()) for bank, queue in enumerate(queues) if queue]
        now += 1
        for bank, message in moved:
            if timing.parent[bank] < 0:
                arrived.append(now)
            else:
                queues[timing.parent[bank]].append(message)
    return sorted(arrived)


def _play(machine: satin.Machine, rows: list[tuple[int, int, int]], num_original: int) -> events.Engine:
    engine = events.new_engine(machine, num_original, 1000, 1)
    engine = events.feed(engine, 0, np.array(rows, np.int32))
    events.run(engine, machine.timing())
    return engine


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=60), st.integers(1, 4))
def test_links_are_first_come_first_served(slots: list[int], broadcasts: int) -> None:
    timing = SMALL.timing()
    rows, sends = [], []
    for cycle in range(broadcasts):  # asserted literals leave the centre one per cycle
        rows.append((state.ASSERT, 2 * cycle, 0))
        for slot in slots[cycle::broadcasts]:
            rows.append((state.IMPLY, slot, 0))
            bank = slot * timing.stride % SMALL.num_banks
            sends.append((cycle + int(timing.depth[bank]) + 1, bank))
    rows += [(state.ASSIGN, 0, 0)] * len(slots)
    engine = events.new_engine(SMALL, 100, 1000, 1)
    engine = events.feed(engine, 0, np.array(rows, np.int32))
    assert events.run(engine, timing) == 0
    arrivals = engine.arrival[0]
    assert sorted(arrivals[arrivals >= 0].tolist()) == _arrivals_by_cycle(SMALL, sends)


def test_round_trips_by_hand() -> None:
    # bank 0 is 3 hops from the centre at (2, 1): 3 out, 1 match, 3 back, 1 into the sorter, 1 to be picked
    rows = [(state.ASSERT, 0, 0), (state.IMPLY, 0, 2), (state.ASSIGN, 2, 0), (state.IDLE, 0, 0), (state.END, 1, 0)]
    engine = _play(SMALL, rows, 100)
    assert engine.arrival[0].max() == -1  # the phase is over
    # ASSIGN goes out in cycle 9; the farthest bank is 5 hops away: 9 + 5 + 1 + 5 + 1
    assert int(engine.shared["now"][0]) == 21
    # a fetched clause of 5 literals is 3 flits: 1 request out 3 hops, 1 read, back 3 hops, 3 flits; 5 cycles of work
    rows = [(state.FETCH, 0, 5), (state.JOIN, 5, 0), (state.LEARN, 20, 4), (state.END, 0, 0)]
    assert int(_play(SMALL, rows, 100).shared["now"][0]) == 3 + 1 + 3 + 3 + 5 + 2


def test_every_cycle_and_message_is_accounted_for() -> None:
    result = satin.solve(INSTANCES["random 50"])
    assert sum(result.stats["cycles_by_kind"].values()) == result.cycles
    counts = result.stats["messages_by_kind"]
    assert counts["ASSERT"] + counts["ASSIGN"] == result.stats["propagations"]
    assert counts["DECIDE"] == result.stats["decisions"]
    assert counts["CONFLICT"] == result.stats["conflicts"]
    assert counts["BACKTRACK"] >= counts["LEARN"]
    chip = satin.Machine()
    fewest, most = (chip.clause_power(n) * result.seconds for n in (213, 213 + result.stats["conflicts"]))
    assert fewest <= result.joules - chip.energy_j(0, result.stats["flit_hops"]) <= most


@pytest.mark.parametrize("name", INSTANCES)
def test_waves_agree_with_events_within_ten_percent(name: str) -> None:
    for contexts in (1, 2):
        event, wave = (satin.solve(INSTANCES[name], contexts, fidelity=f) for f in ("event", "wave"))
        assert wave.cycles == pytest.approx(event.cycles, rel=0.1)
        if contexts == 1:
            assert wave.joules == pytest.approx(event.joules, rel=0.1)


def test_two_contexts_share_the_waiting() -> None:
    formula = satin.as_formula(INSTANCES["random 50"])
    searched = state.new_state(formula, seed=0, luby=False, variable_decay=0.95, tracing=True, proving=False)
    search(searched, 10**9)
    trace, _ = state.drain(searched)
    times = []
    for contexts in (1, 2):
        engine = events.new_engine(satin.Machine(), formula.num_clauses, formula.num_vars, contexts)
        for context in range(contexts):
            engine = events.feed(engine, context, trace)
        assert events.run(engine, satin.Machine().timing()) == -1
        times.append(int(engine.shared["now"][0]))
    alone, together = times
    # the same work twice: slower than once, faster than one after the other
    assert alone < together < 2 * alone


def test_two_contexts_answer_alike() -> None:
    for clauses in INSTANCES.values():
        assert satin.solve(clauses, 2).satisfiable == satin.solve(clauses, fidelity="none").satisfiable


def test_trace_tells_one_conflict() -> None:
    lines: list[str] = []
    satin.solve(INSTANCES["random 50"], trace=lines.append)
    words = [line.split()[2] for line in lines]
    cycles = [int(line.split()[0]) for line in lines]
    assert cycles == sorted(cycles)
    conflict = words.index("CONFLICT")
    assert {"DECIDE", "ASSERT", "ASSIGN", "IMPLY", "IDLE"} <= set(words[:conflict])
    after = [w for w in words[conflict:] if w in ("FETCH", "JOIN", "BACKTRACK", "LEARN", "ASSERT")]
    learned = after.index("LEARN")
    assert after[0] == "FETCH"
    assert after[learned - 1] == "BACKTRACK"
    assert after[learned + 1] == "ASSERT"
