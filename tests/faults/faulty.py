"""launch/train.py with a fault in it: what torchrun starts in the tests of this folder.

$DGCOMP_FAULT is a JSON object: `action` (kill, stop, slow), `rank`, `place` and `call` of benchmarks/faults.py, and
`once`, a file whose presence says that the fault has happened.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks import faults
from launch.tasks.image import ImageTask
from launch.train import main


def _prepare(fault: dict[str, Any]) -> None:
    happened = Path(fault["once"])
    if int(os.environ["RANK"]) != fault["rank"] or happened.exists():
        return
    if fault["action"] == "slow":
        _slow_down()
        return

    def act() -> None:
        happened.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL if fault["action"] == "kill" else signal.SIGSTOP)

    faults.arm(fault["place"], fault["call"], act)


def _slow_down() -> None:
    """Let every forward pass take ten times as long: the other ranks wait for this one in every step."""
    loss_of = ImageTask.loss

    def loss(self: ImageTask, *arguments: Any) -> Any:
        start = time.perf_counter()
        value = loss_of(self, *arguments)
        time.sleep(9 * (time.perf_counter() - start))
        return value

    ImageTask.loss = loss  # type: ignore[method-assign]


if __name__ == "__main__":
    if "DGCOMP_FAULT" in os.environ:
        _prepare(json.loads(os.environ["DGCOMP_FAULT"]))
    main()
