"""Runs of two ranks under torchrun that faults are tried on, and what is checked after each."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
STEPS, INTERVAL = 16, 4
TIMEOUT_S = 240


def options(folder: Path, *more: str, steps: int = STEPS) -> list[str]:
    """Options of a run of a few seconds that keeps its checkpoints in `folder` and always goes on from them."""
    return [
        *("--data", "synthetic", "--batch-size", "64", "--epochs", "50", "--max-steps", str(steps), "--device", "cpu"),
        *("--compress", "dgc", "--density", "0.05", "--warmup-epochs", "0.1", "--progress", "off", "--resume"),
        *("--checkpoint-folder", str(folder), "--checkpoint-interval", str(INTERVAL)),
        *more,
    ]


class Torchrun:
    """A run in the background, marked so that every process of it can be found; a context that leaves none.

    `fault` is what tests/faults/faulty.py reads, without `once`.
    """

    def __init__(self, folder: Path, *more: str, steps: int = STEPS, restarts: int = 1, **fault: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.happened, self._mark = folder, folder / "happened", f"DGCOMP_MARK={uuid.uuid4()}"
        key, value = self._mark.split("=")
        environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        environment |= {key: value, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # as launch/torchrun/node.sh does
        if fault:
            environment["DGCOMP_FAULT"] = json.dumps({**fault, "once": str(self.happened)})
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        script = [f"--max-restarts={restarts}", str(ROOT / "tests/faults/faulty.py")]
        self.process = subprocess.Popen(
            [*launcher, *script, *options(folder, *more, steps=steps)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Torchrun":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()

    def processes(self) -> list[int]:
        """Every living process of this run, torchrun itself and ranks without a parent included."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                is_one = self._mark.encode() in (path / "environ").read_bytes().split(b"\0")
                if is_one and _state(int(path.name)) != "Z":
                    found.append(int(path.name))
            except OSError:  # it ended meanwhile
                continue
        return found

    def end(self, status: int = 0) -> str:
        """Wait for the end, check its status and that no process is left, and return what was printed."""
        output, errors = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == status, output + errors
        wait_until(lambda: not self.processes(), "every process has ended")
        return output + errors


def _state(pid: int) -> str:
    """Letter of a process's state: R, S, T (stopped), Z (ended, not waited for)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has taken hold of a process."""
    return _state(pid) == "T"


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Return when `condition()` is true; fail after a few minutes, saying what did not come."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)


def saved_step(folder: Path) -> int:
    """Step of the latest checkpoint, -1 if there is none."""
    latest = folder / "latest.json"
    return int(json.loads(latest.read_text())["step"]) if latest.exists() else -1


def weights(folder: Path, step: int = STEPS) -> str:
    """Digest of the model in the latest checkpoint, which must be of `step`, after reading all its files as data."""
    assert saved_step(folder) == step
    for name in json.loads((folder / "latest.json").read_text())["sha256"]:
        torch.load(folder / name, weights_only=True)
    model = torch.load(folder / f"step{step:08d}.pt", weights_only=True)["model"]
    return hashlib.sha256(b"".join(model[name].numpy().tobytes() for name in sorted(model))).hexdigest()
