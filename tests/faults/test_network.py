"""A link between two nodes (network namespaces) that fails, for a moment and for good; and nodes that come and go.

The nodes run launch/torchrun/node.sh, as a user's would.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tyro", reason="launch/train.py reads its options with tyro")

from benchmarks.net import links
from tests.faults.runs import TIMEOUT_S, options, saved_step, wait_until, weights
from tests.launch.scripts import LAUNCH, environment

pytestmark = pytest.mark.net


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    reason = links.why_not_permitted()
    if reason is not None:
        pytest.skip(f"links cannot be emulated here: {reason}")


@pytest.fixture
def network() -> Iterator[links.Network]:
    with links.Network(3) as emulated:
        yield emulated


def _start_node(
    network: links.Network, node: int, folder: Path, *more: str, steps: int, ranks: int = 1, nodes: str = "2"
) -> "subprocess.Popen[bytes]":
    settings = environment(
        RENDEZVOUS=f"{network.address(0)}:29400",
        ADDRESS=network.address(node),
        NODES=nodes,
        RANKS_PER_NODE=str(ranks),
        LAST_CALL_SECONDS="5",
        CHECKPOINTS=str(folder),
        GLOO_SOCKET_IFNAME=links.INTERFACE,
    )
    script = ["bash", str(LAUNCH / "torchrun/node.sh"), *options(folder, *more, steps=steps)]
    log = (folder / f"node{node}.log").open("ab")
    try:
        return network.start(node, script, env=settings, stdout=log, stderr=log)
    finally:
        log.close()


def _set_link(network: links.Network, node: int, state: str) -> None:
    switch = network.namespace(0).removesuffix("n0") + "sw"
    subprocess.run(["ip", "-n", switch, "link", "set", f"port{node}", state], check=True)


def _log(folder: Path, node: int) -> str:
    return (folder / f"node{node}.log").read_text()


def test_a_link_that_fails_for_a_moment(tmp_path: Path, network: links.Network) -> None:
    """TCP sends again what was lost: the run neither ends nor starts again."""
    nodes = [_start_node(network, node, tmp_path, steps=200) for node in (0, 1)]
    wait_until(lambda: saved_step(tmp_path) >= 4, "the first checkpoint")
    _set_link(network, 1, "down")
    before = saved_step(tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        nodes[0].wait(3)
    assert saved_step(tmp_path) <= before + 4
    _set_link(network, 1, "up")
    assert [node.wait(TIMEOUT_S) for node in nodes] == [0, 0], _log(tmp_path, 0)
    assert "going on after step" not in _log(tmp_path, 0)
    assert weights(tmp_path, 200)


@pytest.mark.slow
def test_a_link_that_fails_for_good(tmp_path: Path, network: links.Network) -> None:
    """After --timeout-seconds the node that keeps the rendezvous goes on alone.

    The torchrun of the node that is cut off was still there after three minutes: it has to be ended by hand.
    """
    more = ("--timeout-seconds", "15")
    nodes = [_start_node(network, node, tmp_path, *more, steps=400, nodes="1:2") for node in (0, 1)]
    wait_until(lambda: saved_step(tmp_path) >= 4, "the first checkpoint")
    _set_link(network, 1, "down")
    assert nodes[0].wait(TIMEOUT_S) == 0, _log(tmp_path, 0)
    assert "going on after step" in _log(tmp_path, 0)
    assert json.loads((tmp_path / "latest.json").read_text())["ranks"] == 1
    assert weights(tmp_path, 400)


@pytest.mark.slow
def test_nodes_come_and_go(tmp_path: Path, network: links.Network) -> None:
    """4 -> 2 -> 4 ranks: a node is killed outright, and later another one joins."""

    def ranks() -> int:
        latest = tmp_path / "latest.json"
        return int(json.loads(latest.read_text())["ranks"]) if latest.exists() else 0

    def node(number: int) -> "subprocess.Popen[bytes]":
        return _start_node(network, number, tmp_path, steps=4000, ranks=2, nodes="1:2")

    first, second = node(0), node(1)
    wait_until(lambda: ranks() == 4, "a checkpoint of four ranks")
    for pid in subprocess.run(
        ["ip", "netns", "pids", network.namespace(1)], capture_output=True, text=True, check=True
    ).stdout.split():
        subprocess.run(["kill", "-9", pid], check=False)
    second.wait()
    wait_until(lambda: ranks() == 2, "a checkpoint of two ranks")
    third = node(2)
    wait_until(lambda: ranks() == 4, "a checkpoint of four ranks again")
    for process in (first, third):
        process.terminate()
    for process in (first, third):
        process.wait(TIMEOUT_S)
    text = _log(tmp_path, 0)
    assert text.count("going on after step") == 2, text
    # the joining node did not cost a step: the others saved a checkpoint before they made room
    assert f"stopped after step {saved_step(tmp_path)}" in text
    assert weights(tmp_path, saved_step(tmp_path))
