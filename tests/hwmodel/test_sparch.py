"""SpArch: merges against explicit sets, the prefetcher against Belady, traffic against the measured table."""

import itertools
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp import hwmodel
from dgcomp.hwmodel import sparch_kernels as kernels
from dgcomp.hwmodel.merge_order import ORDERS, plan_merges
from dgcomp.hwmodel.merge_tree import merge_streams
from dgcomp.hwmodel.operation import Operation
from dgcomp.hwmodel.pattern import Pattern
from dgcomp.hwmodel.sparch import OuterSPACE, SpArch, design_points
from tests.hwmodel.graphs import load_graph


def sparse(rows: int, columns: int, density: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) < density
    return torch.where(mask, torch.rand(rows, columns, generator=generator) + 0.5, torch.zeros(()))


def megabytes(cost: hwmodel.Cost) -> float:
    return sum(cost.part("bytes").values()) / 1e6


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 12),
    st.floats(0, 0.7),
    st.integers(0, 1000),
    st.sampled_from(ORDERS),
    st.booleans(),
    st.integers(2, 5),
)
def test_work_equals_explicit_sets(
    n: int, k: int, m: int, density: float, seed: int, order: str, condense: bool, ways: int
) -> None:
    a, b = sparse(n, k, density, seed), sparse(k, m, density, seed + 1)
    work = SpArch(condense=condense, order=order, ways=ways, prefetch=False).work(a, b)  # type: ignore[arg-type]
    leaves, products = explicit_leaves(a, b, condense)
    plan = plan_merges(np.array([products[leaf] for leaf in range(len(leaves))]), ways=ways, order=order)  # type: ignore[arg-type]
    sets: list[set[tuple[int, int]]] = []
    for node in range(len(plan.node_parent)):
        union: set[tuple[int, int]] = set()
        for leaf, parent in enumerate(plan.leaf_parent):
            union |= leaves[leaf] if parent == node else set()
        for child in range(node):
            union |= sets[child] if plan.node_parent[child] == node else set()
        sets.append(union)
    assert work.results.tolist() == [len(union) for union in sets]
    assert work.multiplies.sum() == float((a != 0).double().mm((b != 0).double()).sum())
    assert work.results[-1] == int(((a != 0).double().mm((b != 0).double()) != 0).sum())
    assert work.a_elements.sum() == int((a != 0).sum())


def explicit_leaves(a: torch.Tensor, b: torch.Tensor, condense: bool) -> tuple[list[set[tuple[int, int]]], list[int]]:
    """Positions and products of every partial matrix, from the definitions."""
    used = sorted({int(column) for column in a.nonzero()[:, 1]})
    num = max((int(row.count_nonzero()) for row in a), default=0) if condense else len(used)
    leaves: list[set[tuple[int, int]]] = [set() for _ in range(num)]
    products = [0] * num
    for r, row in enumerate(a):
        for place, k in enumerate(int(column) for column in row.nonzero()[:, 0]):
            leaf = place if condense else used.index(k)
            positions = {(r, int(column)) for column in b[k].nonzero()[:, 0]}
            leaves[leaf] |= positions
            products[leaf] += len(positions)
    return leaves, products


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("num_leaves", [1, 2, 4, 5, 16, 17, 100])
def test_plans_merge_everything_once(order: str, num_leaves: int) -> None:
    plan = plan_merges(np.arange(num_leaves), ways=4, order=order)  # type: ignore[arg-type]
    num_nodes = len(plan.node_parent)
    inputs = np.bincount(plan.leaf_parent, minlength=num_nodes) + np.bincount(
        plan.node_parent[:-1], minlength=num_nodes
    )
    assert inputs.max() <= 4
    assert (plan.node_parent[:-1] > np.arange(num_nodes - 1)).all()
    assert plan.node_parent[-1] == -1
    if order == "huffman" and num_leaves > 4:
        assert inputs[0] == (num_leaves - 2) % 3 + 2
        assert (inputs[1:] == 4).all()


def test_huffman_moves_least() -> None:
    weights = np.random.default_rng(0).zipf(1.5, 200)
    written = {}
    for order in ORDERS:
        plan = plan_merges(weights, ways=4, order=order)  # type: ignore[arg-type]
        sizes = np.bincount(plan.leaf_parent, weights, len(plan.node_parent))
        for node, parent in enumerate(plan.node_parent[:-1]):
            sizes[parent] += sizes[node]
        written[order] = sizes[:-1].sum()
    assert written["huffman"] == min(written.values())


def least_misses(rows: list[int], capacity: int) -> int:
    """Fewest misses of unit-size rows in a buffer, by trying every eviction (no bypass)."""
    states = {frozenset[int](): 0}
    for row in rows:
        following: dict[frozenset[int], int] = {}
        for held, misses in states.items():
            if row in held:
                options = [(held, misses)]
            elif len(held) < capacity:
                options = [(held | {row}, misses + 1)]
            else:
                options = [((held - {victim}) | {row}, misses + 1) for victim in held]
            for state, count in options:
                following[state] = min(count, following.get(state, count))
        states = following
    return min(states.values())


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=24), st.integers(1, 4))
def test_prefetcher_with_full_sight_is_optimal(rows: list[int], capacity: int) -> None:
    array = np.array(rows, np.int64)
    fetched, _, asked = kernels.prefetch_misses(
        array, kernels.next_uses(array, 6), np.ones(6, np.int64), capacity, 1, len(rows)
    )
    assert asked == len(rows)
    assert fetched.sum() == least_misses(rows, capacity)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(1, 20), st.integers(1, 4), st.integers(1, 30))
def test_prefetcher_counts_stay_within_bounds(data: st.DataObject, num_lines: int, line: int, window: int) -> None:
    lengths = np.array(data.draw(st.lists(st.integers(0, 30), min_size=8, max_size=8)), np.int64)
    rows = np.array(data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=80)), np.int64)
    fetched, hits, asked = kernels.prefetch_misses(rows, kernels.next_uses(rows, 8), lengths, num_lines, line, window)
    assert (fetched <= lengths[rows]).all()
    assert fetched.sum() >= lengths[np.unique(rows)].sum()  # each row comes from memory at least once
    assert 0 <= hits <= asked == (-(-lengths[rows] // line)).sum()


# MB measured on the real graphs by an independent script: outer products, then chain and balanced merges of all
# columns, chain and balanced merges of condensed columns, Huffman, prefetch.
TRAFFIC_MB = {
    "wiki-Vote": (133.5, 1483, 145, 836, 147, 92.9, 39.5),
    "facebook": (490.3, 4306, 289, 1745, 369, 278.0, 60.9),
    "p2p-Gnutella31": (22.9, 10847, 44, 31.9, 31.9, 14.7, 12.4),
}
MULTIPLIES = {"wiki-Vote": 4_542_805, "facebook": 18_806_166, "p2p-Gnutella31": 538_318}
RESULTS = {"wiki-Vote": 1_831_112, "facebook": 2_896_485, "p2p-Gnutella31": 537_601}


@pytest.mark.data
@pytest.mark.parametrize("name", TRAFFIC_MB)
def test_traffic_on_real_graphs(name: str) -> None:
    graph = load_graph(name)
    outer = OuterSPACE().run(graph, graph)
    assert outer.breakdown["multiplies_count"] == MULTIPLIES[name]
    assert outer.breakdown["dram_c_bytes"] == 12 * RESULTS[name]
    designs = [
        SpArch(condense=False, order="chain", prefetch=False),
        SpArch(condense=False, order="balanced", prefetch=False),
        SpArch(order="chain", prefetch=False),
        SpArch(order="balanced", prefetch=False),
        SpArch(prefetch=False),
        SpArch(),
    ]
    costs = [design.run(graph, graph) for design in designs]
    assert [megabytes(outer), *map(megabytes, costs)] == pytest.approx(TRAFFIC_MB[name], rel=0.15)
    assert {cost.breakdown["multiplies_count"] for cost in costs} == {MULTIPLIES[name]}
    assert {cost.breakdown["dram_c_bytes"] for cost in costs} == {12 * RESULTS[name]}


@pytest.mark.data
def test_total_against_outerspace_is_in_the_published_regime() -> None:
    ratios, prefetch = [], []
    for name in TRAFFIC_MB:
        graph = load_graph(name)
        # In the paper's order of ablation every idea takes traffic away, from the chain of all columns on.
        points = [megabytes(design.run(graph, graph)) for design in design_points("chain").values()]
        assert points == sorted(points, reverse=True)
        ratios.append(megabytes(OuterSPACE().run(graph, graph)) / points[-1])
        prefetch.append(points[-2] / points[-1])
    # 2.8x on the paper's twenty; these three alone gave 1.85 to 8.1 in the independent measurement.
    assert 2 < prod(ratios) ** (1 / 3) < 4.5
    assert all(1.1 < gain < 4.8 for gain in prefetch)  # 1.5x on the twenty


def test_cycles_are_those_of_the_slowest_part() -> None:
    a = sparse(60, 60, 0.2, 0)
    for chip in (SpArch(), SpArch(multipliers=1), SpArch(merge_width=1), SpArch(bytes_per_cycle=1)):
        cost = chip.run(a, a)
        parts = cost.part("cycles")
        assert max(parts.values()) <= cost.cycles <= sum(parts.values()) + cost.breakdown["merges_count"]
    assert SpArch(multipliers=1).run(a, a).cycles >= cost.breakdown["multiplies_count"]


def test_all_kinds_of_matrices_agree() -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    a, b = sparse(20, 30, 0.3, 0), sparse(30, 10, 0.3, 1)
    dense = SpArch().run(a, b)
    assert SpArch().run(a.to_sparse_coo(), b.to_sparse_coo()) == dense
    assert SpArch().run(scipy_sparse.csr_matrix(a.numpy()), scipy_sparse.coo_matrix(b.numpy())) == dense
    assert SpArch().run(Pattern.of(a), b) == dense


def test_empty_and_dense_extremes() -> None:
    nothing = SpArch().run(torch.zeros(3, 4), torch.zeros(4, 5))
    assert (nothing.breakdown["multiplies_count"], sum(nothing.part("bytes").values())) == (0, 0)
    full = SpArch().run(torch.ones(3, 4), torch.ones(4, 5))
    assert full.breakdown["multiplies_count"] == 60
    assert full.breakdown["dram_c_bytes"] == 15 * 12
    assert OuterSPACE().run(torch.zeros(3, 4), torch.zeros(4, 5)).cycles == 0


def test_price_scales_the_sampled_columns() -> None:
    a, x = sparse(16, 24, 0.3, 0), sparse(4, 24, 0.5, 1)
    whole = SpArch().run(a, x.T)
    sampled = SpArch().price(Operation("fc", "linear", "forward", 16, 24, 40, a=a, x=x, a_is_weight=True))
    assert sampled is not None
    assert sampled.breakdown["dram_a_bytes"] == whole.breakdown["dram_a_bytes"]
    assert sampled.breakdown["multiplies_count"] == 10 * whole.breakdown["multiplies_count"]
    assert SpArch().price(Operation("fc", "linear", "forward", 16, 24, 40)) is None


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 60), max_size=40), min_size=1, max_size=9), st.sampled_from([1, 2, 4]))
def test_merge_tree_gives_the_sorted_union(streams: list[list[int]], width: int) -> None:
    merged, cycles = merge_streams([sorted(stream) for stream in streams], width=width, fifo_depth=4 * width)
    assert merged.tolist() == sorted(set(itertools.chain(*streams)))
    assert cycles >= len(set(itertools.chain(*streams))) / width


def test_merge_tree_keeps_up_on_even_streams() -> None:
    generator = np.random.default_rng(0)
    streams = [np.sort(generator.choice(1_000_000, 2_000, replace=False)) for _ in range(64)]
    _, cycles = merge_streams(streams)
    ideal = 64 * 2_000 / 16
    assert ideal <= cycles < 2 * ideal


def test_bad_input_names_the_argument() -> None:
    with pytest.raises(ValueError, match="order must be one of huffman, chain, balanced, got 'random'"):
        SpArch(order="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ways must be at least 2, got 1"):
        SpArch(ways=1)
    with pytest.raises(ValueError, match="a must have as many columns as b has rows, got 2 x 3 and 2 x 3"):
        SpArch().run(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="matrix must be a two-dimensional tensor or scipy matrix"):
        SpArch().run([1, 2], torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"streams\[1\] must be a vector of ascending keys"):
        merge_streams([[1, 2], [2, 1]])
    with pytest.raises(ValueError, match="fifo_depth must be at least 2"):
        merge_streams([[1]], fifo_depth=8)
