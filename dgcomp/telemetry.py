"""Counts of what was really sent, and writers that take them to TensorBoard or a CSV file."""

import csv
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Stopwatch:
    """Splits the time since its creation into named phases, in host milliseconds."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Book the time since the last lap under `phase`."""
        now = time.perf_counter()
        self.milliseconds[phase] = self.milliseconds.get(phase, 0.0) + (now - self._last) * 1e3
        self._last = now


@dataclass
class Counters:
    """Totals since the start of the run and the figures of the last step; all bytes are this rank's."""

    steps: int = 0
    """Optimizer steps exchanged since the start of the run; a resumed run goes on counting."""
    exchanges: int = 0
    """Exchanges of this process, failed ones included: what `milliseconds` and `messages` are totals of."""
    nonfinite_steps: int = 0
    bytes_sent: int = 0
    bytes_dense: int = 0
    network_bytes_sent: int = 0
    network_bytes_received: int = 0
    network_bytes_dense: int = 0
    sparse_bytes_sent: int = 0
    sparse_bytes_dense: int = 0
    leftover_bytes_sent: int = 0
    messages: int = 0
    last_exchange: str = ""
    last: dict[str, float] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)

    def add_phases(self, milliseconds: Mapping[str, float]) -> None:
        """Add the phases of one step."""
        for phase, value in milliseconds.items():
            self.milliseconds[phase] = self.milliseconds.get(phase, 0.0) + value


class CSVWriter:
    """Appends one row of scalars per call to a CSV file; nested dictionaries become `outer/inner` columns.

    The columns are those of the first row; the file is flushed at each row, so that a killed run keeps its rows.
    """

    def __init__(self, path: str | Path):
        self._file = Path(path).open("w", newline="")  # noqa: SIM115 (open until close())
        self._writer: csv.DictWriter[str] | None = None

    def write(self, step: int, stats: Mapping[str, Any]) -> None:
        """Write the scalars of one step."""
        row = {"step": step, **flatten(stats)}
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, fieldnames=list(row), extrasaction="ignore", restval="")
            self._writer.writeheader()
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardWriter:
    """Writes the same scalars to TensorBoard under `dgcomp/`.

    Raises ModuleNotFoundError with the cure where the tensorboard package is not installed.
    """

    def __init__(self, folder: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "TensorBoardWriter needs the tensorboard package: pip install tensorboard"
            ) from error
        self._writer = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]

    def write(self, step: int, stats: Mapping[str, Any]) -> None:
        """Write the scalars of one step."""
        for name, value in flatten(stats).items():
            self._writer.add_scalar(f"dgcomp/{name}", value, step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()  # type: ignore[no-untyped-call]


def flatten(stats: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested dictionary with `/` between the levels; anything that is no number is left out."""
    flat: dict[str, float] = {}
    for name, value in stats.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat[f"{prefix}{name}"] = value
    return flat
