"""Bytes that one worker sends and receives, computed beforehand: exactly what the exchanges then count."""

from dgcomp import wire
from dgcomp.exchange.regions import owner_count, region_count


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
    if algorithm == "all_gather":
        return others * wire.capacity_bytes(count, numel, codec, dense_numel=dense_numel, dense_codec=dense_codec)
    if algorithm == "owner":
        region, dense_part = -(-numel // world_size), -(-dense_numel // world_size)
        return others * sum(
            wire.capacity_bytes(min(part, region), region, codec, dense_numel=dense_part, dense_codec=dense_codec)
            for part in (region_count(count, world_size), owner_count(count, world_size))
        )
    raise ValueError(f'algorithm must be "dense", "all_gather" or "owner", got {algorithm!r}')
