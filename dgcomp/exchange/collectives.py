"""Collectives on byte buffers: in 1 MB chunks, two in flight, always issued in the same order from one thread.

A large gloo all-gather or all-to-all sends in one direction at a time between a pair of ranks; two chunks in flight
use both directions. Every rank knows every size beforehand, so no sizes are exchanged.
"""

from collections import deque
from collections.abc import Callable
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
    return _in_chunks(message.unsqueeze(0), lambda out, chunk: _all_gather_single(out, chunk, group, True), group)


def swap_bytes(messages: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, int]:
    """Row j of `messages` (ranks, bytes) to rank j; returns the rows received, and the number of collectives."""
    return _in_chunks(
        messages, lambda out, chunk: dist.all_to_all_single(out, chunk, group=group, async_op=True), group
    )


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


def _in_chunks(
    rows: Tensor, issue: Callable[[Tensor, Tensor], Any], group: dist.ProcessGroup | None
) -> tuple[Tensor, int]:
    """Run a collective that maps (r, b) to (ranks, b) column block by column block, and put the blocks together."""
    ranks = dist.get_world_size(group)
    device = device_of(group)
    num_bytes = rows.shape[1]
    width = max(CHUNK_BYTES // ranks if rows.shape[0] > 1 else CHUNK_BYTES, 1)
    pending: deque[Any] = deque()
    blocks = []
    for start in range(0, num_bytes, width):
        chunk = rows[:, start : start + width].contiguous().to(device)
        out = torch.empty(ranks * chunk.shape[1], dtype=torch.uint8, device=device)
        if len(pending) == _IN_FLIGHT:
            pending.popleft()[0].wait()
        pending.append((issue(out, chunk.reshape(-1)), chunk))
        blocks.append(out.view(ranks, -1))
    for work, _ in pending:
        work.wait()
    gathered = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
    return gathered.cpu(), len(blocks)
