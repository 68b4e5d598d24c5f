"""Ranks that start in a second: torch is imported once, and every rank is a fork of this process.

    warm_up()
    pids = start_ranks(folder, 4, target)     # each calls target(rank) in a gloo process group of four
    statuses = wait_for(pids)

For benchmarks that start ranks a thousand times. The parent must not train: autograd's threads do not survive a fork.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from dgcomp.kernels import is_finite
from dgcomp.wire import decode_message, encode_message

__all__ = ["end_ranks", "start_ranks", "wait_for", "warm_up"]

GRACE_S = 20.0


def warm_up() -> None:
    """Load what the ranks would load in every life; nothing here may start a thread, which a fork would lose."""
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)], 0.1)  # imports the compiler's modules
    is_finite(torch.zeros(8))
    decode_message(encode_message(torch.ones(2), torch.tensor([1, 3]), 8, "int4", dense=torch.ones(2)))


def start_ranks(folder: Path, ranks: int, target: Callable[[int], None]) -> list[int]:
    """Fork one process per rank that joins the others and calls `target(rank)`; their ids.

    Rank r writes to rank<r>.log in `folder`, where they meet through a file. Its exit status is 0, or 1 after an error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("store-*"):
        old.unlink()
    meeting = folder / f"store-{time.monotonic_ns()}"
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            _be_rank(rank, ranks, meeting, folder / f"rank{rank}.log", target)
        pids.append(pid)
    return pids


def _be_rank(rank: int, ranks: int, meeting: Path, log: Path, target: Callable[[int], None]) -> None:
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
        target(rank)
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)  # a fork must not go on as its parent would


def wait_for(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def end_ranks(pids: list[int]) -> None:
    """What torchrun does to the ranks that are left: SIGTERM, and SIGKILL if that is not enough."""
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while pids and time.monotonic() < deadline:
        pids = [pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0] == 0]
        time.sleep(0.01)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
