"""Calibration over loopback: equal on all ranks, plausible, and done in time."""

import time
from typing import Any

import torch.distributed as dist
from torch import Tensor

from dgcomp.exchange.calibrate import calibrate
from dgcomp.exchange.planner import plan
from tests.ranks import run_ranks


def _compress(gradient: Tensor) -> Tensor:
    return gradient.abs() > 3


def _calibrate(rank: int) -> dict[str, Any]:
    start = time.monotonic()
    link, host = calibrate(compress=_compress)
    seconds = time.monotonic() - start
    alone = None
    for other in range(dist.get_world_size()):
        group = dist.new_group([other])
        if other == rank:
            alone = calibrate(group)[0]
    return {"link": link, "host": host, "seconds": seconds, "alone": alone, "name": plan(10**7, 0.001, 2, link).name}


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
