"""Network: the planner's own numbers as costs, overlap with the backward pass, and measured points."""

import json
from pathlib import Path

import pytest

from dgcomp import hwmodel
from dgcomp.exchange.model import Host
from dgcomp.exchange.planner import plan
from dgcomp.hwmodel.network import exposed_seconds

RESNET50 = 25_557_032


def test_same_model_as_the_planner() -> None:
    network = hwmodel.Network(nodes=8)
    choice = plan(RESNET50, 0.001, 8, network.link, host=network.host)
    for method in ("all_gather", "owner", "dense_bf16"):
        cost = hwmodel.Network(nodes=8, density=0.001, method=method).exchange(RESNET50)
        assert cost.seconds == choice.costs[method].seconds
        assert cost.breakdown["sent_bytes"] == choice.costs[method].bytes_sent
    sparse = hwmodel.Network(nodes=8, density=0.001).exchange(RESNET50)
    assert sparse.seconds == choice.seconds
    assert sparse.notes == (f"exchange by {choice.name}",)


def test_overlap_hides_what_fits_into_the_backward_pass() -> None:
    assert exposed_seconds([1.0], [0.5], 1.0) == 0.5  # the last bucket has nothing to hide behind
    assert exposed_seconds([0.2, 1.0], [0.3, 0.5], 1.0) == 0.5
    assert exposed_seconds([0.2, 1.0], [2.0, 0.5], 1.0) == pytest.approx(1.7)  # the line is busy from 0.2 to 2.7
    assert exposed_seconds([], [], 1.0) == 0.0
    with pytest.raises(ValueError, match="ready_s and exchange_s must be of one length, got 1 and 2"):
        exposed_seconds([1.0], [1.0, 2.0], 1.0)


def test_step_adds_only_what_is_exposed() -> None:
    network = hwmodel.Network(gbit_per_s=10, nodes=4)
    cost = network.step(1.0, RESNET50)
    assert 0 < cost.seconds < cost.breakdown["exchange_seconds"]
    assert cost.seconds + cost.breakdown["hidden_seconds"] == pytest.approx(cost.breakdown["exchange_seconds"])
    slow = hwmodel.Network(gbit_per_s=0.1, nodes=4).step(0.1, RESNET50)
    assert slow.seconds > 0.9 * slow.breakdown["exchange_seconds"]


def test_topologies() -> None:
    network = hwmodel.Network(gbit_per_s=10, nodes=16, workers_per_node=4, node_gbit_per_s=200)
    ring, tree, two_level = (network.all_reduce(100e6, kind) for kind in ("ring", "tree", "two_level"))  # type: ignore[arg-type]
    assert two_level.seconds < ring.seconds < tree.seconds  # 100 MB: bytes decide
    small = [network.all_reduce(100.0, kind).seconds for kind in ("ring", "tree")]  # type: ignore[arg-type]
    assert small[1] < small[0]  # 100 bytes: messages decide
    with pytest.raises(ValueError, match="topology must be ring, tree or two_level, got 'star'"):
        network.all_reduce(1.0, "star")  # type: ignore[arg-type]


def test_figure_6_regime() -> None:
    """AlexNet on 64 nodes of 4 GPUs: conventional about 30x at 10 Gbit/s, DGC above 40x at 1 Gbit/s (Lin et al.).

    The node's own step of 339 ms is inferred from the conventional curve (benchmarks/scale.py).
    """
    alexnet, node_s = 60_965_224, 0.339
    free = Host(1e30, 1e30, 1e30, 1e30, 0.0)
    ideal = {"nodes": 64, "rtt_ms": 0.0, "efficiency": 1.0, "host": free}
    conventional = hwmodel.Network(gbit_per_s=10, **ideal)  # type: ignore[arg-type]
    assert conventional.speedup(node_s, alexnet) == pytest.approx(30, rel=0.02)
    for method in ("all_gather", "owner"):
        dgc = hwmodel.Network(gbit_per_s=1, density=0.001, method=method, **ideal)  # type: ignore[arg-type]
        assert dgc.speedup(node_s, alexnet) > 40


MEASURED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "bandwidth.json"


def test_measured_dense_exchanges_of_the_bandwidth_benchmark() -> None:
    """Where the line sets the pace: fp32 DDP and bf16 over shaped links, beside a step without exchange."""
    if not MEASURED.exists():
        pytest.skip(f"{MEASURED} is not there; benchmarks/bandwidth.py writes it")
    rows = [row for row in json.loads(MEASURED.read_text()) if row["model"] == "resnet50" and not row["loss"]]
    floors = {(row["link"], row["nodes"], row["rtt_ms"]): row["step_s"] for row in rows if row["method"] == "none"}
    methods = {"ddp_fp32": "dense_fp32", "bf16_hook": "dense_bf16"}
    for row in rows:
        cell = row["link"], row["nodes"], row["rtt_ms"]
        if row["method"] not in methods or cell not in floors or row["line_gbit_per_s"] > 1:
            continue
        host = Host(workers_per_core=max(1.0, row["nodes"] / 2))  # the benchmark emulates all nodes on two cores
        network = hwmodel.Network(
            row["line_gbit_per_s"],  # as measured by raw TCP: payload
            row["round_trip_ms"],
            row["nodes"],
            method=methods[row["method"]],
            efficiency=1.0,
            host=host,
        )
        predicted = floors[cell] + network.exchange(RESNET50, num_buckets=5).seconds
        assert predicted == pytest.approx(row["step_s"], rel=0.15), (cell, row["method"])


def test_bad_input_names_the_argument() -> None:
    with pytest.raises(ValueError, match="bandwidth_gbit_per_s must be positive, got 0"):
        hwmodel.Network(gbit_per_s=0)
    with pytest.raises(ValueError, match="nodes and workers_per_node must be at least 1, got 0, 1"):
        hwmodel.Network(nodes=0)
    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\], got 2"):
        hwmodel.Network(density=2)
    with pytest.raises(ValueError, match="method must be one of dense_fp32, .* got 'magic'"):
        hwmodel.Network(method="magic")
