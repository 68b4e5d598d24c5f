"""Results files, JSON lists of rows that are appended to run by run, and what a row says of where it came from."""

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["append", "describe_commit", "processor", "read"]

ROOT = Path(__file__).resolve().parents[1]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file, none where there is no file."""
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return rows


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a results file, which no reader ever sees half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps([*read(path), row], indent=1) + "\n")
    os.replace(partial, path)


def describe_commit() -> str:
    """The commit that is checked out, marked where files differ from it."""
    done = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def processor() -> str:
    """Name of the processor as the kernel gives it, or the kind of machine where it gives none."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
