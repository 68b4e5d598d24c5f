"""What the tests of the launch scripts share: a run of a few steps, and how its end is judged."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SHELL_SCRIPTS = sorted(
    path.relative_to(LAUNCH).as_posix() for path in (*LAUNCH.glob("*/*.sh"), *LAUNCH.glob("*/*.sbatch"))
)
MANIFESTS = sorted(path.relative_to(LAUNCH).as_posix() for path in LAUNCH.glob("kubernetes/*.yaml"))

STEPS = 16
TIMEOUT_S = 300


def options(result: Path, steps: int = STEPS) -> list[str]:
    """Options of launch/train.py for a run of a few seconds that writes `result`."""
    return [
        *("--data", "synthetic", "--batch-size", "64", "--epochs", "50", "--max-steps", str(steps)),
        *("--compress", "dgc", "--density", "0.05", "--warmup-epochs", "0.1", "--device", "cpu", "--progress", "off"),
        *("--result-json", str(result)),
    ]


def environment(**more: str) -> dict[str, str]:
    """This process's environment with this Python, the loopback network and `more`."""
    bin_folder = str(Path(sys.executable).parent)
    return os.environ | {
        "PYTHON": sys.executable,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        **more,
    }


def run(script: str, arguments: Sequence[str], **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a launch script to its end."""
    command = ["bash", str(LAUNCH / script), *arguments]
    return subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=TIMEOUT_S)


def check_result(path: Path, *, ranks: int, steps: int = STEPS) -> dict[str, Any]:
    """The figures of a finished run."""
    result: dict[str, Any] = json.loads(path.read_text())
    assert result["is_finished"]
    assert (result["ranks"], result["steps"]) == (ranks, steps)
    assert result["value"] > 0
    return result


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
