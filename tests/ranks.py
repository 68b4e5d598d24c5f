"""Run a function in several gloo ranks and fail with every rank's own traceback.

The first rank that dies is often a victim ("Connection closed by peer"), so each rank writes its traceback to a
file before it tears its process group down, and the failure shows all of them.
"""

import gc
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

START_UP_S = 60  # importing torch in every rank of a loaded two-core machine


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120) -> list[Any]:
    """Call `fn(rank, *args)` in `world_size` processes and return what each rank returned (plain picklable data).

    `fn` must be a module-level function. Raises AssertionError with the traceback of every rank that failed, or
    with the names of the ranks that had not ended after `timeout_s` seconds; no process outlives the call.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = mp.spawn(_worker, (fn, world_size, folder, timeout_s, args), nprocs=world_size, join=False)
        try:
            finished = _join(context, timeout_s + START_UP_S)
        except Exception as error:  # mp names whichever rank died first; the reports say why
            raise AssertionError(_reports(folder) or str(error)) from None
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
                process.join()
        if not finished:
            stuck = [rank for rank in range(world_size) if not (folder / f"result{rank}.pt").exists()]
            raise AssertionError(f"ranks {stuck} had not ended after {timeout_s} s\n{_reports(folder)}")
        return [torch.load(folder / f"result{rank}.pt", weights_only=False) for rank in range(world_size)]


def _join(context: Any, timeout_s: float) -> bool:
    import time

    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if context.join(timeout=1):
            return True
    return False


def _reports(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("traceback*.txt")))


def _worker(rank: int, fn: Callable[..., Any], world_size: int, folder: Path, timeout_s: float, args: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # torch 2.13 renames collectives that older versions only have under the old name
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        torch.save(fn(rank, *args), folder / f"result{rank}.pt")
    except BaseException:
        (folder / f"traceback{rank}.txt").write_text(f"--- rank {rank} ---\n{traceback.format_exc()}")
        raise
    finally:
        # DDP objects sit in reference cycles and keep gloo's threads alive into interpreter shutdown, where
        # they can abort a rank that had already succeeded.
        gc.collect()
        dist.destroy_process_group()
