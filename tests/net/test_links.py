"""Emulated links: they have the rate and the delay asked for, and nothing is left when they are gone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import bandwidth
from benchmarks.net import links

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.net

_HOLD = """
import sys, time
from benchmarks.net import links
with links.Network(2, "100mbit", 2.0) as network:
    network.start(0, [sys.executable, "-c", "import time; time.sleep(60)"])
    print("up", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _needs_namespaces() -> Iterator[None]:
    reason = links.why_not_permitted()
    if reason is not None:
        pytest.skip(f"links cannot be emulated here: {reason}")
    yield
    assert _own(os.getpid()) == []


def _own(pid: int) -> list[str]:
    return [name for name in links.namespaces() if name.startswith(f"{links.PREFIX}{pid}")]


@pytest.mark.parametrize("rate", ["100mbit", "1gbit"])
def test_line_rate_is_just_below_the_one_asked_for(rate: str) -> None:
    with links.Network(2, rate) as network:
        measured = links.transfer_gbit_per_s(network, 1.0) * 1e9
    # Frames carry 1448 bytes of payload in 1538; a busy machine may add a little.
    assert 0.85 * links.bits_per_s(rate) < measured < links.bits_per_s(rate)


def test_delay_is_added_to_the_round_trip() -> None:
    with links.Network(2, "100mbit", rtt_ms=10.0) as network:
        assert 10.0 <= links.round_trip_ms(network) < 20.0
        assert links.transfer_gbit_per_s(network, 1.0) > 0.08


def test_transfers_survive_loss() -> None:
    with links.Network(3, "100mbit", rtt_ms=4.0, loss=0.01) as network:
        assert 0 < links.transfer_gbit_per_s(network, 1.0) < 0.1


def test_nothing_is_left_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="exploded"):
        _explode_inside()
    assert _own(os.getpid()) == []


def _explode_inside() -> None:
    with links.Network(2, "100mbit", 2.0):
        assert len(_own(os.getpid())) == 3
        raise RuntimeError("exploded")


def test_a_wrong_rate_fails_before_anything_is_made() -> None:
    with pytest.raises(ValueError, match='rate must be "unshaped" or look like'):
        links.Network(2, "fast")
    with pytest.raises(ValueError, match="nodes must be at least 2"):
        links.Network(1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_after_a_signal(number: signal.Signals) -> None:
    with _holder() as holder:
        assert len(_own(holder.pid)) == 3
        holder.send_signal(number)
        holder.wait(timeout=30)
        assert _own(holder.pid) == []


def test_the_next_run_removes_what_a_killed_one_left() -> None:
    with _holder() as holder:
        holder.kill()
        holder.wait(timeout=30)
        assert len(_own(holder.pid)) == 3
        links.remove_leftovers()
        assert _own(holder.pid) == []


def _holder() -> "subprocess.Popen[bytes]":
    """A process that has a network up and sleeps."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


@pytest.mark.parametrize("method", ["dgc_all_gather", "dgc_owner"])
def test_replicas_stay_equal_under_loss_and_delay(method: str) -> None:
    """The same run is 10,000 steps long as `python benchmarks/bandwidth.py --soak 10000`."""
    steps = int(os.environ.get("DGCOMP_SOAK_STEPS", "300"))
    with links.Network(2, "unshaped", bandwidth.SOAK_RTT_MS, bandwidth.SOAK_LOSS) as network:
        job = {"model": "soak", "methods": [method], "soak_steps": steps}
        (row,) = bandwidth.run_ranks(network, job, timeout_s=60 + steps)
    assert row["replicas_bitwise_equal"]
    assert row["weights_changed"]
    assert row["weights_finite"]


def test_a_rank_that_fails_takes_the_others_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    with links.Network(2) as network:
        job = {"model": "soak", "methods": ["unheard of"], "soak_steps": 1}
        rows = list(bandwidth.run_ranks(network, job, timeout_s=60))
    assert rows == []
    assert "KeyError: 'unheard of'" in capfd.readouterr().err
