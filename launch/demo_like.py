"""A baseline in the manner of DeMo (Peng et al., arXiv 2411.19870): momentum whose fast components are exchanged.

Ours, written from the paper's description, and only like it: every tensor is cut into blocks of 64 x 64 in memory
order (the authors cut along its dimensions), all tensors travel in one message, and the exchange is a DDP hook. As
there, the sent components leave the local momentum, the ranks' components are averaged, and the update is the sign of
what comes back; the optimizer must be plain SGD.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F

__all__ = ["DeMoLikeState", "demo_like_hook"]

SIDE = 64
"""a block has SIDE x SIDE entries (the authors' compression_chunk)"""
COMPONENTS = 32
"""components sent of each block (the authors' compression_topk): 0.78 %"""
DECAY = 0.999
"""of the momentum from step to step (the authors' compression_decay)"""
BYTES_PER_COMPONENT = 6
"""fp32 value and 16-bit position within the block"""


class DeMoLikeState:
    """Local momentum of every bucket, as blocks, and the bytes that this rank has sent.

    Keyed by the number of elements: with one bucket for the whole model, which DDP lays out anew after the first
    step, the momentum of that first step is dropped.
    """

    def __init__(self) -> None:
        self.momentum: torch.Tensor | None = None
        self.layout: list[int] = []
        self.bytes_sent = 0
        self.cosines = _cosines(SIDE)


def demo_like_hook(state: DeMoLikeState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Replace the gradients of a bucket, the only one of its model, by the sign of the exchanged momentum."""
    buffer = bucket.buffer()
    layout = [id(parameter) for parameter in bucket.parameters()]
    fresh = _blocks(buffer)
    if state.momentum is None or state.layout != layout:
        state.momentum, state.layout = torch.zeros_like(fresh), layout
    state.momentum.mul_(DECAY).add_(fresh)
    components = (state.cosines @ state.momentum @ state.cosines.t()).flatten(1)
    positions = components.abs().topk(COMPONENTS, dim=1).indices
    values = components.gather(1, positions)
    state.momentum -= _decoded(positions, values, state.cosines)

    # float32 holds positions below 2^24 exactly: one message instead of two
    message = torch.stack([values, positions.float()])
    received = [torch.empty_like(message) for _ in range(dist.get_world_size())]
    dist.all_gather(received, message)
    state.bytes_sent += BYTES_PER_COMPONENT * values.numel()
    total = torch.zeros_like(state.momentum)
    for other_values, other_positions in received:  # in rank order: the replicas stay equal to the bit
        total += _decoded(other_positions.long(), other_values, state.cosines)
    buffer.copy_(total.flatten()[: buffer.numel()].sign())
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(buffer)
    return future


def _blocks(flat: torch.Tensor) -> torch.Tensor:
    """A flat tensor as (blocks, SIDE, SIDE), padded with zeros."""
    padded = F.pad(flat, (0, -flat.numel() % SIDE**2))
    return padded.view(-1, SIDE, SIDE)


def _decoded(positions: torch.Tensor, values: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
    """Blocks that have these components and no others."""
    components = values.new_zeros(len(values), SIDE**2).scatter_(1, positions, values)
    decoded: torch.Tensor = cosines.t() @ components.view(-1, SIDE, SIDE) @ cosines
    return decoded


def _cosines(size: int) -> torch.Tensor:
    """The orthonormal DCT-II as a matrix."""
    frequency, time = torch.arange(size)[:, None], torch.arange(size)[None]
    matrix = torch.cos(math.pi / size * (time + 0.5) * frequency) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
