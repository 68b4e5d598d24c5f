"""Simulate gradient exchanges of 2 to 4,096 workers with the cost model, after holding it against measured runs.

    python benchmarks/scale.py                                   # ResNet-50 at 1 Gbit/s, 0.2 ms
    python benchmarks/scale.py --model vgg16 --link 100Mbit --rtt 10ms

Three parts, written to results/scale.json, .md and .png: the model against every cell of results/bandwidth.json
(speeds of this machine's processor are taken from ONE cell and predict all others), time and bytes per worker for
each exchange as the workers grow in number, and the paper's Figure 6 with the assumptions it needs.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):
    sys.path.insert(0, str(ROOT))

from benchmarks import shapes  # noqa: E402
from benchmarks.bandwidth import surroundings  # noqa: E402
from dgcomp.exchange.model import (  # noqa: E402
    Cost,
    Gradient,
    Host,
    Link,
    dense_bf16,
    dense_fp32,
    entry_bits,
    ring_all_reduce,
    sparse_all_gather,
    sparse_owner,
    sparse_tree,
    two_level,
)

RESULTS = Path(__file__).parent / "results"
Exchange = Callable[[Gradient, int, Link, Host], Cost]

# Workers share a 400 Gbit/s switch inside a node of 8 in the two-level exchange.
NODE_SIZE, NODE_LINK = 8, Link(400.0, 0.01)

EXCHANGES: dict[str, Exchange] = {
    "dense_fp32": dense_fp32,
    "dense_bf16": dense_bf16,
    "all_gather": sparse_all_gather,
    "owner": sparse_owner,
    "tree (gTop-k)": sparse_tree,
    "two_level": lambda gradient, world_size, link, host: two_level(
        gradient, world_size, link, host, node_size=min(NODE_SIZE, world_size), node_link=NODE_LINK
    ),
}
WORLD_SIZES = [2**power for power in range(1, 13)]

# --- The model against measurements -----------------------------------------------------------------------------

CORES = 2
TOLERANCE = 0.15
MEASURED: dict[str, Exchange] = {
    "ddp_fp32": dense_fp32,
    "bf16_hook": dense_bf16,
    "dgc_all_gather": sparse_all_gather,
    "dgc_owner": sparse_owner,
}
# The cell whose rows give this machine's speeds: two workers, a core each, and the network out of the way.
REFERENCE = {"link": "unshaped", "rtt_ms": 0.0, "loss": 0.0, "nodes": 2, "model": "resnet50"}


@dataclass(frozen=True, slots=True)
class Point:
    """One measured cell beside the model's prediction."""

    cell: str
    method: str
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Predicted over measured, minus one."""
        return self.predicted_s / self.measured_s - 1


def validate(rows: list[dict[str, Any]]) -> list[Point]:
    """Predict every measured cell from the machine's speeds in the reference cell."""
    by_key = {(_cell(row), row["method"]): row for row in rows if row["model"] in shapes.MODELS}
    reference = {method: row for (cell, method), row in by_key.items() if cell == tuple(REFERENCE.values())}
    if not {"none", "ddp_fp32", "bf16_hook", "dgc_all_gather"} <= set(reference):
        return []
    host = machine_speeds(reference)
    points = []
    for (cell, method), row in by_key.items():
        floor = by_key.get((cell, "none"))
        # Loss makes TCP's own behaviour count, which no alpha-beta model holds.
        if method not in MEASURED or floor is None or row["loss"]:
            continue
        link = _link(row)
        shared = replace(host, workers_per_core=max(1.0, row["nodes"] / CORES))
        cost = MEASURED[method](gradient_of(row["model"], method), row["nodes"], link, shared)
        name = f"{row['model']}, {row['nodes']} workers, {row['link']}, +{row['rtt_ms']:g} ms"
        points.append(Point(name, method, row["step_s"], floor["step_s"] + cost.seconds))
    return points


def gradient_of(model: str, method: str = "dgc_all_gather") -> Gradient:
    """What a method sends of a named model: DDP in 25 MB buckets, this package in one message."""
    sparse, leftover = shapes.split(shapes.MODELS[model]())
    buckets = 1 if method.startswith("dgc") else -(-4 * (sparse + leftover) // (25 * 2**20))
    return Gradient(sparse, leftover_numel=leftover, num_buckets=buckets)


def machine_speeds(rows: dict[str, dict[str, Any]]) -> Host:
    """Speeds of this machine from the reference cell's rows: what each method adds to a step without exchange."""
    added_s = {method: row["step_s"] - rows["none"]["step_s"] for method, row in rows.items()}
    dense, sparse = gradient_of("resnet50", "ddp_fp32"), gradient_of("resnet50")
    moved = dense.dense_bytes  # a two-worker ring sends and receives the whole buffer once
    # Half the bytes travel with 16 bits; what is left beside that is the cast and the cast back.
    cast_s = added_s["bf16_hook"] - added_s["ddp_fp32"] / 2
    host = Host(
        compress_bytes_per_s=math.inf,
        transport_bytes_per_s=2 * moved / added_s["ddp_fp32"],
        cast_bytes_per_s=moved / max(1e-4, cast_s),
    )
    if all("processor_s" in rows[method] for method in ("none", "ddp_fp32")):
        busy_s = rows["ddp_fp32"]["processor_s"] - rows["none"]["processor_s"]
        host = replace(host, transport_busy_share=min(1.0, busy_s / added_s["ddp_fp32"]))
    # Beside the passes over memory there are the messages and the entries received.
    others_s = sparse_all_gather(sparse, 2, _link(rows["dgc_all_gather"]), host).seconds
    return replace(host, compress_bytes_per_s=moved / max(1e-4, added_s["dgc_all_gather"] - others_s))


def _link(row: dict[str, Any]) -> Link:
    """What a row's link was measured to be, by raw TCP: payload."""
    return Link(min(row["line_gbit_per_s"], 1e3), row["round_trip_ms"], efficiency=1.0)


def _cell(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in REFERENCE)


# --- Figure 6 of the paper --------------------------------------------------------------------------------------

ALEXNET_SPARSE, ALEXNET_BIASES = 60_954_656, 10_568
FIGURE6_NODES = 64
# Read off Figure 6 (b): 64 nodes with conventional training at 10 Gbit/s are about 30 times as fast as one.
CONVENTIONAL_SPEEDUP_10GBIT = 30.0


def figure6(world_size: int = FIGURE6_NODES) -> dict[str, float]:
    """Speed-up of `world_size` nodes over one node on AlexNet, as the paper models it, and with this package's wire.

    Assumptions: the exchange starts when the backward pass has ended; line rates without protocol overhead or
    latency; a ring for dense gradients; for sparse ones the paper's worst case, an all-reduce by halving and
    doubling in which the density doubles at every step (section 5): `k log2(N) / 2` entries, then `(N - 1) k`. One
    number is missing from the paper, the time of a node's own step (4 GPUs and the exchange between them). It is
    taken from the conventional curve at 10 Gbit/s; every other number here follows from it.
    """
    free = Host(1e30, 1e30, 1e30, 1e30, 0.0)
    dense_bytes = 4.0 * (ALEXNET_SPARSE + ALEXNET_BIASES)
    links = {"1gbit": Link(1.0, 0.0, 1.0), "10gbit": Link(10.0, 0.0, 1.0)}

    def conventional(link: Link, nodes: int) -> float:
        return ring_all_reduce(dense_bytes, nodes, link, free).seconds

    node_s = conventional(links["10gbit"], FIGURE6_NODES) / (FIGURE6_NODES / CONVENTIONAL_SPEEDUP_10GBIT - 1)
    paper = Gradient(ALEXNET_SPARSE, codec="paper")
    packed = Gradient(ALEXNET_SPARSE, codec="int4", leftover_numel=ALEXNET_BIASES)
    entries = paper.num_entries * ((world_size - 1) + (world_size - 1).bit_length() / 2)
    speedups = {}
    for name, link in links.items():
        leftovers = ring_all_reduce(4.0 * ALEXNET_BIASES, world_size, link, free).seconds
        exchange_s = {
            "conventional": conventional(link, world_size),
            "dgc, paper": entries * 48 / 8 / link.bytes_per_s + leftovers,
            "dgc int4, all_gather": sparse_all_gather(packed, world_size, link, free).seconds,
            "dgc int4, owner": sparse_owner(packed, world_size, link, free).seconds,
        }
        for method, seconds in exchange_s.items():
            speedups[f"{method}, {name}"] = world_size * node_s / (node_s + seconds)
    speedups["node step, s"] = node_s
    return speedups


# --- Report -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", choices=list(shapes.MODELS))
    parser.add_argument("--link", default="1Gbps", help='line rate of every worker (default: "1Gbps")')
    parser.add_argument("--rtt", default="0.2ms", help='round trip between workers (default: "0.2ms")')
    parser.add_argument("--density", type=float, default=0.001, help="share of entries sent (default: 0.001)")
    arguments = parser.parse_args()
    link = Link.parse(arguments.link, arguments.rtt)
    gradient = replace(gradient_of(arguments.model), density=arguments.density)
    curves = {
        name: [exchange(gradient, world_size, link, Host()) for world_size in WORLD_SIZES]
        for name, exchange in EXCHANGES.items()
    }
    measured = RESULTS / "bandwidth.json"
    points = validate(json.loads(measured.read_text()) if measured.exists() else [])
    title = f"{arguments.model}, density {arguments.density:g}, {arguments.link}, {arguments.rtt}"
    _write(title, gradient, curves, points)
    print((RESULTS / "scale.md").read_text())


def _write(title: str, gradient: Gradient, curves: dict[str, list[Cost]], points: list[Point]) -> None:
    RESULTS.mkdir(exist_ok=True)
    record = {
        "title": title,
        "world_sizes": WORLD_SIZES,
        "curves": {name: [asdict(cost) for cost in costs] for name, costs in curves.items()},
        "validation": [{**asdict(point), "error": point.error} for point in points],
        "figure6": figure6(),
        **surroundings(),
    }
    (RESULTS / "scale.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = ["# Exchanges at scale, by the cost model\n", *_validation_table(points), *_curve_table(title, curves)]
    entries = {
        world_size: owner_entries(replace(gradient, leftover_numel=0), world_size) for world_size in (8, 64, 1024)
    }
    counted = ", ".join(f"{factor:.2f} k at {world_size:,}" for world_size, factor in entries.items())
    lines += [f"\nThe owner exchange sends, in entries per worker: {counted} workers (bound: 6 k).\n"]
    lines += _figure6_table()
    (RESULTS / "scale.md").write_text("\n".join(lines) + "\n")
    _plot(title, curves, RESULTS / "scale.png")


def owner_entries(gradient: Gradient, world_size: int) -> float:
    """Bytes that a worker sends through owners, headers included, in entries, as a multiple of k."""
    sent = sparse_owner(gradient, world_size, Link(1.0), Host()).bytes_sent
    return sent * 8 / entry_bits(gradient.density, gradient.codec) / gradient.num_entries


def _validation_table(points: list[Point]) -> list[str]:
    if not points:
        return ["No measurements to compare with: run benchmarks/bandwidth.py first.\n"]
    within = sum(abs(point.error) <= TOLERANCE for point in points)
    worst = max(points, key=lambda point: abs(point.error))
    lines = [
        "## The model against measured steps\n",
        f"{within} of {len(points)} cells within {TOLERANCE:.0%}; the worst is {worst.error:+.0%} "
        f"({worst.method}, {worst.cell}). Processor speeds come from the cell with 2 unshaped workers alone.\n",
        "| cell | method | measured, ms | predicted, ms | error |",
        "|---|---|---|---|---|",
    ]
    for point in points:
        numbers = f"{point.measured_s * 1e3:.1f} | {point.predicted_s * 1e3:.1f} | {point.error:+.1%}"
        lines.append(f"| {point.cell} | {point.method} | {numbers} |")
    return lines


def _curve_table(title: str, curves: dict[str, list[Cost]]) -> list[str]:
    lines = [f"\n## {title}\n", "Milliseconds an exchange / MB sent per worker:\n"]
    lines += [f"| workers | {' | '.join(curves)} |", "|---" * (len(curves) + 1) + "|"]
    for index, world_size in enumerate(WORLD_SIZES):
        cells = [f"{c[index].seconds * 1e3:,.1f} / {c[index].bytes_sent / 1e6:,.3g}" for c in curves.values()]
        lines.append(f"| {world_size:,} | {' | '.join(cells)} |")
    return lines


def _figure6_table() -> list[str]:
    speedups = figure6()
    lines = ["\n## Figure 6 of the paper: AlexNet, 64 nodes of 4 GPUs, speed-up over one node\n"]
    lines += ["| method | 1 Gbit/s | 10 Gbit/s | paper |", "|---|---|---|---|"]
    paper = {"conventional": "about 30 at 10 Gbit/s (input)", "dgc, paper": "above 40 at 1 Gbit/s"}
    for method in ("conventional", "dgc, paper", "dgc int4, all_gather", "dgc int4, owner"):
        slow, fast = speedups[f"{method}, 1gbit"], speedups[f"{method}, 10gbit"]
        lines.append(f"| {method} | {slow:.1f}x | {fast:.1f}x | {paper.get(method, '-')} |")
    lines.append(
        f"\nA node's own step is {speedups['node step, s'] * 1e3:.0f} ms, inferred from the conventional curve; the "
        "docstring of `figure6` lists the other assumptions."
    )
    return lines


def _plot(title: str, curves: dict[str, list[Cost]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (time_axis, byte_axis) = plt.subplots(1, 2, figsize=(13, 5))
    for name, costs in curves.items():
        time_axis.plot(WORLD_SIZES, [cost.seconds * 1e3 for cost in costs], "o-", markersize=3, label=name)
        byte_axis.plot(WORLD_SIZES, [cost.bytes_sent / 1e6 for cost in costs], "o-", markersize=3, label=name)
    for axis, label in ((time_axis, "ms an exchange"), (byte_axis, "MB sent per worker")):
        axis.set(xscale="log", yscale="log", xlabel="workers", ylabel=label)
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
