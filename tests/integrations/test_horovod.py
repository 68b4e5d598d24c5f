"""Horovod in two processes of horovodrun: the conformance suite and Horovod's own idioms (horovod_ranks.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.optional
def test_horovod(tmp_path: Path) -> None:
    pytest.importorskip("horovod.torch", reason="Horovod is not built here: docs/integrations.md says how")
    ranks = [sys.executable, "-m", "tests.integrations.horovod_ranks", str(tmp_path)]
    command = [sys.executable, "-m", "horovod.runner.launch", "--gloo", "-np", "2", *ranks]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, start_new_session=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("conforms") == 2, done.stdout
