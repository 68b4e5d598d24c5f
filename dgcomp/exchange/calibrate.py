"""Measure a group's link and this machine's speed at start, in under two seconds, with equal results on all ranks."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from dgcomp.exchange.model import PROTOCOL_EFFICIENCY, Host, Link

BUDGET_S = 2.0
_LATENCY_ROUNDS = 15
_FIRST_BYTES = 1 << 16
_LAST_BYTES = 1 << 25
_ENOUGH_S = 0.1
_KERNEL_NUMEL = 1 << 20

# `compress(gradient)` does what a worker does to a dense fp32 gradient before it sends.
Compress = Callable[[Tensor], object]


def calibrate(
    group: dist.ProcessGroup | None = None, *, compress: Compress | None = None, workers_per_core: float = 1.0
) -> tuple[Link, Host]:
    """Measure round trip, line rate and compression speed of a process group.

    A collective call: every rank of `group` makes it, with the same sequence of collectives. Each measurement is the
    slowest rank's, so all ranks return equal values and plan alike. Takes at most about two seconds, also on slow
    links: sizes grow until one transfer takes a tenth of a second. `compress` is timed on a gradient of 2^20 normal
    values, after one call to compile it; without it the default speed stands.
    """
    world_size = dist.get_world_size(group)
    host = Host(workers_per_core=workers_per_core)
    if compress is not None:
        host = _with_compress_speed(host, compress, group)
    if world_size == 1:
        return Link(1e3, 0.0), host
    # A ring all-reduce of one number is 2 (N - 1) messages one after the other.
    one = torch.zeros(1)
    trips = [_timed(lambda: dist.all_reduce(one, group=group), group) for _ in range(_LATENCY_ROUNDS)]
    message_s = sorted(trips)[len(trips) // 2] / (2 * (world_size - 1))
    software_s = min(host.message_s * workers_per_core, message_s)
    link = Link(_payload_rate(world_size, group) * 8e-9 / PROTOCOL_EFFICIENCY, (message_s - software_s) * 2e3)
    return link, host


def _payload_rate(world_size: int, group: dist.ProcessGroup | None) -> float:
    """Bytes a second that a worker receives in an all-gather of large equal blocks.

    The difference between two sizes counts, so latency and a shaper's first burst cancel out.
    """
    num_bytes, previous_s, start = _FIRST_BYTES, 0.0, time.perf_counter()
    while True:
        seconds = min(_timed_all_gather(num_bytes, world_size, group) for _ in range(2))
        moved = num_bytes * (world_size - 1)
        enough = seconds > _ENOUGH_S or num_bytes >= _LAST_BYTES
        if _slowest(float(enough or time.perf_counter() - start > BUDGET_S / 4), group) > 0:
            gained = seconds - previous_s
            # Two sizes that took the same time say nothing about the rate but that it is high.
            return moved / 2 / gained if gained > seconds / 4 and previous_s > 0 else moved / seconds
        num_bytes, previous_s = 2 * num_bytes, seconds


def _timed_all_gather(num_bytes: int, world_size: int, group: dist.ProcessGroup | None) -> float:
    block = torch.zeros(num_bytes, dtype=torch.uint8)
    gathered = [torch.empty_like(block) for _ in range(world_size)]
    return _timed(lambda: dist.all_gather(gathered, block, group=group), group)


def _with_compress_speed(host: Host, compress: Compress, group: dist.ProcessGroup | None) -> Host:
    gradient = torch.randn(_KERNEL_NUMEL, generator=torch.Generator().manual_seed(0))
    compress(gradient.clone())
    # All ranks at once, as in training: ranks that share a core are then measured sharing it.
    seconds = min(_timed(lambda: compress(gradient.clone()), group) for _ in range(3))
    return Host(
        compress_bytes_per_s=4 * _KERNEL_NUMEL / seconds * host.workers_per_core,
        workers_per_core=host.workers_per_core,
    )


def _timed(work: Callable[[], object], group: dist.ProcessGroup | None) -> float:
    """Seconds of the slowest rank, all starting together."""
    dist.barrier(group)
    start = time.perf_counter()
    work()
    return _slowest(time.perf_counter() - start, group)


def _slowest(value: float, group: dist.ProcessGroup | None) -> float:
    worst = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX, group=group)
    return float(worst)
