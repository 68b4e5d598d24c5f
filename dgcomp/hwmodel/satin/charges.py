"""What both clocks charge alike: cycles of the central unit, flits of a clause, the wait until idle is known."""

from dgcomp.hwmodel.satin.machine import Timing
from dgcomp.hwmodel.satin.state import DECIDE, END, IDLE, JOIN, LEARN, kernel

__all__ = ["central_cycles", "clause_flits", "idle_round_trip"]


@kernel
def central_cycles(t: Timing, kind: int, a: int, b: int) -> int:
    """Cycles that an operation (kind, a, b) of the trace occupies the central unit for."""
    if kind == DECIDE:
        return t.decide
    if kind == JOIN:
        return a * t.analyze
    if kind == LEARN:
        return int(clause_flits(t, b))
    if kind in (IDLE, END):
        return 0
    return 1


@kernel
def clause_flits(t: Timing, literals: int) -> int:
    """Flits of a message that carries a clause."""
    return (literals + t.literals_per_flit - 1) // t.literals_per_flit


@kernel
def idle_round_trip(t: Timing) -> int:
    """Cycles from the last broadcast until the farthest bank has heard it and the AND-tree has said so."""
    return 2 * t.farthest * t.hop + t.match + 1
