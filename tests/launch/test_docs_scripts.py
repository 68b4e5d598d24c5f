"""The two scripts of docs/: two lines apart, and both learn."""

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _accuracy(script: str) -> float:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(ROOT / "docs" / script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = re.search(r"test accuracy ([\d.]+) %", done.stdout)
    assert found, done.stdout
    return float(found[1])


def test_two_lines_make_it_dgc() -> None:
    plain, dgc = ((ROOT / "docs" / name).read_text().splitlines() for name in ("plain_ddp.py", "dgc_ddp.py"))
    changes = [line for line in difflib.ndiff(plain, dgc) if line[0] in "+-"]
    assert [line[0] for line in changes] == ["+", "+"]
    assert changes[0] == "+ import dgcomp"
    assert changes[1].strip("+ ").startswith("dgcomp.attach(model, optimizer, ")


def test_both_learn() -> None:
    plain, dgc = _accuracy("plain_ddp.py"), _accuracy("dgc_ddp.py")
    assert plain > 95
    assert dgc > plain - 3
