"""One rank of a bandwidth run: times the given methods one after the other and lets rank 0 print a line for each.

    python -m benchmarks.net.worker '{"rank": 0, "world_size": 2, "store": "/tmp/s", "model": "resnet50", ...}'

Started inside a node's namespace by benchmarks/bandwidth.py; the job description is one JSON argument (`Job`).
"""

import dataclasses
import gc
import json
import os
import sys
import time
import traceback
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.net.links import INTERFACE
from benchmarks.net.methods import METHODS
from benchmarks.net.replay import Replay
from benchmarks.net.timing import counters, gather, slowest, step, summary
from benchmarks.net.training import train
from benchmarks.shapes import MODELS


@dataclasses.dataclass(frozen=True)
class Job:
    """What one rank is to do."""

    rank: int
    world_size: int
    store: str
    model: str
    methods: list[str]
    warmup_steps: int = 3
    warmup_s: float = 1.5
    min_steps: int = 3
    max_steps: int = 40
    budget_s: float = 12.0
    """A method stops after `min_steps` once it has used this many seconds."""
    soak_steps: int = 0
    """If positive, run that many steps and compare the replicas instead of timing."""
    training_steps: int = 200
    timeout_s: float = 300.0
    interface: str = INTERFACE


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    os.environ["GLOO_SOCKET_IFNAME"] = job.interface
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{job.store}",
        rank=job.rank,
        world_size=job.world_size,
        timeout=timedelta(seconds=job.timeout_s),
    )
    try:
        for name in job.methods:
            row = _soak(job, name) if job.soak_steps else _measure(job, name)
            if job.rank == 0:
                print(json.dumps({"method": name, **row}), flush=True)
            # DDP objects sit in cycles; their buckets and gloo threads go only when the collector has run.
            gc.collect()
    except BaseException:
        print(f"--- rank {job.rank} ---\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        # Not the interpreter's way out: it waits for peers that wait for us.
        os._exit(1)
    dist.destroy_process_group()


def _measure(job: Job, name: str) -> dict[str, Any]:
    """Time one method: seconds a step (slowest rank), bytes from the interface's own counters."""
    if job.model == "training":
        return train(METHODS[name], job.rank, job.training_steps, job.interface)
    replay = Replay(MODELS[job.model](), seed=1 + job.rank)
    model, optimizer = METHODS[name](replay, 1e-4)
    step(model, optimizer)  # may compile kernels
    start, warm = time.monotonic(), 1
    # A compressor's thresholds need a second's worth of its short steps to settle; DDP's long ones count singly.
    while warm < job.warmup_steps or slowest(time.monotonic() - start) < job.warmup_s:
        step(model, optimizer)
        warm += 1
    seconds: list[tuple[float, float]] = []
    counted: list[list[int]] = []
    start, busy_s = time.monotonic(), time.process_time()
    while len(seconds) < job.max_steps:
        used = slowest(time.monotonic() - start)  # also the barrier before the step
        if len(seconds) >= job.min_steps and used > job.budget_s:
            break
        before = counters(job.interface)
        seconds.append(step(model, optimizer))
        counted.append([after - early for early, after in zip(before, counters(job.interface), strict=True)])
    processor_s = gather(torch.tensor((time.process_time() - busy_s) / len(seconds), dtype=torch.float64))
    return {**summary(seconds, counted), "processor_s": float(processor_s.mean())}


def _soak(job: Job, name: str) -> dict[str, Any]:
    """Run many steps and compare all replicas bit for bit at the end."""
    sizes = [(256, 256)] * 8 + [(256,)] * 8
    model, optimizer = METHODS[name](Replay(sizes, seed=1 + job.rank), 1e-2)
    start, before = time.monotonic(), counters(job.interface)
    for _ in range(job.soak_steps):
        step(model, optimizer)
    seconds = time.monotonic() - start
    sent = counters(job.interface)[0] - before[0]
    weights = torch.cat([weight.detach().reshape(-1) for weight in model.parameters()])
    replicas = gather(weights.view(torch.int32).double())
    return {
        "steps": job.soak_steps,
        "step_s": seconds / job.soak_steps,
        "bytes_sent_per_worker": sent / job.soak_steps,
        "replicas_bitwise_equal": bool((replicas == replicas[0]).all()),
        "weights_changed": bool(weights.abs().max() > 0),
        "weights_finite": bool(weights.isfinite().all()),
    }


if __name__ == "__main__":
    main()
