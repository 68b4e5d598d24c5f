"""Raise an error on every rank when one rank has found it, so that nobody is left waiting in a collective."""

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

MESSAGE_BYTES = 1024

MEETING_TIMEOUT = timedelta(seconds=60)


def meet(call: str, group: dist.ProcessGroup | None) -> None:
    """Wait for all ranks to enter `call`; raise RuntimeError after a minute if one does not (on gloo).

    Otherwise a collective that a script calls on rank 0 alone would wait for the group's timeout, half an hour.
    """
    if dist.get_backend(group) != "gloo":
        return
    try:
        dist.monitored_barrier(group, timeout=MEETING_TIMEOUT)
    except RuntimeError as error:
        raise RuntimeError(
            f"{call} is collective, and not all ranks called it within {MEETING_TIMEOUT.total_seconds():g} s; "
            "call it on every rank and let rank 0 alone do the printing or saving"
        ) from error


def complaint_of(check: Callable[[], None]) -> str | None:
    """What `check` finds wrong (the text of its TypeError or ValueError), or None: for `raise_together`."""
    try:
        check()
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def raise_together(message: str | None, *, group: dist.ProcessGroup | None, device: torch.device) -> None:
    """Raise ValueError on all ranks of `group` if any rank brings a message; collective.

    A rank without a complaint passes None. The error names the first rank that had one.
    """
    data = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)
    encoded = (message or "").encode()[:MESSAGE_BYTES]
    data[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8) if encoded else data[:0]
    world_size = dist.get_world_size(group)
    gathered = [torch.zeros(MESSAGE_BYTES, dtype=torch.uint8, device=device) for _ in range(world_size)]
    dist.all_gather(gathered, data.to(device), group=group)
    for rank, row in enumerate(gathered):
        text = bytes(row.cpu().tolist()).rstrip(b"\0").decode(errors="replace")
        if text:
            raise ValueError(text if text == message else f"{text} (found on rank {rank})")


def raise_if_different(digest: int, what: str, *, group: dist.ProcessGroup | None, device: torch.device) -> None:
    """Raise ValueError on all ranks if `digest` (a signed 64-bit integer) is not the same on all; collective."""
    own = torch.tensor([digest], dtype=torch.int64, device=device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, own, group=group)
    different = [rank for rank, other in enumerate(gathered) if not torch.equal(other, gathered[0])]
    if different:
        raise ValueError(f"{what} differ: rank(s) {different} do not agree with rank 0; make them equal on all ranks")
