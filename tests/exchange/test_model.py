"""The cost model against closed forms, limits, and a message-by-message simulation."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgcomp.exchange.model import (
    Cost,
    Gradient,
    Host,
    Link,
    all_gather,
    all_to_all,
    dense_bf16,
    dense_fp32,
    entry_bits,
    rice_bits,
    ring_all_reduce,
    sparse_all_gather,
    sparse_owner,
    sparse_tree,
    tree_all_reduce,
    two_level,
)
from dgcomp.exchange.volume import bytes_per_worker

FREE = Host(1e30, 1e30, 1e30, 1e30, 0.0)
RESNET50 = Gradient(25_502_912, leftover_numel=54_120)


@pytest.mark.parametrize(
    ("text", "gbit"),
    [("1Gbps", 1.0), ("100Mbit", 0.1), ("25 Gbit/s", 25.0), ("2.5gbps", 2.5), ("10 Mb/s", 0.01), ("64kbit", 64e-6)],
)
def test_link_reads_rates(text: str, gbit: float) -> None:
    assert Link.parse(text).bandwidth_gbit_per_s == pytest.approx(gbit)


def test_link_reads_round_trips() -> None:
    assert [Link.parse("1Gbps", text).rtt_ms for text in ("0.2ms", "150us", "0.01 s")] == pytest.approx([0.2, 0.15, 10])


@pytest.mark.parametrize(("rate", "trip"), [("fast", "1ms"), ("1GB/h", "1ms"), ("1Gbps", "soon"), ("1Gbps", "-1ms")])
def test_link_rejects_other_text(rate: str, trip: str) -> None:
    with pytest.raises(ValueError, match="must look like"):
        Link.parse(rate, trip)


@pytest.mark.parametrize("arguments", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 0.0, 0.0), (1.0, 0.0, 1.5)])
def test_link_rejects_numbers_out_of_range(arguments: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Link(*arguments)


# The table of expected bits of the best Rice code, Golomb 1966 by way of a direct sum over all gaps.
@pytest.mark.parametrize("density", [0.25, 0.0625, 0.0156, 0.01, 0.004, 0.001, 0.0001])
def test_rice_bits_equal_the_sum_over_gaps(density: float) -> None:
    gaps = range(int(40 / density))
    best = min(
        sum(density * (1 - density) ** gap * (width + 1 + (gap >> width)) for gap in gaps)
        for width in range(max(0, round(-math.log2(density)) - 2), round(-math.log2(density)) + 1)
    )
    assert rice_bits(density) == pytest.approx(best, rel=1e-9)


def test_entry_bits_at_the_papers_density() -> None:
    entropy = (-0.001 * math.log2(0.001) - 0.999 * math.log2(0.999)) / 0.001
    assert entropy <= rice_bits(0.001) <= 1.03 * entropy
    assert entry_bits(0.001, "paper") == 48
    assert 4 * 8 * 1000 / entry_bits(0.001, "int4") > 2000  # against fp32, every element sent
    with pytest.raises(ValueError, match="codec must be one of"):
        entry_bits(0.001, "int3")


@given(st.floats(1e-6, 1.0), st.sampled_from(["fp32", "int8", "int4"]))
def test_entry_bits_never_exceed_a_bitmap(density: float, codec: str) -> None:
    assert 0 < entry_bits(density, codec) <= 1 / density + entry_bits(1.0, codec)


def test_ring_is_the_textbook_formula() -> None:
    link = Link(1.0, 2.0, efficiency=1.0)
    cost = ring_all_reduce(8e6, 4, link, FREE)
    assert cost == Cost(pytest.approx(6 * (1e-3 + 2e6 * 8e-9)), pytest.approx(2 * 3 / 4 * 8e6), 6)


def test_gather_tree_and_all_to_all_are_the_textbook_formulas() -> None:
    link = Link(1.0, 2.0, efficiency=1.0)
    assert all_gather(1e6, 5, link, FREE) == Cost(pytest.approx(4 * (1e-3 + 8e-3)), pytest.approx(4e6), 4)
    assert all_to_all(1e6, 5, link, FREE) == Cost(pytest.approx(1e-3 + 0.8 * 8e-3), pytest.approx(0.8e6), 4)
    assert tree_all_reduce(1e6, 8, link, FREE) == Cost(pytest.approx(6 * (1e-3 + 8e-3)), pytest.approx(6e6), 6)


def test_one_worker_pays_nothing_for_the_network() -> None:
    for exchange in (dense_fp32, dense_bf16, sparse_all_gather, sparse_owner, sparse_tree):
        cost = exchange(RESNET50, 1, Link(1e-3, 1e3), FREE)
        assert (cost.seconds, cost.bytes_sent) == (pytest.approx(0, abs=1e-9), 0)


@pytest.mark.parametrize("world_size", [2, 8, 64, 256, 1024])
@pytest.mark.parametrize("leftover", [0, 54_120])
def test_bytes_are_those_of_the_real_exchanges(world_size: int, leftover: int) -> None:
    gradient = Gradient(25_502_912, leftover_numel=leftover)
    for name, exchange in (("all_gather", sparse_all_gather), ("owner", sparse_owner)):
        real = bytes_per_worker(
            name,
            count=25_503,
            numel=25_502_912,
            world_size=world_size,
            codec="int4",
            dense_numel=leftover,
            dense_codec="int4",
        )
        assert exchange(gradient, world_size, Link(1.0), Host()).bytes_sent == pytest.approx(real, rel=0.12), name


@pytest.mark.parametrize("world_size", [8, 64, 1024])
def test_owner_exchange_sends_at_most_6k_entries(world_size: int) -> None:
    gradient = Gradient(25_502_912)
    sent = sparse_owner(gradient, world_size, Link(1.0), Host()).bytes_sent * 8 / entry_bits(0.001)
    assert 2 * gradient.num_entries * (world_size - 1) / world_size <= sent <= 6 * gradient.num_entries


def test_all_gather_wins_below_the_crossover_and_owner_above() -> None:
    link = Link(0.1, 0.2)
    winner = [
        sparse_owner(RESNET50, n, link, FREE).seconds < sparse_all_gather(RESNET50, n, link, FREE).seconds
        for n in (2, 4, 8, 16, 64, 256)
    ]
    assert winner == sorted(winner)
    assert winner[0] is False
    assert winner[-1] is True


def test_two_level_sends_between_nodes_what_the_nodes_would() -> None:
    near = Link(100.0, 0.01)
    cost = two_level(RESNET50, 64, Link(1.0), Host(), node_size=8, node_link=near)
    assert cost.bytes_sent == sparse_all_gather(RESNET50, 8, Link(1.0), Host()).bytes_sent
    assert cost.seconds < sparse_all_gather(RESNET50, 64, Link(1.0), Host()).seconds * 10
    with pytest.raises(ValueError, match="node_size must divide"):
        two_level(RESNET50, 10, Link(1.0), Host(), node_size=4, node_link=near)


@given(st.integers(2, 4096), st.floats(0.01, 100), st.floats(0, 50))
def test_more_bandwidth_and_less_latency_never_cost_time(world_size: int, gbit: float, rtt_ms: float) -> None:
    for exchange in (dense_fp32, dense_bf16, sparse_all_gather, sparse_owner, sparse_tree):
        slow = exchange(RESNET50, world_size, Link(gbit, rtt_ms), Host()).seconds
        assert exchange(RESNET50, world_size, Link(2 * gbit, rtt_ms), Host()).seconds <= slow
        assert exchange(RESNET50, world_size, Link(gbit, rtt_ms / 2), Host()).seconds <= slow


def test_a_sparse_step_begins_with_an_agreement_of_all_ranks() -> None:
    link = Link(1.0, 10.0)
    assert sparse_all_gather(RESNET50, 4, link, FREE).messages == 2 * 3 + 3
    # six messages to agree and three to gather, 5 ms each, beside the bytes
    assert sparse_all_gather(RESNET50, 4, link, FREE).seconds == pytest.approx(9 * 5e-3, rel=0.1)


def test_workers_that_share_a_core_fill_each_others_waiting() -> None:
    link, alone = Link(1e6, 0.0), Host(message_s=0.0, transport_busy_share=0.75)
    seconds = [
        ring_all_reduce(1e8, 4, link, replace(alone, workers_per_core=sharing)).seconds for sharing in (1.0, 2.0, 4.0)
    ]
    assert [value / seconds[0] for value in seconds] == pytest.approx([1.0, 1.5, 3.0])


def test_ring_cost_equals_an_event_simulation() -> None:
    """Messages one by one: a rank sends its next segment when it has received the one before."""
    world_size, segment, link = 5, 3e5, Link(0.5, 1.0, efficiency=1.0)
    ready = [0.0] * world_size
    for _ in range(2 * (world_size - 1)):
        arrival = [t + link.one_way_s + segment / link.bytes_per_s for t in ready]
        ready = [max(ready[rank], arrival[rank - 1]) for rank in range(world_size)]
    assert ring_all_reduce(segment * world_size, world_size, link, FREE).seconds == pytest.approx(max(ready))


@pytest.mark.parametrize("arguments", [{"numel": 0}, {"numel": 5, "density": 0.0}, {"numel": 5, "num_buckets": 0}])
def test_gradient_rejects_numbers_out_of_range(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Gradient(**arguments)  # type: ignore[arg-type]
