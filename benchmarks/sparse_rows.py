"""The rows of results/sparse.json: added, read and timed for the sparse benchmarks."""

import fcntl
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.store import describe_commit, processor

__all__ = ["RESULTS", "Row", "append", "medians_ms", "read_rows"]

RESULTS = Path(__file__).parent / "results" / "sparse.json"
FOLDER_OPTIONS = ("--graphs", "--fashion", "--cifar", "--checkpoints")

Row = dict[str, Any]


def append(row: Row) -> None:
    """Append a row with where and how it was measured, and print it."""
    row = row | _surroundings()
    with (Path(tempfile.gettempdir()) / "dgcomp-sparse.lock").open("w") as lock:  # several commands may run at a time
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = [json.dumps(each) for each in [*read_rows(), row]]
        fresh = RESULTS.with_suffix(".tmp")
        fresh.write_text("[\n" + ",\n".join(rows) + "\n]\n")
        fresh.replace(RESULTS)  # readers take no lock: they find the old file or the new one
    print(json.dumps(row), flush=True)


def read_rows(*what: str) -> list[Row]:
    """Rows so far, of the named kinds where any is named."""
    rows: list[Row] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    return [row for row in rows if not what or row["what"] in what]


def _surroundings() -> Row:
    words = ["python", "benchmarks/sparse.py"]
    for word in sys.argv[1:]:  # a folder of this machine would tell nobody anything
        words.append("FOLDER" if words[-1] in FOLDER_OPTIONS else word)
    return {
        "commit": describe_commit(),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy")),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "command": " ".join(words),
    }


def medians_ms(contestants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each; they take turns, so that a disturbance meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(values), 3) for name, values in times.items()}
