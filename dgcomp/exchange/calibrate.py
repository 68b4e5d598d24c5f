"""Measure a group's link and this machine's speed at start, in under two seconds, with equal results on all ranks."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist

from dgcomp import kernels
from dgcomp.exchange.collectives import device_of
from dgcomp.exchange.merge import merge
from dgcomp.exchange.model import PROTOCOL_EFFICIENCY, Host, Link
from dgcomp.wire import decode, encode

BUDGET_S = 2.0
_LATENCY_ROUNDS = 15
_FIRST_BYTES = 1 << 16
_LAST_BYTES = 1 << 25
_ENOUGH_S = 0.1
_KERNEL_NUMEL = 1 << 20
_KERNEL_THRESHOLD = 3.3  # about one normal value in a thousand is larger
_SCATTER_NUMEL = 1 << 24  # 64 MB: entries fall outside of the caches, as those of a real gradient do
_SCATTER_ENTRIES = 1 << 14


def calibrate(group: dist.ProcessGroup | None = None, *, workers_per_core: float = 1.0) -> tuple[Link, Host]:
    """Measure round trip, line rate and compression speed of a process group.

    A collective call: every rank of `group` makes it, with the same sequence of collectives. Each measurement is the
    slowest rank's, so all ranks return equal values and plan alike. Takes at most about two seconds, also on slow
    links: sizes grow until one transfer takes a tenth of a second. Compression is timed on a gradient of 2^20 normal
    values, reading on two messages of 2^14 entries, each after one call that compiles the kernels. `workers_per_core`
    tells how many ranks share a core of this machine.
    """
    world_size = dist.get_world_size(group)
    host = Host(
        compress_bytes_per_s=_compress_bytes_per_s(group) * workers_per_core,
        scatter_entries_per_s=_scatter_entries_per_s(group) * workers_per_core,
        workers_per_core=workers_per_core,
    )
    if world_size == 1:
        return Link(1e3, 0.0), host
    # A ring all-reduce of one number is 2 (N - 1) messages one after the other.
    one = torch.zeros(1, device=device_of(group))
    trips = [_timed(lambda: dist.all_reduce(one, group=group), group) for _ in range(_LATENCY_ROUNDS)]
    message_s = sorted(trips)[len(trips) // 2] / (2 * (world_size - 1))
    software_s = min(host.message_s * workers_per_core, message_s)
    link = Link(_ring_bytes_per_s(world_size, group) * 8e-9 / PROTOCOL_EFFICIENCY, (message_s - software_s) * 2e3)
    # The measured rate already holds what the processor does to move and add bytes.
    return link, replace(host, transport_bytes_per_s=math.inf)


def _ring_bytes_per_s(world_size: int, group: dist.ProcessGroup | None) -> float:
    """Bytes a second that a worker sends in an all-reduce of a large buffer.

    The difference between two sizes counts, so latency and a shaper's first burst cancel out.
    """
    num_bytes, previous_s, start = _FIRST_BYTES, 0.0, time.perf_counter()
    while True:
        buffer = torch.zeros(num_bytes // 4, device=device_of(group))
        seconds = min(_timed(partial(dist.all_reduce, buffer, group=group), group) for _ in range(2))
        sent = 2 * num_bytes * (world_size - 1) / world_size
        enough = seconds > _ENOUGH_S or num_bytes >= _LAST_BYTES
        if _slowest(float(enough or time.perf_counter() - start > BUDGET_S / 4), group) > 0:
            gained = seconds - previous_s
            # Two sizes that took the same time say nothing about the rate but that it is high.
            return sent / 2 / gained if gained > seconds / 4 and previous_s > 0 else sent / seconds
        num_bytes, previous_s = 2 * num_bytes, seconds


def _compress_bytes_per_s(group: dist.ProcessGroup | None) -> float:
    """Dense fp32 bytes a second through the update and selection kernel, all ranks at once as in training."""
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(_KERNEL_NUMEL, generator=generator).to(device_of(group))
    momentum, residual = torch.zeros_like(gradient), torch.zeros_like(gradient)

    def compress() -> None:
        # The kernel zeroes the gradient, so that momentum and residual stay small: the threshold keeps its meaning.
        kernels.accumulate_select(gradient, momentum, residual, threshold=_KERNEL_THRESHOLD)

    compress()
    return 4 * _KERNEL_NUMEL / min(_timed(compress, group) for _ in range(3))


def _scatter_entries_per_s(group: dist.ProcessGroup | None) -> float:
    """Entries a second through decoding, merging in rank order and writing, all ranks at once as in training."""
    generator = torch.Generator().manual_seed(0)
    messages = []
    for _ in range(2):
        positions = torch.randint(_SCATTER_NUMEL, (_SCATTER_ENTRIES,), generator=generator).unique()
        messages.append(
            encode(torch.randn(len(positions), generator=generator), positions, _SCATTER_NUMEL, codec="int4")
        )
    gradient = torch.zeros(_SCATTER_NUMEL)

    def read() -> None:
        values, positions = zip(*(decode(message)[:2] for message in messages), strict=True)
        where, sums = merge(positions, values, _SCATTER_NUMEL)
        gradient[where] = sums

    read()
    return 2 * _SCATTER_ENTRIES / min(_timed(read, group) for _ in range(3))


def _timed(work: Callable[[], object], group: dist.ProcessGroup | None) -> float:
    """Seconds of the slowest rank, all starting together."""
    dist.barrier(group)
    start = time.perf_counter()
    work()
    return _slowest(time.perf_counter() - start, group)


def _slowest(value: float, group: dist.ProcessGroup | None) -> float:
    worst = torch.tensor(value, dtype=torch.float64, device=device_of(group))
    dist.all_reduce(worst, op=dist.ReduceOp.MAX, group=group)
    return float(worst)
