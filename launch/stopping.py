"""Stopping on SIGINT, SIGTERM or SIGUSR1 at the same step on every rank.

SIGUSR1 is what Slurm is asked to send some time before a job's limit (launch/slurm).
"""

import contextlib
import ctypes
import os
import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["STOPPED_STATUS", "StopRequest", "stop_with_launcher"]

STOPPED_STATUS = 75
"""exit status of a run that stopped on request before its end (EX_TEMPFAIL of sysexits.h: try again). A 0 would tell
torchrun, Slurm or Kubernetes that the training is complete."""

INTERVAL_STEPS = 8
"""ranks compare notes this often: one all-reduce of one byte"""


class StopRequest:
    """Context in which SIGINT, SIGTERM and SIGUSR1 ask the training loop to end instead of ending the process.

    A rank that left alone would leave the others waiting in a collective, so `agreed` lets all leave at one step.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._received = True

    def agreed(self, step: int) -> bool:
        """Whether any rank was asked to stop; call it on every rank with the same step."""
        if step % INTERVAL_STEPS:
            return False
        flag = torch.tensor([self._received], dtype=torch.uint8, device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())


def stop_with_launcher() -> None:
    """Ask the kernel for a SIGTERM when torchrun, which started this rank, is gone (Linux).

    A torchrun that is killed outright leaves its ranks running, and they would go on writing to the folder of the run
    that takes their place. Ranks that someone started by hand live on as they like.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
