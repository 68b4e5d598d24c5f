"""Collectives on byte buffers: in 1 MB chunks, two in flight, always issued in the same order from one thread.

A large gloo all-gather or all-to-all sends in one direction at a time between a pair of ranks; two chunks in flight
use both directions. Every rank knows every size beforehand, so no sizes are exchanged.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_BYTES = 1 << 20
_IN_FLIGHT = 2

# torch 2.13 renames all_gather_into_tensor and warns about the old name
_all_gather_single: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def gather_bytes(message: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, int]:
    """Every rank's message, all of the same length: uint8, shape (ranks, bytes), and the number of collectives."""
    ranks, device = dist.get_world_size(group), device_of(group)
    works = _Works()
    blocks = []
    for start in range(0, len(message), CHUNK_BYTES):
        chunk = message[start : start + CHUNK_BYTES].to(device)
        out = torch.empty(ranks * len(chunk), dtype=torch.uint8, device=device)
        works.add(_all_gather_single(out, chunk, group, True), chunk)
        blocks.append(out.view(ranks, -1))
    works.wait()
    return torch.cat(blocks, 1).cpu() if len(blocks) > 1 else blocks[0].cpu(), len(blocks)


def swap_bytes(
    rows: Sequence[Tensor], sizes: Sequence[int], group: dist.ProcessGroup | None
) -> tuple[list[Tensor], int]:
    """Row j to rank j; returns the rows received, `sizes` bytes from each rank, and the number of collectives.

    A row's length may depend on its receiver only, so that all ranks count the same chunks.
    """
    device = device_of(group)
    width = max(CHUNK_BYTES // len(rows), 1)
    works = _Works()
    received: list[list[Tensor]] = [[] for _ in sizes]
    longest = max(max(map(len, rows)), max(sizes))
    for start in range(0, longest, width):
        parts = [row[start : start + width] for row in rows]
        out_sizes = [max(min(width, size - start), 0) for size in sizes]
        chunk = torch.cat(parts).to(device)
        out = torch.empty(sum(out_sizes), dtype=torch.uint8, device=device)
        splits = [len(part) for part in parts]
        works.add(dist.all_to_all_single(out, chunk, out_sizes, splits, group=group, async_op=True), chunk)
        for blocks, block in zip(received, out.split(out_sizes), strict=True):
            blocks.append(block)
    works.wait()
    return [torch.cat(blocks).cpu() for blocks in received], works.calls


def broadcast_bytes(buffer: Tensor, source: int, group: dist.ProcessGroup | None) -> int:
    """Fill the flat `buffer` in place with that of global rank `source`; returns the number of collectives."""
    on_wire = buffer.to(device_of(group))
    dist.broadcast(on_wire, source, group=group)
    buffer.copy_(on_wire)
    return 1


def device_of(group: dist.ProcessGroup | None) -> torch.device:
    """Where the group's tensors must live: the CPU for gloo and MPI, the current GPU for NCCL (not run on a GPU)."""
    if "nccl" in dist.get_backend(group):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


class _Works:
    """Asynchronous collectives, two of which stay in flight while the next is prepared; keeps their inputs alive."""

    def __init__(self) -> None:
        self.calls = 0
        self._pending: deque[tuple[Any, Tensor]] = deque()

    def add(self, work: Any, source: Tensor) -> None:
        self.calls += 1
        self._pending.append((work, source))
        if len(self._pending) > _IN_FLIGHT:
            self._pending.popleft()[0].wait()

    def wait(self) -> None:
        while self._pending:
            self._pending.popleft()[0].wait()
