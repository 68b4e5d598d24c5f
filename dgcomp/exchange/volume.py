"""Bytes that one worker sends and receives, computed beforehand: exactly what the exchanges then count."""

import numpy as np

from dgcomp.exchange.owner import Layout
from dgcomp.exchange.result import Plan


def bytes_per_worker(
    algorithm: str,
    *,
    count: int,
    numel: int,
    world_size: int,
    codec: str = "auto",
    dense_numel: int = 0,
    dense_codec: str = "int8",
) -> int:
    """Payload bytes that a worker sends in one exchange; it receives as many.

    For "owner" the regions are taken to be equally long; re-balancing adds a histogram every 64 exchanges.
    Raises ValueError for an algorithm without a fixed size.
    """
    others = world_size - 1
    if algorithm == "dense":
        return 2 * others * 4 * (numel + dense_numel) // world_size
    plan = Plan(
        numel=numel, count=count, codec=codec, dense_numel=dense_numel, dense_codec=dense_codec, tag=0, group=None
    )
    if algorithm == "all_gather":
        return others * plan.capacity_bytes()
    if algorithm == "owner":
        layout = Layout(plan, np.arange(world_size + 1) * numel // world_size)
        return others * (layout.sent(0).capacity_bytes() + layout.selected(0).capacity_bytes())
    raise ValueError(f'algorithm must be "dense", "all_gather" or "owner", got {algorithm!r}')
