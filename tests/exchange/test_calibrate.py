"""Calibration over loopback: equal on all ranks and plausible."""

from typing import Any

import torch.distributed as dist

from dgcomp.exchange.auto import AutoExchange
from dgcomp.exchange.calibrate import calibrate
from dgcomp.exchange.planner import plan
from tests.ranks import run_ranks


def _calibrate(rank: int) -> dict[str, Any]:
    link, host = calibrate()
    alone = None
    for other in range(dist.get_world_size()):
        group = dist.new_group([other])
        if other == rank:
            alone = calibrate(group)[0]
    return {"link": link, "host": host, "alone": alone, "name": plan(10**7, 0.001, 2, link).name}


def test_ranks_agree() -> None:
    results = run_ranks(_calibrate, 2)
    first = results[0]
    for result in results:
        assert result["link"] == first["link"]
        assert result["host"] == first["host"]
        assert result["name"] == first["name"]
        assert result["alone"].rtt_ms == 0
    assert 0.01 < first["link"].bandwidth_gbit_per_s < 1e4
    assert 0 <= first["link"].rtt_ms < 1e3
    assert first["host"].compress_bytes_per_s > 1e6
    assert 1e5 < first["host"].scatter_entries_per_s < 1e9


def _auto(rank: int) -> dict[str, Any]:
    auto = AutoExchange(25_000_000, 0.001, every=3)
    first = auto.name
    # Ranks that measure differently must still agree: 1,000 times slower than thought on one of them.
    changes = [auto.observe(auto.plan.seconds * (1000.0 if rank else 1.0)) for _ in range(3)]
    return {"first": first, "changes": changes, "second": auto.name, "host": auto.plan.host}


def test_auto_changes_its_mind_on_all_ranks_together() -> None:
    results = run_ranks(_auto, 2)
    assert results[0] == results[1]
    assert results[0]["changes"] == [False, False, True]
    assert results[0]["first"] != results[0]["second"]
