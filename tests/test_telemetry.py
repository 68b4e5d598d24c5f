"""Writers take the scalars of stats() to a CSV file and to TensorBoard."""

import csv
from pathlib import Path

import pytest

from dgcomp.telemetry import CSVWriter, Stopwatch, TensorBoardWriter, flatten

STATS = {"steps": 3, "bytes_sent": 120, "milliseconds": {"exchange": 1.5}, "name": "not a number"}


def test_flatten() -> None:
    assert flatten(STATS) == {"steps": 3, "bytes_sent": 120, "milliseconds/exchange": 1.5}


def test_csv(tmp_path: Path) -> None:
    writer = CSVWriter(tmp_path / "stats.csv")
    writer.write(1, STATS)
    writer.write(2, {**STATS, "late": 5})
    writer.close()
    with (tmp_path / "stats.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert rows[1]["milliseconds/exchange"] == "1.5"
    assert "late" not in rows[1]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    writer = TensorBoardWriter(tmp_path)
    writer.write(1, STATS)
    writer.close()
    assert list(tmp_path.glob("events.*"))


def test_stopwatch_books_each_phase_once() -> None:
    watch = Stopwatch()
    watch.lap("a")
    watch.lap("b")
    watch.lap("a")
    assert set(watch.milliseconds) == {"a", "b"}
    assert all(value >= 0 for value in watch.milliseconds.values())
