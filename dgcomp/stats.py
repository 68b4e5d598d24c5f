"""What a compressor counts: one step into its counters, and the counters as the dictionary that users read."""

from typing import Any

import torch

from dgcomp.memory import GradientMemory
from dgcomp.reduce import Report, Step
from dgcomp.reduce_dense import ring_bytes
from dgcomp.telemetry import Counters


def count_step(
    counters: Counters, memory: GradientMemory, step: Step, report: Report, dense_bytes: int, world_size: int
) -> None:
    """Add one step; `dense_bytes` is the size of its gradients."""
    counters.messages += report.messages
    counters.exchanges += 1
    counters.add_phases(report.milliseconds)
    counters.last_exchange = step.exchange
    if not report.is_finite:
        counters.nonfinite_steps += 1
        return
    counters.steps += not step.is_additional
    sparse_dense = sum(slot.numel * slot.local.element_size() for slot in memory.sparse)
    counters.bytes_dense += dense_bytes
    counters.sparse_bytes_dense += sparse_dense
    counters.sparse_bytes_sent += report.sparse_bytes_sent
    counters.leftover_bytes_sent += report.leftover_bytes_sent
    counters.bytes_sent += report.sparse_bytes_sent + report.leftover_bytes_sent
    counters.network_bytes_sent += report.network_bytes_sent
    counters.network_bytes_received += report.network_bytes_received
    counters.network_bytes_dense += ring_bytes(dense_bytes, world_size)
    counters.last = {
        "density": report.sent_entries / max(1, memory.sparse_numel),
        "bytes_sent": report.sparse_bytes_sent + report.leftover_bytes_sent,
        "bytes_dense": dense_bytes,
        "sparse_bytes_sent": report.sparse_bytes_sent,
        "sparse_bytes_dense": sparse_dense,
        "messages": report.messages,
    }


def stats_of(counters: Counters, memory: GradientMemory, density: float, *, is_two_level: bool) -> dict[str, Any]:
    """The counters and the norms of u and v; `density` stands in for that of the last step before there is one."""
    return {
        "steps": counters.steps,
        "nonfinite_steps": counters.nonfinite_steps,
        "exchange": "two_level" if is_two_level else counters.last_exchange,
        "density": counters.last.get("density", density),
        "bytes_sent": counters.bytes_sent,
        "bytes_received": counters.network_bytes_received,
        "bytes_dense": counters.bytes_dense,
        "network_bytes_sent": counters.network_bytes_sent,
        "network_bytes_dense": counters.network_bytes_dense,
        "sparse_bytes_sent": counters.sparse_bytes_sent,
        "sparse_bytes_dense": counters.sparse_bytes_dense,
        "leftover_bytes_sent": counters.leftover_bytes_sent,
        "messages": counters.messages,
        "last_step": dict(counters.last),
        "residual_norm": float(torch.linalg.vector_norm(memory.residual)),
        "momentum_norm": 0.0 if memory.momentum is None else float(torch.linalg.vector_norm(memory.momentum)),
        "milliseconds": {name: value / max(1, counters.exchanges) for name, value in counters.milliseconds.items()},
    }
