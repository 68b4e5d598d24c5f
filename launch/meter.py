"""What a run has sent and how long it took, over all its resumes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from launch.compression import Exchange

__all__ = ["Meter"]

COUNTED = ("bytes_sent", "bytes_dense", "bytes_sent_matrices", "bytes_dense_matrices")


class Meter:
    """Bytes of one rank and milliseconds per phase; `earlier` is what `totals` of the interrupted run said."""

    def __init__(self, exchange: Exchange, earlier: dict[str, float], first_step: int) -> None:
        self._exchange, self._earlier = exchange, earlier
        self._start = time.perf_counter()
        self._seconds_by_phase: dict[str, float] = defaultdict(float)
        self._first_step = self._step = first_step
        self._steady_from: tuple[int, dict[str, float]] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block as part of phase `name`."""
        start = time.perf_counter()
        yield
        self._seconds_by_phase[name] += time.perf_counter() - start

    def begin_step(self, step: int) -> None:
        """Note where the exchange's warm-up is over."""
        if self._steady_from is None and step >= self._exchange.warmup_steps:
            self._steady_from = step, self._counts()

    def end_step(self) -> None:
        """Count one optimizer step."""
        self._exchange.count_step()
        self._step += 1

    def totals(self) -> dict[str, float]:
        """Bytes and seconds since the very start of the run."""
        now = {**self._counts(), "seconds": time.perf_counter() - self._start}
        return {name: value + self._earlier.get(name, 0) for name, value in now.items()}

    def steady(self) -> dict[str, float]:
        """Bytes per step after the warm-up; empty if no step came after it."""
        if self._steady_from is None or self._step == self._steady_from[0]:
            return {}
        first, before = self._steady_from
        return {name: (value - before[name]) / (self._step - first) for name, value in self._counts().items()}

    def milliseconds(self) -> dict[str, float]:
        """Mean time per step by phase; the exchange's own phases are part of "forward and backward"."""
        num_steps = max(1, self._step - self._first_step)
        phases = {name: 1e3 * seconds / num_steps for name, seconds in self._seconds_by_phase.items()}
        inside = self._exchange.stats().get("milliseconds", {})
        return phases | {f"(exchange: {name})": value for name, value in inside.items()}

    def _counts(self) -> dict[str, float]:
        stats = self._exchange.stats()
        return {name: stats[name] for name in COUNTED}
