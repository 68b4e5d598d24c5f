"""One rank of the runner: trains run after run with launch/train.py's own loop, in one process group.

Started by benchmarks/accuracy.py under torchrun. Starting four interpreters costs as much as a third of a small
run, so they are started once; a run gives the same figures, to the bit, as its own command does. Rank 0 appends each
finished run to the results.
"""

import argparse
import gc
import json
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.evidence.recipes import Run
from benchmarks.store import append, describe_commit
from launch.options import UsageError, parse_options
from launch.train import train

FIGURES = (
    "value",
    "flushed_value",
    "metric",
    "steps",
    "history",
    "bytes_per_step",
    "bytes_run",
    "ratio",
    "milliseconds_per_step",
)


def main() -> None:
    """Do the runs that --runs names until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=json.loads, required=True, help="JSON list of [task, method, seed, [option, ...]]"
    )
    parser.add_argument("--results", type=Path, required=True, help="file to append finished runs to")
    parser.add_argument("--seconds", type=float, required=True, help="start no run after so many seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    commit, start = describe_commit(), time.monotonic()
    for task, method, seed, extra in arguments.runs:
        is_late = torch.tensor([time.monotonic() - start > arguments.seconds])
        dist.broadcast(is_late, src=0)
        if is_late:
            break
        run = Run(task, method, seed, tuple(extra))
        if dist.get_rank() == 0:
            print(f"{time.strftime('%H:%M:%S')} {run.name} ...", flush=True)
        try:
            row = _row(run, commit)
        except UsageError as error:  # on all ranks alike: most often data that are not on this machine
            if dist.get_rank() == 0:
                print(f"{time.strftime('%H:%M:%S')} {run.name} left out: {error}", flush=True)
            continue
        if dist.get_rank() == 0:
            append(arguments.results, row)
            print(f"{time.strftime('%H:%M:%S')} {run.name}: {row['value']}, {row['seconds']:.0f} s", flush=True)
        gc.collect()  # DDP objects sit in reference cycles
    dist.destroy_process_group()


def _row(run: Run, commit: str) -> dict[str, Any]:
    options = parse_options([*run.options, "--progress", "off"], quiet=dist.get_rank() > 0)
    cpu = torch.tensor(-time.process_time(), dtype=torch.float64)
    result = train(options, torch.device("cpu"))
    if not result["is_finished"]:
        raise SystemExit(f"{run.name} was stopped by a signal after {result['steps']} steps and is not kept")
    cpu += time.process_time()
    dist.all_reduce(cpu)
    if result["value"] is not None and not math.isfinite(result["value"]):
        result |= {"value": None, "history": [x if math.isfinite(x) else None for x in result["history"]]}
    return {
        "name": run.name,
        **{figure: result[figure] for figure in FIGURES},
        "seconds": result["seconds"],
        "cpu_seconds": float(cpu),
        "command": run.command,
        "data": result["data"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit,
    }


if __name__ == "__main__":
    main()
