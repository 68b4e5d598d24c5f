"""Solve a formula exactly and say what a SatIn chip would have needed for the same search."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dgcomp.hwmodel.satin import events, waves
from dgcomp.hwmodel.satin.dimacs import Formula, as_formula
from dgcomp.hwmodel.satin.machine import Machine
from dgcomp.hwmodel.satin.search import PAUSED, SATISFIABLE, UNSATISFIABLE, assert_units, search
from dgcomp.hwmodel.satin.state import ASSERT, ASSIGN, COUNTERS, TRACE, State, drain, grow, new_state, proof_lines

__all__ = ["SatResult", "solve"]

CHUNK_PROPAGATIONS = 50_000


@dataclass(frozen=True, slots=True)
class SatResult:
    """Answer and modelled cost of one run."""

    satisfiable: bool | None
    """None if the time limit or `progress` stopped the search."""
    model: list[int] | None
    """DIMACS literals, one per variable, when satisfiable; checked against the formula."""
    cycles: int
    """Clock cycles of the modelled chip until the first context had the answer."""
    seconds: float
    """The same in seconds of the chip's clock; not the time that the simulation took."""
    joules: float
    """Clause nodes in use and wires; the central CPU and leakage are not counted."""
    stats: dict[str, Any] = field(default_factory=dict)
    """Counts of the context that answered (`conflicts`, `decisions`, `propagations`, ...), `context_propagations` and
    their sum `total_propagations`, `cycles_by_kind`, `messages_by_kind`, `watts`, `spilled_clauses`, `central_share`
    (of the cycles, in which the central unit is busy); real times `load_s`, `search_s` and `wall_s`."""


@dataclass(slots=True)
class _Context:
    """One search and what it has left to tell."""

    state: State
    answer: int = PAUSED
    trace: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 3), np.int32))


def solve(
    cnf: Any,
    contexts: int = 1,
    *,
    machine: Machine | None = None,
    fidelity: str = "event",
    restarts: str = "glucose",
    seed: int = 0,
    spill: str = "central",
    proof: str | os.PathLike[str] | None = None,
    time_limit_s: float | None = None,
    progress: Callable[[dict[str, Any]], bool | None] | None = None,
    trace: Callable[[str], None] | None = None,
) -> SatResult:
    """Decide a formula by CDCL on a modelled SatIn chip (arXiv 2303.02588; largely a reconstruction: docs/satin.md).

    The search depends on the formula, `seed`, `restarts` and the chip's capacity, never on latencies or `fidelity`.

    Parameters
    ----------
    cnf : str, path, Formula, python-sat CNF or iterable of clauses
        A DIMACS file (plain, .gz, .xz) or clauses of DIMACS literals.
    contexts : {1, 2}
        Independent searches that share the array; seeds `seed`, `seed + 1`. The first to answer wins.
    machine : Machine
        Constants of the chip; default the paper's.
    fidelity : {"event", "wave", "none"}
        Every message simulated, formulas per wave of implications, or no clock at all (cycles 0).
    restarts : {"glucose", "luby"}
        Restart rule.
    spill : {"central", "refuse"}
        What happens to clauses that find no node: the central CPU handles them (the longest original clauses first), or
        ValueError.
    proof : path
        Where to write a DRAT proof; useful for one context. With two the proof of the winner is kept.
    time_limit_s : float
        Stop after so many seconds of real time.
    progress : callable
        Gets the statistics so far after every chunk of work; returning True stops the run.
    trace : callable
        Gets one line per message and operation: cycle, context, what. Needs fidelity "event".

    Raises
    ------
    ValueError
        For a malformed formula, an unknown option, or more clauses than the chip holds with ``spill="refuse"``.
    """
    machine = machine or Machine()
    _check_options(contexts, fidelity, restarts, spill, trace is not None)
    started = time.perf_counter()
    formula = as_formula(cnf)
    if formula.num_clauses > machine.capacity:
        if spill == "refuse":
            raise ValueError(
                f"cnf must have at most {machine.capacity} clauses, the chip's capacity, got {formula.num_clauses}; "
                'use spill="central" or a larger Machine(capacity=...)'
            )
        formula = _longest_last(formula)
    run = _Run(formula, contexts, machine, fidelity, restarts == "luby", seed, proof, trace)
    loaded = time.perf_counter()
    answered = run.trivial()
    while answered is None:
        answered = run.step()
        now = time.perf_counter()
        if answered is None and time_limit_s is not None and now - started > time_limit_s:
            break
        if answered is None and progress is not None and progress(run.stats(0) | {"wall_s": now - started}):
            break
    run.close(answered)
    times = {"load_s": loaded - started, "search_s": run.search_s, "wall_s": time.perf_counter() - started}
    return run.result(answered, times)


def _check_options(contexts: int, fidelity: str, restarts: str, spill: str, tracing: bool) -> None:
    for name, value, allowed in (
        ("contexts", contexts, (1, 2)),
        ("fidelity", fidelity, ("event", "wave", "none")),
        ("restarts", restarts, ("glucose", "luby")),
        ("spill", spill, ("central", "refuse")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    if tracing and fidelity != "event":
        raise ValueError(f'trace must be used with fidelity="event", got fidelity={fidelity!r}')


def _longest_last(formula: Formula) -> Formula:
    """The same clauses by length, so that what spills is what becomes a unit most rarely."""
    sizes = np.diff(formula.offsets)
    order = np.argsort(sizes, kind="stable")
    begin = np.repeat(formula.offsets[:-1][order], sizes[order])
    offsets = np.concatenate([[0], np.cumsum(sizes[order])])
    within = np.arange(len(begin)) - np.repeat(offsets[:-1], sizes[order])
    return Formula(formula.num_vars, formula.literals[begin + within], offsets)


class _Run:
    """One call of `solve`: the searches, the clock that replays them, and the proof."""

    def __init__(
        self,
        formula: Formula,
        contexts: int,
        machine: Machine,
        fidelity: str,
        luby: bool,
        seed: int,
        proof: str | os.PathLike[str] | None,
        trace: Callable[[str], None] | None,
    ) -> None:
        self.formula, self.machine, self.fidelity, self.trace = formula, machine, fidelity, trace
        self.timing, self.search_s = machine.timing(), 0.0
        self.contexts = [
            _Context(
                new_state(
                    formula,
                    seed=seed + i,
                    luby=luby,
                    variable_decay=0.95,
                    tracing=fidelity != "none",
                    proving=proof is not None,
                )
            )
            for i in range(contexts)
        ]
        self.proof_path = None if proof is None else Path(proof)
        self.proof_files = [self._proof_part(i).open("w") for i in range(contexts)] if proof else []
        originals = int(self._register(0, "num_original"))
        for i, context in enumerate(self.contexts):
            # learned clauses of the contexts take turns in the slots behind the original ones
            room = max(machine.capacity - originals - i + contexts - 1, 0) // contexts
            context.state.registers["spill_from"] = min(originals, machine.capacity) if room == 0 else originals + room
            context.state.registers["max_learned"] = max(room, 2000)
        self.engine = events.new_engine(machine, originals, formula.num_vars, contexts)
        self.waves = [waves.new_waves(machine, originals) for _ in self.contexts]

    def trivial(self) -> int | None:
        """Assert the unit clauses; 0, the context that answers, if an empty clause or contradicting units decide."""
        sizes = np.diff(self.formula.offsets)
        units = self.formula.literals[self.formula.offsets[:-1][sizes == 1]]
        empty = bool((sizes == 0).any())
        for context in self.contexts:
            if empty or not assert_units(context.state, units):
                context.answer = UNSATISFIABLE
                for file in self.proof_files:
                    file.write("0\n")
                return 0
        return None

    def step(self) -> int | None:
        """Search on in the context whose clock has played everything; the number of a context that has the answer."""
        if self.fidelity == "event":
            return self._step_events()
        index = min(range(len(self.contexts)), key=self._clock)
        if self.contexts[index].answer != PAUSED:
            return index  # and no other can be earlier
        trace = self._search(index)
        if self.fidelity == "wave":
            waves.run_waves(self.waves[index], self.timing, trace, self._register(index, "spill_from"))
        return None

    def _clock(self, index: int) -> float:
        waved = self.fidelity == "wave"
        return float(self.waves[index].totals["now"][0] if waved else self._register(index, "propagations"))

    def _step_events(self) -> int | None:
        starving = events.run(self.engine, self.timing)
        if self.trace is not None:
            self._tell(self.trace)
        if starving >= 0:
            self.engine = events.feed(self.engine, starving, self._search(starving), log=self.trace is not None)
            return None
        return int(np.flatnonzero(self.engine.contexts["state"] == events.DONE)[0])

    def _search(self, index: int) -> NDArray[np.int32]:
        """One chunk of search; its trace."""
        context = self.contexts[index]
        context.state = grow(context.state)
        before = time.perf_counter()
        context.answer = int(search(context.state, CHUNK_PROPAGATIONS))
        self.search_s += time.perf_counter() - before
        trace, proof = drain(context.state)
        if self.proof_files:
            _write_proof(self.proof_files[index], proof_lines(proof))
        return trace

    def _tell(self, trace: Callable[[str], None]) -> None:
        """Hand out the log of the last run in the order of its cycles."""
        log = self.engine.log[: int(self.engine.shared["logged"][0])]
        for cycle, context, kind, a, b in log[np.argsort(log[:, 0], kind="stable")].tolist():
            trace(f"{cycle} {context} {describe(kind, a, b)}")
        self.engine.shared["logged"] = 0

    def stats(self, index: int) -> dict[str, Any]:
        """Counts so far, of one context and of all."""
        found: dict[str, Any] = {name: self._register(index, name) for name in COUNTERS}
        found["context_propagations"] = [self._propagations(i) for i in range(len(self.contexts))]
        found["total_propagations"] = sum(found["context_propagations"])
        return found | {"cycles": self._cycles(index), "clauses": self.formula.num_clauses}

    def _propagations(self, index: int) -> int:
        """Broadcast assignments; with events those played, which the search is ahead of."""
        if self.fidelity == "event":
            return int(self.engine.counts[index, [ASSERT, ASSIGN]].sum())
        return self._register(index, "propagations")

    def _cycles(self, index: int) -> int:
        if self.fidelity == "event":
            return int(self.engine.shared["now"][0])
        return round(waves.stretched_cycles(self.waves[index], len(self.contexts)))

    def result(self, answered: int | None, times: dict[str, float]) -> SatResult:
        """Collect answer, model, clock and energy."""
        index = answered or 0
        cycles = self._cycles(index)
        seconds = cycles * self.machine.cycle_s
        satisfiable = None if answered is None else self.contexts[index].answer == SATISFIABLE
        clause_cycles, flit_hops, detail = self._costs(index)
        joules = self.machine.energy_j(clause_cycles, flit_hops)
        stats = self.stats(index) | times | detail | {"winner": answered}
        stats["watts"] = joules / seconds if seconds else 0.0
        stats["spilled_clauses"] = max(0, int(self._register(index, "num_slots") - self._register(index, "spill_from")))
        stats["tautologies"], stats["duplicate_literals"] = self.formula.num_tautologies, self.formula.num_duplicates
        return SatResult(satisfiable, self._model(index) if satisfiable else None, cycles, seconds, joules, stats)

    def _costs(self, index: int) -> tuple[float, float, dict[str, Any]]:
        """Clause nodes times cycles, flits times hops, and the tables by kind of operation."""
        if self.fidelity == "event":
            shared = self.engine.shared[0]
            clause_cycles = shared["clause_cycles"] + shared["clauses"] * (shared["now"] - shared["clauses_at"])
            hops, cycles, counts = shared["flit_hops"], self.engine.cycles[index], self.engine.counts[index]
            busy = shared["busy"] / max(shared["now"], 1)
        else:
            totals = self.waves[index].totals[0]
            clause_cycles, hops = totals["clause_cycles"], sum(float(w.totals["flit_hops"][0]) for w in self.waves)
            cycles, counts = self.waves[index].cycles, self.waves[index].counts
            busy = sum(w.totals["busy"][0] for w in self.waves) / max(self._cycles(index), 1)
        detail = {
            "flit_hops": int(hops),
            "central_share": float(busy),
            "cycles_by_kind": dict(zip(TRACE, (int(x) for x in cycles), strict=True)),
            "messages_by_kind": dict(zip(TRACE, (int(x) for x in counts), strict=True)),
        }
        return float(clause_cycles), float(hops), detail

    def _model(self, index: int) -> list[int]:
        """The satisfying assignment; checked, because an answer that is wrong must not pass for one."""
        value = self.contexts[index].state.value
        model = [i + 1 if value[2 * i] > 0 else -i - 1 for i in range(self.formula.num_vars)]
        if not self.formula.satisfied_by(model):
            raise AssertionError("the model found does not satisfy the formula; this is a bug of the solver")
        return model

    def close(self, answered: int | None) -> None:
        """Keep the winner's proof under the name asked for."""
        for file in self.proof_files:
            file.close()
        if self.proof_path is not None:
            self._proof_part(answered or 0).replace(self.proof_path)
            for i in range(len(self.proof_files)):
                self._proof_part(i).unlink(missing_ok=True)

    def _proof_part(self, index: int) -> Path:
        assert self.proof_path is not None  # only called with a proof asked for
        return self.proof_path.with_name(f"{self.proof_path.name}.context{index}")

    def _register(self, index: int, name: str) -> int:
        return int(self.contexts[index].state.registers[name][0])


def describe(kind: int, a: int, b: int) -> str:
    """One operation of the trace in words, literals as in DIMACS, clauses by their slot."""
    name = TRACE[kind]
    if name in ("DECIDE", "ASSERT", "ASSIGN"):
        return f"{name} {_signed(a)}"
    if name in ("IMPLY", "DUPLICATE", "CONFLICT"):
        return f"{name} {_signed(b)} from clause {a}"
    if name in ("FETCH", "LEARN", "STRENGTHEN"):
        return f"{name} clause {a} of {b} literals"
    if name == "DELETE":
        return f"{name} clause {a}"
    return {
        "IDLE": "IDLE",
        "JOIN": f"JOIN {a} literals resolved",
        "BACKTRACK": f"BACKTRACK to level {a}",
        "SPILL": f"SPILL {a} clauses outside the chip",
        "END": f"END {'satisfiable' if a else 'unsatisfiable'}",
    }[name]


def _signed(literal: int) -> int:
    return -(literal >> 1) - 1 if literal & 1 else (literal >> 1) + 1


def _write_proof(file: IO[str], lines: Sequence[str]) -> None:
    if lines:
        file.write("\n".join(lines) + "\n")
