"""What of the bandwidth benchmark needs no network: the refusal, the peers' hooks, fits and tables."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks import bandwidth, scale
from benchmarks.net import links, report
from benchmarks.net.methods import METHODS, TITLES, sgd, topk_hook, wrap
from benchmarks.net.replay import Replay
from benchmarks.net.timing import step
from benchmarks.net.training import Clusters, Perceptron
from dgcomp.exchange.model import Host, Link, dense_bf16, dense_fp32, sparse_all_gather
from tests.ranks import run_ranks

SIZES = [(40, 30), (30,), (20, 10, 3)]


def test_without_permission_it_says_so_and_stops(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(links.shutil, "which", lambda tool: f"/sbin/{tool}")
    monkeypatch.setattr(links.os, "geteuid", lambda: 1000)
    monkeypatch.setattr("sys.argv", ["bandwidth.py"])
    bandwidth.main()
    assert capsys.readouterr().out == "skipped: links cannot be emulated here: network namespaces need root\n"


def test_without_tools_it_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links.shutil, "which", lambda tool: None)
    assert links.why_not_permitted() == "the command `ip` is not there; install iproute2"


def test_every_method_has_a_title() -> None:
    assert list(METHODS) == list(TITLES)
    assert set(report.PLOTTED) <= set(METHODS)


def test_replayed_gradients_are_heavy_tailed_and_change() -> None:
    replay = Replay([(500, 400), (100,)], seed=1)
    first, second = replay.next_gradients()[0].clone(), replay.next_gradients()[0].clone()
    assert not torch.equal(first, second)
    flat = first.flatten().double()
    assert float((flat**4).mean() / (flat**2).mean() ** 2) > 10  # 3 for normal values
    replay().backward()
    weights = list(replay.parameters())
    assert [weight.grad.shape for weight in weights if weight.grad is not None] == [weight.shape for weight in weights]


def _peers(rank: int) -> dict[str, Any]:
    """Gradients that each hook hands to the optimizer, beside the true mean."""
    results: dict[str, Any] = {}
    for name in ("ddp_fp32", "fp16_hook", "bf16_hook", "none", "powersgd_r4"):
        replay = Replay(SIZES, seed=rank)
        model, optimizer = METHODS[name](replay, 0.0)
        step(model, optimizer)
        results[name] = torch.cat([w.grad.reshape(-1) for w in replay.parameters() if w.grad is not None])
    replay = Replay(SIZES, seed=rank)
    model = wrap(replay, None)
    residuals: Any = type("State", (), {"residual": {}})()
    model.register_comm_hook(residuals, topk_hook)
    sent = torch.zeros_like(results["none"])
    optimizer = sgd(replay, 0.0)
    given = torch.zeros_like(sent)
    for _ in range(5):
        step(model, optimizer)
        sent += torch.cat([w.grad.reshape(-1) for w in replay.parameters() if w.grad is not None])
    again = Replay(SIZES, seed=rank)
    for _ in range(5):
        given += torch.cat([g.reshape(-1) for g in again.next_gradients()])
    kept = sum(float(part.double().sum()) for part in residuals.residual.values())
    totals = torch.tensor([float(given.double().sum()), kept], dtype=torch.float64)
    dist.all_reduce(totals)
    results["conserved"] = (float(totals[0] - totals[1]) / dist.get_world_size(), float(sent.double().sum()))
    return results


def test_peers_average_what_they_are_given() -> None:
    both = run_ranks(_peers, 2)
    for name in ("ddp_fp32", "fp16_hook", "bf16_hook", "powersgd_r4"):
        assert torch.equal(both[0][name], both[1][name]), name
    mean = (both[0]["none"] + both[1]["none"]) / 2
    torch.testing.assert_close(both[0]["ddp_fp32"], mean)
    # 8 and 11 bits of mantissa, one rounding before the sum and one after it
    torch.testing.assert_close(both[0]["bf16_hook"], mean, rtol=2**-6, atol=float(mean.abs().max()) * 2**-7)
    torch.testing.assert_close(both[0]["fp16_hook"], mean, rtol=2**-9, atol=float(mean.abs().max()) * 2**-9)
    given, sent = both[0]["conserved"]
    assert sent == pytest.approx(given, abs=1e-5 * max(1.0, abs(given)))


def test_the_network_learns() -> None:
    network, data = Perceptron(), Clusters(seed=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(40):
        inputs, labels = data.batch(32)
        optimizer.zero_grad()
        loss = network(inputs, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def _row(method: str, link: str, rate: float, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "link": link, "rtt_ms": 0.0, "loss": 0.0, "nodes": 4, "model": "resnet50", "method": method, "step_s": seconds,
        "bytes_sent_per_worker": 1e6, "line_gbit_per_s": rate, "round_trip_ms": 0.1, "commit": "abc", "torch": "2",
        "machine": "test", "time": "2026-01-01T00:00:00Z", **more,
    }  # fmt: skip


def test_fit_recovers_fixed_and_volume() -> None:
    rows = [_row("ddp_fp32", str(rate), rate, 0.1 + 1.2 / rate) for rate in (0.1, 1.0, 10.0)]
    fitted = report.fit(rows)
    assert fitted == (pytest.approx(0.1), pytest.approx(1.2))
    assert report.fit(rows[:1]) is None
    falling = report.fit([_row("x", "a", 0.1, 1.0), _row("x", "b", 1.0, 1.1)])
    assert falling is not None
    assert falling[1] == 0


def test_break_even_is_where_the_lines_cross() -> None:
    dense, sparse = (0.05, 1.2), (0.1, 0.01)
    rate = report.break_even_gbit_per_s(sparse, dense)
    assert sparse[0] + sparse[1] / rate == pytest.approx(dense[0] + dense[1] / rate)
    assert report.break_even_gbit_per_s((0.01, 0.01), dense) == math.inf
    assert report.break_even_gbit_per_s((0.1, 2.0), dense) == 0


def test_table_and_plot_are_written(tmp_path: Path) -> None:
    rows = [_row("ddp_fp32", f"{rate}gbit", rate, 0.1 + 1.2 / rate) for rate in (0.1, 1.0)]
    rows += [_row("dgc_all_gather", f"{rate}gbit", rate, 0.2 + 0.001 / rate) for rate in (0.1, 1.0)]
    rows += [_row("none", f"{rate}gbit", rate, 0.05) for rate in (0.1, 1.0)]
    training = {"training_s": 1.0, "held_out_loss": 0.5, "held_out_accuracy": 0.8}
    rows += [{**_row("ddp_fp32", "1gbit", 1.0, 0.1, **training), "model": "training"}]
    report.write(rows, tmp_path / "x.json")
    table = (tmp_path / "x.md").read_text()
    assert "| DGC int4, all-gather | 210 (57.6x) | 201 (6.5x) |" in table
    assert "| DGC int4, all-gather | 160 (75.3x) | 151 (8.3x) |" in table  # less the floor
    assert "12" in next(line for line in table.splitlines() if line.startswith("| DGC int4, all-gather | 200.0"))
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_rows_replace_older_ones_of_the_same_cell(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    bandwidth.append(_row("none", "1gbit", 1.0, 0.1), path)
    bandwidth.append(_row("ddp_fp32", "1gbit", 1.0, 0.2), path)
    bandwidth.append(_row("none", "1gbit", 1.0, 0.3), path)
    assert [(row["method"], row["step_s"]) for row in json.loads(path.read_text())] == [
        ("ddp_fp32", 0.2),
        ("none", 0.3),
    ]


def test_figure6_of_the_paper() -> None:
    speedups = scale.figure6()
    assert speedups["conventional, 10gbit"] == pytest.approx(30.0)
    assert speedups["dgc, paper, 1gbit"] > 40  # Lin et al. 2018, section 5
    assert speedups["dgc int4, owner, 1gbit"] > speedups["dgc, paper, 1gbit"]


def test_validation_predicts_a_machine_that_obeys_the_model() -> None:
    host = Host(compress_bytes_per_s=4e9, transport_bytes_per_s=2e9, cast_bytes_per_s=6e9)
    rows = []
    for link, rate, nodes in (("unshaped", 20.0, 2), ("1gbit", 0.95, 2), ("100mbit", 0.095, 2)):
        wire = Link(rate, 0.1, efficiency=1.0)
        for method, exchange in (
            ("ddp_fp32", dense_fp32), ("bf16_hook", dense_bf16), ("dgc_all_gather", sparse_all_gather),
        ):  # fmt: skip
            seconds = 0.05 + exchange(scale.gradient_of("resnet50", method), nodes, wire, host).seconds
            rows.append(_row(method, link, rate, seconds, nodes=nodes))
        rows.append(_row("none", link, rate, 0.05, nodes=nodes))
    points = scale.validate(rows)
    assert len(points) == 9
    assert max(abs(point.error) for point in points) < 0.05
    assert scale.validate(rows[:1]) == []


def test_the_busy_share_is_that_of_the_reference_rows() -> None:
    rows = {"none": (0.05, 0.05), "ddp_fp32": (0.15, 0.12), "bf16_hook": (0.13, 0.12), "dgc_all_gather": (0.07, 0.07)}
    timed = {
        method: {**_row(method, "unshaped", 20.0, step, nodes=2), "processor_s": busy}
        for method, (step, busy) in rows.items()
    }
    assert scale.machine_speeds(timed).transport_busy_share == pytest.approx(0.7)
    del timed["none"]["processor_s"]
    assert scale.machine_speeds(timed).transport_busy_share == Host().transport_busy_share
