"""The owners' exchange without processes: all ranks of a step are simulated, bytes and conservation are counted."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dgcomp.exchange.owner import Layout, largest, pack_for_owners, select_sums, unpack_selections
from dgcomp.exchange.regions import Regions, balanced, histogram, owner_count, region_count
from dgcomp.exchange.result import Plan, Selection, padded
from dgcomp.exchange.volume import bytes_per_worker
from dgcomp.wire import WireError, capacity_bytes

NUMEL, COUNT = 60_000, 600


def _plan(codec: str = "int4", dense_numel: int = 50) -> Plan:
    return Plan(numel=NUMEL, count=COUNT, codec=codec, dense_numel=dense_numel, dense_codec="int4", tag=9, group=None)


def _selections(ranks: int, skew: float) -> list[Selection]:
    """Positions that gather at the low end, as a hot embedding's do, and are partly common to all ranks."""
    out = []
    for rank in range(ranks):
        rng = np.random.default_rng(rank)
        weights = (1 + np.arange(NUMEL)) ** -skew
        positions = np.sort(rng.choice(NUMEL, COUNT, replace=False, p=weights / weights.sum()))
        values = rng.standard_normal(COUNT).astype(np.float32)
        out.append(Selection(values, positions, torch.from_numpy(rng.standard_normal(50).astype(np.float32))))
    return out


def _scatter(positions: Tensor, values: Tensor) -> Tensor:
    return torch.zeros(NUMEL, dtype=torch.float64).index_add_(0, positions, values.double())


def _boundaries(selections: list[Selection]) -> np.ndarray:
    ranks = len(selections)
    return balanced(sum(histogram(s.positions, NUMEL, ranks) for s in selections), NUMEL, ranks)


@pytest.mark.parametrize("ranks", [2, 5, 16])
@pytest.mark.parametrize("skew", [0.0, 0.8])
@pytest.mark.parametrize("codec", ["fp32", "int4", "sign"])
def test_nothing_is_lost_and_k_entries_come_back(ranks: int, skew: float, codec: str) -> None:
    selections = _selections(ranks, skew)
    layout = Layout(_plan(codec), _boundaries(selections))
    packed = [pack_for_owners(selection, layout) for selection in selections]
    names = list(range(ranks))
    owned = [select_sums([rows[own] for rows, _ in packed], layout, own, names) for own in names]
    rows = torch.stack([padded(message, layout.selected_bytes()) for message, _ in owned])
    result = unpack_selections(rows, layout, names)
    parts = [result, *(kept for _, kept in packed), *(kept for _, kept in owned)]
    total = sum(_scatter(torch.from_numpy(s.positions), torch.from_numpy(s.values)) for s in selections)
    torch.testing.assert_close(sum(_scatter(p.positions, p.values) for p in parts), total, atol=1e-5, rtol=0)
    dense = sum(selection.dense for selection in selections)
    torch.testing.assert_close(sum(part.dense for part in parts), dense, atol=1e-5, rtol=1e-5)
    assert (result.positions.diff() > 0).all()
    # balanced regions fill nearly every owner's share
    assert 0.9 * COUNT <= result.positions.numel() <= COUNT + ranks
    for row_of, _ in packed:
        assert all(len(row) == layout.sent(own).capacity_bytes() for own, row in enumerate(row_of))


def test_owners_select_the_largest_sums() -> None:
    selections = _selections(2, 0.0)
    layout = Layout(_plan("fp32"), _boundaries(selections))
    packed = [pack_for_owners(selection, layout)[0] for selection in selections]
    _, kept = select_sums([rows[0] for rows in packed], layout, 0, [0, 1])
    total = sum(_scatter(torch.from_numpy(s.positions), torch.from_numpy(s.values)) for s in selections)
    region = total[: int(layout.boundaries[1])].abs()
    threshold = region.sort(descending=True).values[owner_count(COUNT, 2) - 1]
    assert (kept.values.abs() <= threshold * (1 + 1e-6)).all()


def test_what_exceeds_an_owners_share_is_kept_smallest_first() -> None:
    values = torch.linspace(0.1, 1.0, COUNT).numpy()
    crowd = Selection(values, np.arange(COUNT), torch.zeros(50))
    layout = Layout(_plan("fp32"), np.array([0, NUMEL // 2, NUMEL]))
    _, kept = pack_for_owners(crowd, layout)
    assert kept.positions.tolist() == list(range(COUNT - region_count(COUNT, 2)))


def test_an_unreadable_message_becomes_the_owners_message() -> None:
    selections = _selections(3, 0.0)
    layout = Layout(_plan(), _boundaries(selections))
    packed = [pack_for_owners(selection, layout)[0] for selection in selections]
    packed[1][2][20] ^= 1
    rows = [
        padded(select_sums([r[own] for r in packed], layout, own, [0, 1, 2])[0], layout.selected_bytes())
        for own in range(3)
    ]
    with pytest.raises(WireError, match="rank 2: the sender failed: rank 1: the checksum does not match"):
        unpack_selections(torch.stack(rows), layout, [0, 1, 2])


@pytest.mark.parametrize("skew", [0.0, 0.9])
@pytest.mark.parametrize("ranks", [2, 7, 64])
def test_regions_hold_equally_many_positions(ranks: int, skew: float) -> None:
    positions = np.concatenate([selection.positions for selection in _selections(8, skew)])
    boundaries = balanced(histogram(positions, NUMEL, ranks), NUMEL, ranks)
    counts = np.histogram(positions, boundaries)[0]
    assert (np.diff(boundaries) > 0).all()
    # a bin holds at most 59 positions of 8 ranks, and is cut as if they were evenly spread
    assert counts.max() <= 1.3 * positions.size / ranks + 100


def test_regions_of_nothing_and_of_one_hot_element() -> None:
    empty = balanced(histogram(np.empty(0, np.int64), 10, 4), 10, 4)
    assert empty.tolist() == [0, 2, 5, 7, 10]
    hot = balanced(histogram(np.full(1000, 3), 10, 4), 10, 4)
    assert (np.diff(hot) > 0).all()
    assert hot[-1] == 10


@pytest.mark.parametrize("world_size", [8, 64, 1024])
def test_bytes_per_worker_do_not_grow_with_the_number_of_workers(world_size: int) -> None:
    """At most 4 k entries in each direction, at the bytes an entry takes in one large message."""
    numel, count = 25_502_912, 25_503
    entry_bytes = capacity_bytes(count, numel, "int4") / count
    sent = bytes_per_worker("owner", count=count, numel=numel, world_size=world_size, codec="int4")
    assert sent <= (4 if world_size > 64 else 2.7) * count * entry_bytes
    gathered = bytes_per_worker("all_gather", count=count, numel=numel, world_size=world_size, codec="int4")
    assert gathered > sent


def test_largest_of_ties_and_of_none() -> None:
    assert largest(np.array([1, -3, 2], np.float32), 2).tolist() == [1, 2]
    assert largest(np.array([1, 1, 1], np.float32), 0).tolist() == []
    assert largest(np.array([1, 1], np.float32), 5).tolist() == [0, 1]
    assert len(largest(np.ones(9, np.float32), 4)) == 4


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="every must be at least 1 exchange, got 0"):
        Regions(every=0)
    with pytest.raises(ValueError, match='algorithm must be "dense", "all_gather" or "owner", got \'ring\''):
        bytes_per_worker("ring", count=1, numel=10, world_size=2)
