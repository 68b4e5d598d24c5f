"""Faults in a run of two ranks under torchrun: it ends or goes on, and its weights are those of an undisturbed run.

Two ranks are exact to the bit, so that "the loss curve continues" is an equality of weights. The default tests kill a
rank in the hook and restart a run a few times; the rest is `slow`. tests/launch/test_checkpoint.py damages checkpoints
without torchrun, benchmarks/restarts.py restarts a thousand times.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("tyro", reason="launch/train.py reads its options with tyro")

from benchmarks.faults import PLACES
from benchmarks.restarts import restart_often
from tests.faults.runs import Torchrun, is_stopped, saved_step, wait_until, weights


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights at the end of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Torchrun(folder) as run:
        run.end()
    return weights(folder)


def _kill_a_rank(folder: Path, place: str, call: int) -> str:
    with Torchrun(folder, action="kill", rank=0, place=place, call=call) as run:
        output = run.end()
    assert run.happened.exists(), "the fault did not happen"
    assert "going on after step" in output
    return weights(folder)


def test_a_rank_killed_in_the_hook(tmp_path: Path, undisturbed: str) -> None:
    assert _kill_a_rank(tmp_path, "hook", call=10) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("place", [place for place in PLACES if place != "hook"])
def test_a_rank_killed_elsewhere(place: str, tmp_path: Path, undisturbed: str) -> None:
    """In forward, in backward, and between all steps of writing the second checkpoint of rank 0."""
    # rank 0 writes and renames two files for each checkpoint, and one latest.json
    call = {"forward": 10, "backward": 10, "file": 4, "rename": 4}.get(place, 2)
    assert _kill_a_rank(tmp_path, place, call) == undisturbed


def test_a_few_restarts(tmp_path: Path) -> None:
    figures = restart_often(5, 2, 0, tmp_path)
    assert figures["checkpoints_lost"] == 0
    assert figures["weights_bitwise_equal"]


@pytest.mark.slow
def test_a_rank_that_stands_still_for_a_while(tmp_path: Path, undisturbed: str) -> None:
    """SIGSTOP: the others wait, and nothing else happens."""
    with Torchrun(tmp_path, restarts=0, action="stop", rank=1, place="hook", call=6) as run:
        wait_until(run.happened.exists, "a rank has stopped")
        pid = int(run.happened.read_text())
        wait_until(lambda: is_stopped(pid), "the signal has taken hold")
        before = saved_step(tmp_path)
        time.sleep(5)
        assert run.process.poll() is None
        assert saved_step(tmp_path) == before
        os.kill(pid, signal.SIGCONT)
        run.end()
    assert weights(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_rank_that_stands_still_for_good(tmp_path: Path, undisturbed: str) -> None:
    """The others give up after --timeout-seconds, torchrun ends the stopped one, and all start again."""
    with Torchrun(tmp_path, "--timeout-seconds", "20", action="stop", rank=1, place="hook", call=6) as run:
        assert "going on after step" in run.end()
    assert weights(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_node_ten_times_slower(tmp_path: Path, undisturbed: str) -> None:
    with Torchrun(tmp_path, restarts=0, action="slow", rank=1) as run:
        run.end()
    assert weights(tmp_path) == undisturbed


@pytest.mark.slow
def test_torchrun_itself_is_killed(tmp_path: Path) -> None:
    """Its ranks stop as if asked to, and leave a checkpoint that the next torchrun goes on from."""
    with Torchrun(tmp_path, steps=10**6) as run:
        wait_until(lambda: saved_step(tmp_path) >= 4, "the first checkpoint")
        run.process.kill()
        run.process.wait()
        wait_until(lambda: not run.processes(), "the ranks have ended")
    stopped = saved_step(tmp_path)
    assert stopped % 8 == 0
    with Torchrun(tmp_path, steps=stopped + 8) as run:
        assert f"going on after step {stopped}" in run.end()
    whole = tmp_path / "whole"
    with Torchrun(whole, steps=stopped + 8) as run:
        run.end()
    assert weights(tmp_path, stopped + 8) == weights(whole, stopped + 8)


@pytest.mark.slow
def test_a_damaged_checkpoint(tmp_path: Path, undisturbed: str) -> None:
    """The run goes on from the one before, and says so."""
    with Torchrun(tmp_path, steps=12) as run:
        run.end()
    path = tmp_path / "step00000012.pt"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with Torchrun(tmp_path) as run:
        output = run.end()
    assert "step00000012.pt is damaged" in output
    assert "going on after step 8" in output
    assert weights(tmp_path) == undisturbed


@contextmanager
def _small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk can't be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path, undisturbed: str) -> None:
    """The first checkpoint fits, the others do not: the run says so, goes on to its end, and leaves the first one."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    with _small_disk(disk, "4m"):
        with Torchrun(disk, steps=12) as run:
            output = run.end()
        assert output.count("No space left on device") >= 2
        assert "step 12: test accuracy" in output
        assert saved_step(disk) == 4
        assert not list(disk.glob("*.partial"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        with Torchrun(disk) as run:
            assert "going on after step 4" in run.end()
        assert weights(disk) == undisturbed
