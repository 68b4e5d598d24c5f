"""Time gradient exchanges over real, shaped links: DDP, its hooks, PowerSGD, textbook top-k, and this package.

Every rank is a process in its own network namespace; tc limits the rate in both directions; bytes come from the
interface counters. The gradients have the shapes of real networks and a backward pass that costs nothing, so the
time is that of the exchange (and the optimizer's update, the same for all). Needs root, `ip` and `tc`; where they
are missing it says so and ends with status 0.

    python benchmarks/bandwidth.py --links 1gbit --nodes 4 --models resnet50
    python benchmarks/bandwidth.py --links 100mbit --rtt-ms 10 --loss 0.001 --methods ddp_fp32 dgc_auto
    python benchmarks/bandwidth.py --models training --links 1gbit           # a real training, end to end
    python benchmarks/bandwidth.py --soak 10000 --links unshaped             # replicas bitwise equal under loss
    python benchmarks/bandwidth.py --report                                  # only redraw the table and the plot

Rows are appended to results/bandwidth.json as they are measured, and a row that is there is not measured again
(--again does). All ranks share this machine's cores: with more ranks than cores, each method's own arithmetic is
slower than it would be on separate machines, and that disadvantages the methods that compute more.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):
    sys.path.insert(0, str(ROOT))

from benchmarks.net import links, report  # noqa: E402
from benchmarks.net.methods import METHODS, TITLES  # noqa: E402
from benchmarks.shapes import MODELS  # noqa: E402
from benchmarks.store import describe_commit, processor  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "bandwidth.json"
KEY = ("link", "rtt_ms", "loss", "nodes", "model", "method")
SOAK_RTT_MS, SOAK_LOSS = 10.0, 0.001
# A replay has no use for a warm-up: name it for a training.
DEFAULT_METHODS = [name for name in METHODS if name != "dgc_warmup"]
SOAKED = ("dgc_all_gather", "dgc_owner")


def main() -> None:
    arguments = _arguments()
    if not arguments.report:
        reason = links.why_not_permitted()
        if reason is not None:
            print(f"skipped: links cannot be emulated here: {reason}")
            return
        if arguments.soak:
            soak(arguments)
            return
        for link, rtt_ms, loss, nodes, model in itertools.product(
            arguments.links, arguments.rtt_ms, arguments.loss, arguments.nodes, arguments.models
        ):
            cell = {"link": link, "rtt_ms": rtt_ms, "loss": loss, "nodes": nodes, "model": model}
            measure(cell, arguments)
    rows = load()
    if rows:
        report.write(rows, RESULTS)
        print(f"wrote {RESULTS.with_suffix('.md')} and {RESULTS.with_suffix('.png')}")


def measure(cell: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Measure the missing methods of one cell (link, nodes, model) and append their rows."""
    known = {tuple(row[name] for name in KEY) for row in load()}
    methods = [m for m in arguments.methods or DEFAULT_METHODS if arguments.again or (*cell.values(), m) not in known]
    if not methods:
        return
    print(f"{cell}: {', '.join(methods)}", flush=True)
    with links.Network(cell["nodes"], cell["link"], cell["rtt_ms"], cell["loss"]) as network:
        checked = check(network)
        job = {
            "model": cell["model"], "methods": methods, "budget_s": arguments.budget_s,
            "min_steps": arguments.min_steps, "warmup_steps": arguments.warmup_steps,
            "training_steps": arguments.training_steps,
        }  # fmt: skip
        for row in run_ranks(network, job, arguments.timeout_s):
            append({**cell, **row, **checked, **surroundings()})


def check(network: links.Network) -> dict[str, float]:
    """Measure and print what the link really does before anything is timed on it."""
    trip = links.round_trip_ms(network)
    rate = links.transfer_gbit_per_s(network, 1.0)
    print(f"  link {network.rate}: {rate:.3f} Gbit/s of payload by raw TCP, round trip {trip:.2f} ms", flush=True)
    wanted = links.bits_per_s(network.rate) / 1e9
    if network.loss == 0 and network.rtt_ms == 0 and not rate <= wanted:
        raise RuntimeError(f"the shaper lets {rate:.3f} Gbit/s through, {wanted} were asked for")
    return {"line_gbit_per_s": rate, "round_trip_ms": trip}


def run_ranks(network: links.Network, job: dict[str, Any], timeout_s: float) -> Iterator[dict[str, Any]]:
    """Run one worker in every node and yield rank 0's rows as they come. Ranks that fail print their traceback."""
    # Huge pages for torch's allocations: every method's passes over memory gain from them.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/rows", "w+b") as output:
        processes = []
        for rank in range(network.nodes):
            description = {"rank": rank, "world_size": network.nodes, "store": f"{folder}/store", **job}
            command = [sys.executable, "-m", "benchmarks.net.worker", json.dumps(description)]
            stdout = output if rank == 0 else subprocess.DEVNULL
            processes.append(network.start(rank, command, stdout=stdout, env=environment, cwd=ROOT))
        with open(f"{folder}/rows") as lines:
            for _ in links.poll(processes, timeout_s):
                for line in lines:
                    row = json.loads(line)
                    print(f"    {row['method']:16s} {row['step_s'] * 1e3:10.1f} ms/step", flush=True)
                    yield row
        codes = [process.returncode for process in processes]
        if any(codes):
            print(f"  stopped early: exit codes of the ranks {codes} (-9: killed, out of time)", flush=True)


def soak(arguments: argparse.Namespace) -> None:
    """Many steps under loss and delay; print whether all replicas are equal to the bit, and fail if not."""
    methods = arguments.methods or SOAKED
    for link, nodes, method in itertools.product(arguments.links, arguments.nodes, methods):
        with links.Network(nodes, link, SOAK_RTT_MS, SOAK_LOSS) as network:
            check(network)
            job = {"model": "soak", "methods": [method], "soak_steps": arguments.soak}
            rows = list(run_ranks(network, job, max(arguments.timeout_s, arguments.soak * 1.0)))
        where = {"link": link, "rtt_ms": SOAK_RTT_MS, "loss": SOAK_LOSS, "nodes": nodes}
        for row in rows:
            append({**where, **row, **surroundings()}, RESULTS.with_name("soak.json"))
            print(f"  {method}, {nodes} nodes: {row}")
        if not rows or not rows[0]["replicas_bitwise_equal"] or not rows[0]["weights_finite"]:
            raise SystemExit(f"{method} on {nodes} nodes: replicas differ or the run did not finish")


def surroundings() -> dict[str, Any]:
    """What a reader must know to repeat a row."""
    return {
        "commit": describe_commit(),
        "torch": torch.__version__,
        "machine": f"{processor()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "command": " ".join(["python", "benchmarks/bandwidth.py", *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def load() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def append(row: dict[str, Any], path: Path = RESULTS) -> None:
    """Add a row to the file, in place of an older one with the same key."""
    rows = json.loads(path.read_text()) if path.exists() else []
    key = [row.get(name) for name in KEY]
    rows = [old for old in rows if [old.get(name) for name in KEY] != key]
    path.parent.mkdir(exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(r) for r in [*rows, row]) + "\n]\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--links", nargs="+", default=["100mbit", "1gbit", "unshaped"], help='rates as tc writes them, or "unshaped"')
    add("--rtt-ms", nargs="+", type=float, default=[0.0], help="round trip that is added (default: 0)")
    add("--loss", nargs="+", type=float, default=[0.0], help="probability that a packet is lost (default: 0)")
    add("--nodes", nargs="+", type=int, default=[4], help="ranks, one namespace each (default: 4)")
    add("--models", nargs="+", default=["resnet50"], choices=[*MODELS, "training"])
    add("--methods", nargs="+", choices=list(METHODS), metavar="METHOD",
        help="; ".join(f"{name}: {title}" for name, title in TITLES.items()))  # fmt: skip
    add("--budget-s", type=float, default=8.0, help="measured seconds for each method, after warm-up (default: 8)")
    add("--min-steps", type=int, default=3, help="measured steps at least (default: 3)")
    add("--warmup-steps", type=int, default=3, help="DDP settles its buckets in the first (default: 3)")
    add("--training-steps", type=int, default=200, help="steps of --models training (default: 200)")
    add("--timeout-s", type=float, default=600.0, help="a cell is stopped after this many seconds (default: 600)")
    add(
        "--soak",
        type=int,
        default=0,
        metavar="STEPS",
        help="instead of timing: run so many steps under 0.1 %% loss and 10 ms, and compare the replicas bit by bit",
    )
    add("--again", action="store_true", help="measure rows anew that are already in the file")
    add("--report", action="store_true", help="measure nothing, write the table and the plot from the file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
