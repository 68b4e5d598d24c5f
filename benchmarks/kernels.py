"""How close update + select + mask comes to the memory's speed, and how often a reused threshold fails.

One step is `accumulate_select`, `select_fixed`, `next_threshold` and `mask` on one tensor, with a fresh heavy-tailed
gradient each time. In the same round the same threads time a STREAM triad (a = b + s*c, counted as 12 bytes an element,
as STREAM counts) and, in fp32, the chain of single torch operations that published DGC code uses. The limit is the time
in which the triad moves 20 bytes an element (read gradient, read and write u and v; 18 if the gradient has 16 bits).

    python -m benchmarks.kernels                      # everything, about 4 minutes on two cores
    python -m benchmarks.kernels --threads 1 --dtypes float32 --densities 0.001 --steering-steps 0
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from benchmarks.store import describe_commit, processor
from dgcomp import kernels
from dgcomp.kernels.threads import run, split
from dgcomp.memory import GradientMemory, ParameterSettings
from dgcomp.select import next_threshold, select_fixed

RESULTS = Path(__file__).parent / "results"
MOMENTUM = 0.9
SETTLING_TURNS = 200
"""steps before the first timed one: u and v fill, and the threshold, which rises with v, comes to rest"""
NUM_WORKERS = 4  # the published chain divides the result by it


@numba.njit(nogil=True)
def _triad(a: Any, b: Any, c: Any, first: int, last: int) -> None:
    x, y, z = a[first:last], b[first:last], c[first:last]
    for i in range(x.size):
        x[i] = y[i] + np.float32(1.5) * z[i]


class Step:
    """One tensor under this package, in the memory that it takes for it, stepped with one gradient after another."""

    def __init__(self, numel: int, density: float) -> None:
        parameter = torch.empty(1, numel)  # a matrix: vectors are leftovers
        memory = GradientMemory([("weight", parameter)], {"weight": ParameterSettings(MOMENTUM, False, 0.0)})
        self.momentum, self.residual = memory.momentum, memory.residual
        self.k = max(round(numel * density), 1)
        self.threshold, self.step, self.count = math.inf, 0, 0

    def __call__(self, gradient: Tensor) -> None:
        candidates = kernels.accumulate_select(
            gradient, self.momentum, self.residual, threshold=self.threshold, momentum_factor=MOMENTUM
        )
        chosen = select_fixed(self.residual, candidates, self.k, generator_seed=self.step)
        kth = float(self.residual[chosen].abs().min())
        self.count = candidates.numel()
        self.threshold = next_threshold(self.threshold, self.count, self.k, kth)
        kernels.mask(chosen, self.momentum, self.residual)
        self.step += 1


class Chain:
    """The published way, one torch operation after another.

    Written from the description in Lin et al., ICLR 2018, sec. 5, with the constants of its authors' release: a strided
    sample of 1 %, up to ten rounds that lower the threshold by 0.8 when fewer than 0.8 k pass, an exact top-k over the
    survivors when more than 1.3 k do, and a cut at k.
    """

    def __init__(self, numel: int, density: float) -> None:
        self.momentum, self.residual = torch.zeros(numel), torch.zeros(numel)
        self.k = max(round(numel * density), 1)

    def __call__(self, gradient: Tensor) -> None:
        self.momentum.mul_(MOMENTUM).add_(gradient)
        self.residual.add_(self.momentum)
        importance = self.residual.abs()
        sample = importance[int(torch.randint(100, ())) :: 100]
        threshold = sample.topk(max(self.k // 100, 1)).values.min()
        indices = (importance >= threshold).nonzero().view(-1)
        for _ in range(10):
            if indices.numel() < 0.8 * self.k:
                threshold = threshold * 0.8
                indices = (importance >= threshold).nonzero().view(-1)
            elif indices.numel() > 1.3 * self.k:
                indices = indices[importance[indices].topk(self.k).indices]
            else:
                break
        indices = indices[: self.k]
        values = self.residual[indices]
        self.momentum.index_fill_(0, indices, 0)
        self.residual.index_fill_(0, indices, 0)
        gradient.zero_()
        gradient[indices] = values
        gradient.div_(NUM_WORKERS)


def measure(numel: int, density: float, dtype: torch.dtype, threads: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds; in each, the triad, this package and the chain take turns."""
    torch.set_num_threads(threads)
    noise = torch.randn(numel, generator=torch.Generator().manual_seed(1)).pow_(3).to(dtype)
    gradient, step = torch.empty_like(noise), Step(numel, density)
    chain = Chain(numel, density) if dtype == torch.float32 else None
    arrays = [np.full(numel, x, np.float32) for x in (0.0, 1.0, 2.0)]
    times: dict[str, list[float]] = {"triad": [], "step": [], "chain": []}
    ratios, candidates = [], []
    for turn in range(-SETTLING_TURNS, rounds):
        _refill(gradient, noise, turn)
        step_s = _seconds(lambda: step(gradient))
        if turn < 0:
            continue
        triad_s = _seconds(lambda: run(lambda first, last: _triad(*arrays, first, last), split(numel)))
        times["triad"].append(triad_s)
        times["step"].append(step_s)
        ratios.append(step_s / (triad_s * _bytes(dtype) / 12))
        candidates.append(step.count / step.k)
        if chain is not None and (turn < 7):
            _refill(gradient, noise, turn)
            times["chain"].append(_seconds(lambda: chain(gradient)))
    step_s, triad_s = statistics.median(times["step"]), statistics.median(times["triad"])
    row: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "density": density,
        "threads": threads,
        "step_ms": round(step_s * 1e3, 2),
        "step_gbyte_per_s": round(numel * _bytes(dtype) / step_s / 1e9, 1),
        "triad_gbyte_per_s": round(numel * 12 / triad_s / 1e9, 1),
        "time_over_limit": round(statistics.median(ratios), 2),
        "candidates_over_k": round(statistics.mean(candidates), 2),
    }
    if chain is not None:
        row["chain_ms"] = round(statistics.median(times["chain"]) * 1e3, 1)
        row["faster_than_chain"] = round(row["chain_ms"] / row["step_ms"], 1)
    return row


def parts(numel: int, density: float, rounds: int) -> dict[str, float]:
    """Milliseconds of each kernel in fp32 on one thread, in the settled state."""
    torch.set_num_threads(1)
    noise = torch.randn(numel, generator=torch.Generator().manual_seed(1)).pow_(3)
    gradient, step = torch.empty_like(noise), Step(numel, density)
    for turn in range(SETTLING_TURNS):
        _refill(gradient, noise, turn)
        step(gradient)
    momentum, residual, found = step.momentum, step.residual, {}

    def update() -> None:
        found["candidates"] = kernels.accumulate_select(gradient, momentum, residual, threshold=step.threshold)

    def select() -> None:
        found["chosen"] = select_fixed(residual, found["candidates"], step.k, generator_seed=0)

    named: dict[str, Callable[[], object]] = {
        "is_finite": lambda: kernels.is_finite(gradient),
        "accumulate_select": update,
        "select_fixed": select,
        "mask": lambda: kernels.mask(found["chosen"], momentum, residual),
        "second pass (all of select_fixed)": lambda: select_fixed(
            residual, found["candidates"][:0], step.k, generator_seed=0
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in named}
    for turn in range(SETTLING_TURNS, SETTLING_TURNS + rounds):
        _refill(gradient, noise, turn)
        for name, call in named.items():
            times[name].append(_seconds(call))
    return {name: round(statistics.median(values) * 1e3, 3) for name, values in times.items()}


def steering(numel: int, density: float, kind: str, num_steps: int) -> dict[str, Any]:
    """Share of steps, after the first 20, whose candidates were too few, on a synthetic sequence of gradients."""
    torch.set_num_threads(1)
    step, counts = Step(numel, density), []
    for gradient in _gradients(numel, kind, num_steps):
        step(gradient)
        counts.append(step.count / step.k)
    settled = counts[20:]
    return {
        "sequence": kind,
        "numel": numel,
        "density": density,
        "steps": num_steps,
        "second_pass_percent": round(100 * sum(ratio < 1 for ratio in settled) / len(settled), 2),
        "candidates_over_k": round(statistics.mean(settled), 2),
        "worst_candidates_over_k": round(max(settled), 1),
    }


def _gradients(numel: int, kind: str, num_steps: int) -> Iterator[Tensor]:
    """Coordinates of log-normal scale with a constant drift; the norm decays by 10 and is noisy from step to step.

    "normal" and "student" (4 degrees of freedom) name the noise; in "bursty" the norm varies by a factor e**0.5, and
    one step in fifty is ten times as large.
    """
    rng = np.random.default_rng(0)
    scale = np.exp(rng.standard_normal(numel, np.float32))
    drift = 0.3 * rng.standard_normal(numel, np.float32)
    for t in range(num_steps):
        noise = rng.standard_normal(numel, np.float32)
        if kind == "student":
            noise /= np.sqrt(rng.standard_gamma(2.0, numel, np.float32) / 2)
        norm = math.exp(rng.normal() * (0.5 if kind == "bursty" else 0.2)) * (1 + 9 * math.exp(-t / 100))
        if kind == "bursty" and rng.random() < 0.02:
            norm *= 10
        yield torch.from_numpy(scale * (noise + drift) * np.float32(norm))


def call_overhead_us() -> dict[str, float]:
    """Microseconds of one call on 64 elements, which is all overhead."""
    torch.set_num_threads(1)
    gradient, momentum, residual = torch.zeros(64), torch.zeros(64), torch.randn(64)
    candidates = kernels.find_at_least(residual, 1.0)
    calls: dict[str, Callable[[], object]] = {
        "accumulate_select": lambda: kernels.accumulate_select(gradient, momentum, residual, threshold=1.0),
        "is_finite": lambda: kernels.is_finite(gradient),
        "select_fixed": lambda: select_fixed(residual, candidates, 4, generator_seed=0),
        "mask": lambda: kernels.mask(candidates, momentum, gradient),
        "scatter_add": lambda: kernels.scatter_add(gradient, candidates, residual[candidates]),
    }
    return {name: round(min(_seconds(call) for _ in range(2000)) * 1e6, 1) for name, call in calls.items()}


def _refill(gradient: Tensor, noise: Tensor, turn: int) -> None:
    """Another gradient for every turn, without the time to draw 25 million numbers."""
    cut = (turn + SETTLING_TURNS) * 7919 % noise.numel()
    gradient[: noise.numel() - cut] = noise[cut:]
    gradient[noise.numel() - cut :] = noise[:cut]


def _bytes(dtype: torch.dtype) -> int:
    return 16 + dtype.itemsize


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _surroundings() -> dict[str, Any]:
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": describe_commit(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numba": numba.__version__},
        "command": "python -m benchmarks.kernels " + " ".join(sys.argv[1:]),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|---" * len(names) + "|"]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _write(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "kernels.json"
    history = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*history, result], indent=1) + "\n")
    about = result["surroundings"]
    sections = [
        "# Kernels: update + select + mask against the speed of memory",
        f"{about['machine']}; {about['versions']}; commit {about['commit']}; {about['time']}; `{about['command']}`",
        f"{result['numel']:,} elements, momentum {MOMENTUM}, medians of {result['rounds']} rounds. Limit: the time in "
        "which a triad, timed in the same round with the same threads, moves 20 bytes an element (18 in bfloat16). The "
        "step may come out below 1: a triad also reads the lines that it writes, which its 12 bytes do not count, and "
        "u and v lie in huge pages, as in training.",
        _table(result["speed"]),
        "## Parts, fp32, one thread, milliseconds",
        _table([result["parts_ms"]]),
        "## One call on 64 elements, microseconds (fastest of 2,000)",
        _table([result["call_overhead_us"]]),
    ]
    if result["steering"]:
        sections += ["## A threshold that is reused: how often it finds too few (after 20 steps)"]
        sections += [_table(result["steering"])]
    (folder / "kernels.md").write_text("\n\n".join(sections) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numel", type=int, default=25_600_000, help="elements of the tensor (default: ResNet-50)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per row")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.001, 0.01])
    parser.add_argument("--steering-steps", type=int, default=1000, help="0 leaves the sequences out")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of kernels.json and kernels.md")
    arguments = parser.parse_args()
    speed = [
        measure(arguments.numel, density, getattr(torch, dtype), threads, arguments.rounds)
        for threads in arguments.threads
        for dtype in arguments.dtypes
        for density in arguments.densities
    ]
    sequences = [(100_000, "normal"), (100_000, "student"), (100_000, "bursty"), (10_000, "student")]
    result = {
        "surroundings": _surroundings(),
        "numel": arguments.numel,
        "rounds": arguments.rounds,
        "speed": speed,
        "parts_ms": parts(arguments.numel, 0.001, arguments.rounds),
        "call_overhead_us": call_overhead_us(),
        "steering": [
            steering(numel, 0.001, kind, arguments.steering_steps)
            for numel, kind in sequences
            if arguments.steering_steps > 20
        ],
    }
    _write(result, arguments.results)
    print((arguments.results / "kernels.md").read_text())


if __name__ == "__main__":
    main()
