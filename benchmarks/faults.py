"""Faults at named places of a training run of launch/train.py: in forward, in backward, in the hook, in a checkpoint.

    arm("backward", 5, die)      # the fifth backward pass of this process is its last

Used by benchmarks/restarts.py and tests/faults; launch/train.py itself knows nothing of it.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import launch.checkpoint as checkpoint
from dgcomp.state import DGCState
from launch.tasks.image import ImageTask

__all__ = ["PLACES", "arm", "die"]

PLACES = ("forward", "backward", "hook", "file", "rename", "latest", "saved")
"""`file`: a checkpoint file is begun; `rename`: written but not yet under its name; `latest`: all files are
there but latest.json does not name them; `saved`: it does, and older files are not removed yet"""


def die() -> None:
    """End this process as a power cut would: no handler, no `finally`, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(place: str, call: int, action: Callable[[], None]) -> None:
    """Run `action` when this process passes `place` for the `call`-th time, from 1; ValueError for other places."""
    if place not in PLACES:
        raise ValueError(f"place must be one of {', '.join(PLACES)}, got {place!r}")
    count = 0

    def passed() -> None:
        nonlocal count
        count += 1
        if count == call:
            action()

    if place in ("forward", "backward"):
        _arm_task(place == "forward", passed)
    elif place == "hook":
        _before(DGCState, "add_bucket", passed)
    elif place == "file":
        _arm_file(passed)
    else:
        _arm_replace(place, passed)


def _arm_task(is_forward: bool, passed: Callable[[], None]) -> None:
    if is_forward:
        _before(ImageTask, "loss", passed)
        return
    loss_of = ImageTask.loss

    def loss(self: ImageTask, *arguments: Any) -> Any:
        value = loss_of(self, *arguments)
        if value.requires_grad:
            value.register_hook(lambda _gradient: passed())
        return value

    ImageTask.loss = loss  # type: ignore[method-assign]


def _before(owner: Any, name: str, passed: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        passed()
        return original(*arguments, **named)

    setattr(owner, name, wrapped)


def _arm_file(passed: Callable[[], None]) -> None:
    write, begun = checkpoint._Hashed.write, "_has_begun"

    def wrapped(self: checkpoint._Hashed, data: Any) -> int:
        size = write(self, data)
        if not hasattr(self, begun):  # torch writes a file in many parts
            setattr(self, begun, True)
            passed()
        return size

    checkpoint._Hashed.write = wrapped  # type: ignore[method-assign]


def _arm_replace(place: str, passed: Callable[[], None]) -> None:
    replace = os.replace

    def wrapped(source: Any, target: Any) -> None:
        is_latest = Path(target).name == checkpoint.LATEST
        if (place == "rename" and Path(target).suffix == ".pt") or (place == "latest" and is_latest):
            passed()
        replace(source, target)
        if place == "saved" and is_latest:
            passed()

    os.replace = wrapped  # type: ignore[assignment]
