"""Rows are appended whole, and a finished run is not repeated."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tyro", reason="the recipes are command lines of launch/train.py, which tyro reads")

from benchmarks import accuracy
from benchmarks.evidence.recipes import BUDGETS, Run, plan
from benchmarks.store import append, read

ROOT = Path(__file__).resolve().parents[2]


def test_rows_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.json"
    assert read(path) == []
    append(path, {"name": "a"})
    append(path, {"name": "b"})
    assert [row["name"] for row in read(path)] == ["a", "b"]
    assert [file.name for file in path.parent.iterdir()] == ["rows.json"]


def test_only_missing_runs_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [run for run in plan(BUDGETS["30m"]) if run.task == "image"]
    append(tmp_path / "accuracy.json", {"name": wanted[0].name})
    asked: list[Any] = []
    monkeypatch.setattr(accuracy, "train_all", lambda runs, path, seconds: asked.append((list(runs), seconds)))
    monkeypatch.setattr(accuracy, "accuracy_markdown", lambda rows: f"{len(rows)} rows")
    monkeypatch.setattr(sys, "argv", ["accuracy", "--budget", "30m", "--only", "image/", "--results", str(tmp_path)])
    accuracy.main()
    assert asked == [(wanted[1:], 1800)]
    assert (tmp_path / "accuracy.md").read_text() == "1 rows"


@pytest.mark.slow
def test_runner_gives_the_figures_of_the_command(tmp_path: Path) -> None:
    """Second of two runs in the same processes: the same value and bytes as launch/train.py in processes of its own."""
    extra = ("--data", "synthetic", "--max-steps", "5")
    runs = [Run("image", method, 3, extra) for method in ("dense", "dgc")]
    accuracy.train_all(runs, tmp_path / "rows.json", 60)
    row = read(tmp_path / "rows.json")[1]
    alone = tmp_path / "alone.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(runs[1].ranks)]
    script = [str(ROOT / "launch" / "train.py"), *runs[1].options, "--result-json", str(alone)]
    subprocess.run([*launcher, *script], check=True, capture_output=True)
    expected = json.loads(alone.read_text())
    assert row["steps"] == 5
    for figure in ("value", "flushed_value", "bytes_run"):
        assert row[figure] == expected[figure]
