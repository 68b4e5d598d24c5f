"""The planner: the fastest method by the model, corrected by observations, equal on all ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgcomp.exchange.model import Host, Link
from dgcomp.exchange.planner import COMPRESSED, METHODS, at_density, break_even_gbit_per_s, limits, plan, replan

NUMEL = 25_502_912


def test_slow_links_get_compression_and_fast_ones_do_not() -> None:
    assert plan(NUMEL, 0.001, 4, Link(0.1)).compresses
    assert plan(NUMEL, 0.001, 4, Link(1.0)).compresses
    # A compressor of 1 MB/s spends more on 200 elements than any message does.
    assert not plan(200, 1.0, 2, Link(100.0, 0.01), host=Host(compress_bytes_per_s=1e6)).compresses
    slow_compressor = Host(compress_bytes_per_s=1e8, transport_bytes_per_s=1e11)
    assert not plan(NUMEL, 0.001, 4, Link(100.0, 0.01), host=slow_compressor).compresses


def test_owner_above_the_crossover_all_gather_below() -> None:
    assert plan(NUMEL, 0.01, 2, Link(0.1)).name == "all_gather"
    assert plan(NUMEL, 0.01, 256, Link(0.1)).name == "owner"


def test_warm_up_densities_are_planned_alike() -> None:
    choice = plan(NUMEL, 0.001, 64, Link(1.0))
    for density in (0.25, 0.01):
        assert at_density(choice, density).costs == plan(NUMEL, density, 64, Link(1.0)).costs
        assert at_density(choice, density).name == plan(NUMEL, density, 64, Link(1.0)).name
    lossless = plan(NUMEL, 0.001, 64, Link(1.0), lossless_dense=True)
    assert "dense_bf16" not in at_density(lossless, 0.25).costs


def test_two_level_is_offered_only_with_nodes() -> None:
    assert "two_level" not in plan(NUMEL, 0.001, 8, Link(0.1)).costs
    with_nodes = plan(NUMEL, 0.25, 64, Link(0.1), node_size=8, node_link=Link(400.0, 0.01))
    assert "two_level" in with_nodes.costs
    with pytest.raises(ValueError, match="node_link must be given"):
        plan(NUMEL, 0.001, 8, Link(0.1), node_size=4)


def test_lossless_dense_leaves_bf16_out() -> None:
    assert "dense_bf16" not in plan(NUMEL, 0.001, 4, Link(1.0), lossless_dense=True).costs


@given(st.integers(1, 10**9), st.floats(1e-5, 1.0), st.integers(1, 4096), st.floats(1e-3, 400), st.floats(0, 100))
def test_the_choice_is_the_smallest_prediction(
    numel: int, density: float, world_size: int, gbit: float, rtt_ms: float
) -> None:
    choice = plan(numel, density, world_size, Link(gbit, rtt_ms))
    assert choice.seconds == min(cost.seconds for cost in choice.costs.values())
    assert [name for name, _ in choice.ranking()][0] == choice.name
    assert set(choice.costs) <= set(METHODS)


def test_replan_switches_on_evidence_and_not_on_noise() -> None:
    choice = plan(NUMEL, 0.001, 4, Link(1.0))
    assert replan(choice, {choice.name: choice.seconds * 1.05}).name == choice.name
    # The whole family takes the observed factor: 1000 times slower than thought, dense wins.
    slow = replan(choice, {choice.name: choice.seconds * 1000})
    assert slow.name not in COMPRESSED
    assert slow.costs[choice.name].seconds == pytest.approx(choice.seconds * 1000)
    # A later observation replaces the earlier one; dense turns out slow too.
    back = replan(slow, {choice.name: choice.seconds, slow.name: slow.seconds * 10})
    assert back.name in COMPRESSED


@given(st.floats(0.01, 100))
def test_replan_with_the_prediction_itself_changes_nothing(factor: float) -> None:
    choice = plan(NUMEL, 0.001, 4, Link(1.0))
    once = replan(choice, {choice.name: choice.seconds * factor})
    twice = replan(once, {choice.name: choice.seconds * factor})
    assert twice.name == once.name or factor > 1
    for name, cost in once.costs.items():
        assert twice.costs[name].seconds == pytest.approx(cost.seconds)


def test_replan_rejects_unknown_methods() -> None:
    with pytest.raises(ValueError, match="observed_s must name methods of the plan"):
        replan(plan(NUMEL, 0.001, 4, Link(1.0)), {"carrier pigeon": 1.0})


def test_break_even_is_where_both_cost_the_same() -> None:
    host = Host(transport_bytes_per_s=1e13, compress_bytes_per_s=5e9)
    choice = plan(NUMEL, 0.001, 4, Link(1.0), host=host)
    rate = break_even_gbit_per_s(choice, "all_gather")
    at = plan(NUMEL, 0.001, 4, Link(rate), host=host).costs
    assert at["all_gather"].seconds == pytest.approx(at["dense_fp32"].seconds, rel=0.01)
    never = plan(200, 0.25, 2, Link(1.0, 100.0), host=Host(compress_bytes_per_s=1.0))
    assert break_even_gbit_per_s(never, "owner") < 1e-5
    always = plan(NUMEL, 0.001, 4, Link(1.0), host=Host(transport_bytes_per_s=1e8))
    assert break_even_gbit_per_s(always, "all_gather") == float("inf")


def test_limits_name_what_to_mend() -> None:
    def worst(link: Link, host: Host) -> str:
        parts = limits(plan(NUMEL, 0.001, 4, link, host=host), "all_gather")
        return max(parts, key=lambda name: parts[name])

    assert worst(Link(1e-4, 0.0), Host()) == "bandwidth"
    assert worst(Link(10.0, 300.0), Host()) == "latency"
    assert worst(Link(10.0, 0.0), Host(compress_bytes_per_s=1e8)) == "arithmetic"


def test_table_marks_the_choice() -> None:
    choice = plan(NUMEL, 0.001, 4, Link(1.0))
    marked = [line for line in choice.table().splitlines() if line.startswith("*")]
    assert len(marked) == 1
    assert choice.name in marked[0]


@pytest.mark.parametrize("world_size", [0, -1])
def test_world_size_must_be_positive(world_size: int) -> None:
    with pytest.raises(ValueError, match="world_size must be at least 1"):
        plan(NUMEL, 0.001, world_size, Link(1.0))
