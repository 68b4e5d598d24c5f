"""Stopping on SIGINT or SIGTERM at the same step on every rank."""

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["StopRequest"]

INTERVAL_STEPS = 8
"""ranks compare notes this often: one all-reduce of one byte"""


class StopRequest:
    """Context in which SIGINT and SIGTERM ask the training loop to end instead of ending the process.

    A rank that left alone would leave the others waiting in a collective, so `agreed` lets all leave at one step.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
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
