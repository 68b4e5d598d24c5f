"""Network: the planner's own numbers as costs, overlap with the backward pass, and measured points."""

import json
from pathlib import Path

import pytest

from dgcomp import hwmodel
from dgcomp.exchange.model import Gradient, Host, dense_bf16, sparse_all_gather, sparse_owner
from dgcomp.hwmodel.network import exposed_seconds

RESNET50 = 25_557_032


def test_same_model_as_the_planner() -> None:
    network = hwmodel.Network(nodes=8)
    gradient = Gradient(RESNET50, 0.001, "int4")
    methods = {"all_gather": sparse_all_gather, "owner": sparse_owner, "dense_bf16": dense_bf16}
    for method, exchange in methods.items():
        expected = exchange(gradient, 8, network.link, network.host)
        cost = hwmodel.Network(nodes=8, density=0.001, method=method).exchange(RESNET50)
        assert cost.seconds == expected.seconds
        assert cost.breakdown["sent_bytes"] == expected.bytes_sent


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


def measured_points() -> list[tuple[float, int, float, str]]:
    """Seconds a step of dense exchanges over shaped links, from the bandwidth benchmark's own results."""
    if not MEASURED.exists():
        return []
    rows = json.loads(MEASURED.read_text())
    chosen = [row for row in rows if row["method"] in ("ddp_fp32", "bf16_hook") and row["model"] == "resnet50"]
    return [(row["line_gbit_per_s"], row["nodes"], row["step_s"], row["method"]) for row in chosen if not row["rtt_ms"]]


def test_measured_points_of_the_bandwidth_benchmark() -> None:
    points = measured_points()
    if not points:
        pytest.skip(f"{MEASURED} is not there; benchmarks/bandwidth.py writes it")
    for gbit, nodes, seconds, method in points:
        host = Host(workers_per_core=nodes / 2)  # the benchmark emulates all nodes on two cores
        network = hwmodel.Network(gbit, 0.2, nodes, efficiency=1.0, host=host)  # the rate is measured payload
        if method == "ddp_fp32":
            predicted = network.exchange(RESNET50, num_buckets=5).seconds
        else:
            predicted = dense_bf16(Gradient(RESNET50, num_buckets=5), nodes, network.link, host).seconds
        assert predicted == pytest.approx(seconds, rel=0.15), (gbit, nodes, method)


def test_bad_input_names_the_argument() -> None:
    with pytest.raises(ValueError, match="bandwidth_gbit_per_s must be positive, got 0"):
        hwmodel.Network(gbit_per_s=0)
    with pytest.raises(ValueError, match="nodes and workers_per_node must be at least 1, got 0, 1"):
        hwmodel.Network(nodes=0)
    with pytest.raises(ValueError, match=r"density must lie in \(0, 1\], got 2"):
        hwmodel.Network(density=2)
    with pytest.raises(ValueError, match="method must be one of dense_fp32, .* got 'magic'"):
        hwmodel.Network(method="magic")
