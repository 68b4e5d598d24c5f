"""Total cost of ownership: what a training run costs in hours and kilowatt-hours, by exchange, workers and link.

    python -m benchmarks.ownership                                # ResNet-50, 100 ms of computing a step
    python -m benchmarks.ownership --model bert_base --compute-ms 250

Two measurements and a model. results/accuracy.json says how many steps a method needs to the quality that all methods
of a task reach, as a multiple of dense DDP's (`steps_factor`); the alpha-beta model of `dgcomp.exchange.model`, which
benchmarks/scale.py holds against measured runs, says what a step takes. Their product over 8 to 1,024 workers at 0.1
to 100 Gbit/s is the time to target, for two cases: "equal steps", the paper's claim, and "measured steps", the median
factor over the tasks. The tasks' runs are short, which is DGC's worst case (see the evidence page), and a factor is no
finer than the evaluations of a run. Assumptions, each in the peers' favour or an option:

- dense, fp16 and PowerSGD exchanges hide behind the backward pass; DGC's does not (it waits for the last bucket);
- PowerSGD's arithmetic and the casts of fp16 cost nothing; DGC's arithmetic is priced at the speed measured on one
  processor core (a GPU's would be higher; DGC has not run on one);
- dense all-reduces take the faster of a ring and the bound of two trees; DGC's all-gather is a ring;
- the network card moves the bytes by itself, and a message costs 20 us beside half the round trip;
- a worker draws --compute-watts while it computes and --wait-watts while it waits for the exchange; the switch's
  power is left out, because no source for joules per bit of Ethernet is built in.

Break-even is the line rate at which a run with DGC takes as long as with the peer; below it DGC is faster. Writes
results/ownership.json and .md.
"""

import argparse
import json
import math
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script, not as a module
    sys.path.insert(0, str(ROOT))

from benchmarks import shapes  # noqa: E402
from benchmarks.evidence.tables import Entry, entries, mean_curve, tasks_present  # noqa: E402
from benchmarks.store import describe_commit, read  # noqa: E402
from dgcomp.exchange import model  # noqa: E402
from dgcomp.hwmodel.network import DDP_BUCKET_BYTES, exposed_seconds  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
WORKERS = (8, 16, 32, 64, 128, 256, 512, 1024)
GBIT_PER_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0)
POWERSGD_RANK = 4
HOST = model.Host(cast_bytes_per_s=1e15, transport_bytes_per_s=1e15, message_s=20e-6)
"""measured: DGC's compression and scatter, as by the default; assumed: a card that needs no processor"""
BACKWARD_SHARE = 2 / 3  # twice the forward's work, as in hwmodel.network


@dataclass(frozen=True)
class Workload:
    """A model on workers of one kind."""

    tensors: Sequence[shapes.Shape]
    compute_s: float
    steps_times_workers: float
    """optimizer steps of the whole run, times the workers: the batch of a worker stays what it is"""
    compute_watts: float
    wait_watts: float
    rtt_ms: float = 0.2

    @property
    def numel(self) -> int:
        return sum(shapes.split(list(self.tensors)))


def main() -> None:
    """Price all cells and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", choices=shapes.MODELS, help="whose gradients are exchanged")
    parser.add_argument("--compute-ms", type=float, default=100.0, help="forward and backward of a worker (100)")
    parser.add_argument("--samples", type=float, default=90 * 1_281_167, help="of the run (90 epochs of ImageNet)")
    parser.add_argument("--batch-size", type=int, default=32, help="samples of one worker per step (32)")
    parser.add_argument("--compute-watts", type=float, default=300.0, help="of a worker that computes (300)")
    parser.add_argument("--wait-watts", type=float, default=100.0, help="of a worker that waits (100)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of accuracy.json, for ownership.json")
    arguments = parser.parse_args()
    workload = Workload(
        shapes.MODELS[arguments.model](),
        arguments.compute_ms * 1e-3,
        arguments.samples / arguments.batch_size,
        arguments.compute_watts,
        arguments.wait_watts,
    )
    measured = steps_factors(read(arguments.results / "accuracy.json"))
    factors = {
        "equal steps": dict.fromkeys(STEPS, 1.0),
        "measured steps": {name: found["median"] for name, found in measured.items()},
    }
    record = {
        "model": arguments.model,
        "compute_ms": arguments.compute_ms,
        "steps_factor": measured,
        "cells": {case: cells(workload, factors[case]) for case in factors},
        "break_even_gbit_per_s": {case: break_even_table(workload, factors[case]) for case in factors},
        "command": f"python -m benchmarks.ownership --model {arguments.model} --compute-ms {arguments.compute_ms:g}",
        "commit": describe_commit(),
        "machine": f"{platform.machine()}, model only",
        "versions": {"python": platform.python_version()},
    }
    (arguments.results / "ownership.json").write_text(json.dumps(record, indent=1) + "\n")
    text = markdown(record)
    (arguments.results / "ownership.md").write_text(text)
    print(text)


# --- Steps to a target, measured --------------------------------------------------------------------------------

MEASURED = {
    "dense fp32": ("dense",),
    "fp16": ("fp16",),
    "PowerSGD": ("powersgd",),
    "DGC": ("dgc-int4", "dgc"),
}
"""methods of the accuracy benchmark that stand for an exchange, the first that a task has"""


def steps_factors(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Steps to target as a multiple of dense DDP's: median, lowest and highest over the tasks, by exchange.

    A method without rows has the factor 1 over no tasks.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in MEASURED}
    for task in tasks_present(rows):
        by_method = entries(rows, task)
        present = {}
        for name, methods in MEASURED.items():
            usable = [by_method[method] for method in methods if method in by_method and mean_curve(by_method[method])]
            if usable:
                present[name] = usable[0]
        if "dense fp32" in present and "DGC" in present:
            steps = steps_to_common_target(present)
            for name, count in steps.items():
                found[name][task] = count / steps["dense fp32"]
    return {
        name: {
            "median": statistics.median(by_task.values()) if by_task else 1.0,
            "low": min(by_task.values(), default=1.0),
            "high": max(by_task.values(), default=1.0),
            "by_task": by_task,
        }
        for name, by_task in found.items()
    }


def steps_to_common_target(methods: dict[str, Entry]) -> dict[str, float]:
    """Steps after which each method's mean curve first reaches the best value that all of them reach.

    Between two evaluations the curve is taken to be straight.
    """
    curves = {name: mean_curve(entry) for name, entry in methods.items()}
    # perplexities fall and accuracies rise: compare what grows
    sign = -1.0 if next(iter(curves.values()))[0][1] > next(iter(curves.values()))[-1][1] else 1.0
    rising = {name: [(step, sign * value) for step, value in curve] for name, curve in curves.items()}
    target = min(max(value for _, value in curve) for curve in rising.values())
    return {name: _first_reach(curve, target) for name, curve in rising.items()}


def _first_reach(curve: Sequence[tuple[float, float]], target: float) -> float:
    """Step at which a rising curve first has the value `target`; its first point counts as starting from step 0."""
    if curve[0][1] >= target:
        return curve[0][0]
    for (step, value), (next_step, next_value) in zip(curve, curve[1:], strict=False):
        if next_value >= target:
            return step + (target - value) / (next_value - value) * (next_step - step)
    return math.inf


# --- Seconds of a step, modelled ---------------------------------------------------------------------------------


def dense_step_s(workload: Workload, workers: int, gbit_per_s: float) -> float:
    """Plain DDP, overlapped with the backward pass."""
    return _overlapped_step_s(workload, workers, gbit_per_s, [4.0 * workload.numel])


def fp16_step_s(workload: Workload, workers: int, gbit_per_s: float) -> float:
    """torch's 16-bit hook, overlapped."""
    return _overlapped_step_s(workload, workers, gbit_per_s, [2.0 * workload.numel])


def powersgd_step_s(workload: Workload, workers: int, gbit_per_s: float) -> float:
    """PowerSGD of rank 4: per bucket an all-reduce of the P factors, then one of the Q factors and the vectors."""
    matrices = [shape for shape in workload.tensors if len(shape) > 1]
    left = 4.0 * POWERSGD_RANK * sum(shape[0] for shape in matrices)
    right = 4.0 * POWERSGD_RANK * sum(math.prod(shape[1:]) for shape in matrices)
    right += 4.0 * shapes.split(list(workload.tensors))[1]
    return _overlapped_step_s(workload, workers, gbit_per_s, [left, right])


def _overlapped_step_s(workload: Workload, workers: int, gbit_per_s: float, sizes: Sequence[float]) -> float:
    """A step whose all-reduces of `sizes` bytes, cut into DDP's buckets, start as backward fills the buckets."""
    link = model.Link(gbit_per_s, workload.rtt_ms)
    num_buckets = max(1, -(-4 * workload.numel // DDP_BUCKET_BYTES))
    one = sum(all_reduce_s(size / num_buckets, workers, link) for size in sizes)
    start = workload.compute_s * (1 - BACKWARD_SHARE)
    ready = [start + workload.compute_s * BACKWARD_SHARE * (i + 1) / num_buckets for i in range(num_buckets)]
    return workload.compute_s + exposed_seconds(ready, [one] * num_buckets, workload.compute_s)


def all_reduce_s(num_bytes: float, workers: int, link: model.Link) -> float:
    """The faster of a ring and two pipelined trees (Sanders, Speck, Traeff 2009; NCCL's choice for many workers).

    The trees are priced at their bound, the ring's bytes with a logarithmic number of latencies.
    """
    ring = model.ring_all_reduce(num_bytes, workers, link, HOST).seconds
    latency = 2 * math.ceil(math.log2(workers)) * (link.one_way_s + HOST.message_s)
    return min(ring, latency + 2 * num_bytes * (workers - 1) / workers / link.bytes_per_s)


def dgc_step_s(workload: Workload, workers: int, gbit_per_s: float) -> float:
    """DGC at 0.1 % with 4-bit values, through all-gather or owners, whichever is faster; nothing hides it."""
    link = model.Link(gbit_per_s, workload.rtt_ms)
    sparse, leftover = shapes.split(list(workload.tensors))
    gradient = model.Gradient(sparse, leftover_numel=leftover)
    costs = [exchange(gradient, workers, link, HOST) for exchange in (model.sparse_all_gather, model.sparse_owner)]
    return workload.compute_s + min(cost.seconds for cost in costs)


PEERS = ("dense fp32", "fp16", "PowerSGD")
STEPS: dict[str, Callable[[Workload, int, float], float]] = {
    "dense fp32": dense_step_s,
    "fp16": fp16_step_s,
    "PowerSGD": powersgd_step_s,
    "DGC": dgc_step_s,
}


def cells(workload: Workload, factors: dict[str, float]) -> list[dict[str, Any]]:
    """Hours to target and kilowatt-hours of all workers, for every exchange, number of workers and line rate."""
    found = []
    for name, step_of in STEPS.items():
        for workers in WORKERS:
            num_steps = workload.steps_times_workers / workers * factors[name]
            for gbit_per_s in GBIT_PER_S:
                step_s = step_of(workload, workers, gbit_per_s)
                waiting = workload.wait_watts * (step_s - workload.compute_s)
                joules = num_steps * workers * (workload.compute_watts * workload.compute_s + waiting)
                found.append(
                    {
                        "exchange": name,
                        "workers": workers,
                        "gbit_per_s": gbit_per_s,
                        "step_ms": step_s * 1e3,
                        "hours": num_steps * step_s / 3600,
                        "kilowatt_hours": joules / 3.6e6,
                    }
                )
    return found


def break_even_table(workload: Workload, factors: dict[str, float]) -> list[dict[str, Any]]:
    """Line rate below which DGC is faster, for every peer and number of workers."""
    return [
        {
            "workers": workers,
            **{
                peer: break_even_gbit_per_s(
                    lambda rate, n=workers: factors["DGC"] * dgc_step_s(workload, n, rate),  # type: ignore[misc]
                    lambda rate, n=workers, p=peer: factors[p] * STEPS[p](workload, n, rate),  # type: ignore[misc]
                )
                for peer in PEERS
            },
        }
        for workers in WORKERS
    ]


def break_even_gbit_per_s(
    ours: Callable[[float], float], peer: Callable[[float], float], low: float = 1e-3, high: float = 1e4
) -> float | None:
    """The line rate at which both take equally long, by bisection; None if ours is not faster even at `low`.

    `high` if it is still faster there. The difference is taken to change its sign once.
    """
    if ours(low) >= peer(low):
        return None
    if ours(high) < peer(high):
        return high
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if ours(middle) < peer(middle) else (low, middle)
    return low


# --- Report -----------------------------------------------------------------------------------------------------


def markdown(record: dict[str, Any]) -> str:
    """The record for people."""
    lines = [
        f"# Total cost of ownership: {record['model']}, {record['compute_ms']:g} ms of computing a step",
        "",
        f"`{record['command']}`, commit {record['commit']}. Modelled steps times measured steps to target; the "
        "script's docstring lists the assumptions.",
        "",
        "## Steps to the common target, as a multiple of dense DDP's",
        "",
        "| exchange | median | lowest | highest | tasks |",
        "|---|---|---|---|---|",
    ]
    for name, found in record["steps_factor"].items():
        low, high = (f"{found[key]:.2f}" if found["by_task"] else "assumed" for key in ("low", "high"))
        lines.append(f"| {name} | {found['median']:.2f} | {low} | {high} | {len(found['by_task'])} |")
    for case, found in record["cells"].items():
        lines += ["", f"## {case.capitalize()}: hours to target / kilowatt-hours of all workers", "", *_hours(found)]
    for case, rows in record["break_even_gbit_per_s"].items():
        lines += ["", f"## {case.capitalize()}: line rate below which DGC is faster, Gbit/s", ""]
        lines += ["| workers | than dense fp32 | than fp16 | than PowerSGD |", "|---|---|---|---|"]
        for row in rows:
            texts = ["never" if row[peer] is None else f"{row[peer]:,.3g}" for peer in PEERS]
            lines.append(f"| {row['workers']:,} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _hours(found: Sequence[dict[str, Any]]) -> list[str]:
    rates = (0.1, 1.0, 10.0, 100.0)
    lines = [
        f"| workers | exchange | {' | '.join(f'{rate:g} Gbit/s' for rate in rates)} |",
        "|---|---|---|---|---|---|",
    ]
    by_key = {(cell["workers"], cell["exchange"], cell["gbit_per_s"]): cell for cell in found}
    for workers in (8, 64, 1024):
        for name in STEPS:
            chosen = [by_key[workers, name, rate] for rate in rates]
            texts = [f"{cell['hours']:,.1f} / {cell['kilowatt_hours']:,.0f}" for cell in chosen]
            lines.append(f"| {workers:,} | {name} | {' | '.join(texts)} |")
    return lines


if __name__ == "__main__":
    main()
