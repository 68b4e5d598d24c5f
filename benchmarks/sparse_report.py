"""results/sparse.md and results/sparse.png from the rows of results/sparse.json."""

import math
import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.sparse_rows import RESULTS, Row, read_rows

__all__ = ["LOSS_LIMIT", "METHODS", "curves", "reduction_at_loss", "reduction_table", "render", "spgemm_table"]

METHODS = ("spatial", "winograd", "winograd-relu")
LOSS_LIMIT = 0.5  # percentage points


def render(_: Any = None) -> None:
    """Write the tables and the plot; of repeated timings the newest counts."""
    lines = ["# dgcomp.sparse, measured", "", "Rows of sparse.json; `python benchmarks/sparse.py --help` says how.", ""]
    for title, note, rows in (
        (
            "EIEMatrix times vector, milliseconds",
            MATVEC_NOTE,
            [_matvec(r) for r in newest(read_rows("matvec"), "threads")],
        ),
        ("One convolution, milliseconds", CONV_NOTE, [_conv(r) for r in newest(read_rows("conv"), "density")]),
        ("Sparse matrix times sparse matrix, milliseconds", SPGEMM_NOTE, spgemm_table(read_rows("spgemm"))),
        ("Prune, share, compress, multiply", WALK_NOTE, [_walk(r) for r in newest(read_rows("walk"), "step")]),
    ):
        if rows:
            lines += [f"## {title}", "", note, "", *table(rows), ""]
    points = curves(read_rows("prune"))
    if points:
        lines += ["## Three ways to prune", "", PRUNE_NOTE, "", *table(reduction_table(points)), ""]
        lines += ["![accuracy against multiply reduction](sparse.png)", "", *table(points), ""]
        plot(points)
    tuning = read_rows("tune")
    if tuning:
        lines += ["## Learning rates on CIFAR-10", "", TUNE_NOTE, "", *table([_tune(r) for r in tuning]), ""]
    RESULTS.with_suffix(".md").write_text("\n".join(lines))


MATVEC_NOTE = "9216 x 4096, 10 % of the weights, 35 % of the activations; limit: reading the entries at 28 GB/s."
CONV_NOTE = "64 channels, 28 x 28, batch 8, one thread."
SPGEMM_NOTE = (
    "A times A. SciPy and MKL return columns in no order, dgcomp ascending; `sorted` adds SciPy's `sort_indices()`. "
    "Memory: inputs and highest resident size added, over inputs and output."
)
WALK_NOTE = "A 784-1024-512-10 network on Fashion-MNIST; size of its three weights."
PRUNE_NOTE = (
    f"Reduction of multiplies, direct dense network over what is left, at {LOSS_LIMIT} points below the dense network. "
    "`same steps`: the dense network trained for as many steps; `longest`: trained to the end of the last level."
)

TUNE_NOTE = (
    "400 dense steps on seed 7, which no curve above uses, and on 45,000 of the training images. Loss: "
    "mean of the last 100 batches. Accuracy: on the 5,000 training images held out. Start: Winograd weights as "
    "released, normal, or transforms of He-initialised spatial ones."
)


def newest(rows: Iterable[Row], key: str) -> list[Row]:
    """The last row of each value of `key`, in the order of the first ones."""
    return list({row[key]: row for row in rows}.values())


def _matvec(row: Row) -> Row:
    ms = row["ms"]
    times = {"EIEMatrix": ms["eie"], "torch dense": ms["dense"], "torch CSR": ms["torch_csr"]}
    ratios = {"dense / EIE": ms["dense"] / ms["eie"], "CSR / EIE": ms["torch_csr"] / ms["eie"]}
    return {"threads": row["threads"]} | times | _rounded(ratios) | {"limit": row["read_limit_ms"]}


def _conv(row: Row) -> Row:
    ms = row["ms"]
    ratio = _rounded({"direct / sparse": ms["direct_dense"] / ms["winograd_sparse"]})
    return {"weights kept": row["density"]} | {name.replace("_", ", "): value for name, value in ms.items()} | ratio


def spgemm_table(rows: Iterable[Row]) -> list[Row]:
    """Newest times of each matrix, and their ratios."""
    out = []
    for row in newest(rows, "matrix"):
        one, two = row["one_thread_ms"], row["two_threads_ms"]
        times = {"dgcomp": one["dgcomp"], "SciPy": one["scipy"], "SciPy, sorted": one["scipy_sorted"]}
        ratios = {
            "SciPy / dgcomp": one["scipy"] / one["dgcomp"],
            "sorted / dgcomp": one["scipy_sorted"] / one["dgcomp"],
        }
        more = {"dgcomp, 2 threads": two["dgcomp"], "torch MKL, 2 threads": two["torch_mkl"]}
        last = _rounded({"MKL / dgcomp": two["torch_mkl"] / two["dgcomp"]}) | {"memory": row.get("memory_ratio", "")}
        out.append({"matrix": row["matrix"]} | times | _rounded(ratios) | more | last)
    return out


def _walk(row: Row) -> Row:
    return {"step": row["step"], "accuracy, %": f"{row['accuracy']:.2f}", "kB": row["kilobytes"]}


def _tune(row: Row) -> Row:
    start = "" if row["method"] == "spatial" else row["start"]
    figures = {"loss": f"{row['loss']:.3f}", "accuracy, %": f"{row['accuracy']:.2f}"}
    return {"task": row["task"], "method": row["method"], "start": start, "rate": row["rate"]} | figures


def _rounded(ratios: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.2f}" for name, value in ratios.items()}


def table(rows: list[Row]) -> list[str]:
    """Markdown of rows that have the same columns."""
    keys = list(rows[0])
    head = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    return head + ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows]


def curves(rows: list[Row]) -> list[Row]:
    """Means over the seeds that have both the method's row and the dense network's at the same level."""
    runs = {(r["task"], r["method"], r["seed"], r["level"]): r for r in rows}
    last = max((level for *_, level in runs), default=0)

    def dense(task: str, seed: int, level: int) -> float | None:
        row = runs.get((task, "dense" if level else "spatial", seed, level))
        return row["accuracy"] if row else None

    out = []
    for task in sorted({task for task, *_ in runs}):
        for method in METHODS:
            for level in range(last + 1):
                group = [r for (t, m, _, lv), r in runs.items() if (t, m, lv) == (task, method, level)]
                pairs = [(r, dense(task, r["seed"], level), dense(task, r["seed"], last)) for r in group]
                kept = [(r, same, longest) for r, same, longest in pairs if same is not None and longest is not None]
                if kept:
                    out.append(_point(task, method, kept))
    return out


def _point(task: str, method: str, runs: list[tuple[Row, Any, Any]]) -> Row:
    accuracies = [row["accuracy"] for row, *_ in runs]
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(runs) > 1 else ""
    return {
        "task": task,
        "method": method,
        "weights kept": runs[0][0]["density"],
        "seeds": len(runs),
        "accuracy, %": f"{statistics.mean(accuracies):.2f}{spread}",
        "loss, same steps": round(statistics.mean(same - row["accuracy"] for row, same, _ in runs), 2),
        "loss, longest": round(statistics.mean(longest - row["accuracy"] for row, _, longest in runs), 2),
        "reduction": round(statistics.mean(row["reduction"] for row, *_ in runs), 2),
    }


def reduction_table(points: list[Row]) -> list[Row]:
    """Reduction at the loss limit, by task and method, for both references."""
    out = []
    for task, method in dict.fromkeys((p["task"], p["method"]) for p in points):
        curve = [p for p in points if (p["task"], p["method"]) == (task, method)]
        row = {"task": task, "method": method, "seeds": min(p["seeds"] for p in curve)}
        for loss in ("loss, same steps", "loss, longest"):
            row[loss.replace("loss", f"reduction at {LOSS_LIMIT} points")] = reduction_at_loss(
                [(p["reduction"], p[loss]) for p in curve], LOSS_LIMIT
            )
        out.append(row)
    return out


def reduction_at_loss(curve: Iterable[tuple[float, float]], limit: float) -> str:
    """Largest reduction on a curve of (reduction, loss) that loses at most `limit`.

    Between two points by the logarithm; "none" where every point loses more, "> x" where the last one loses less.
    """
    points = sorted(curve)
    inside = [index for index, (_, loss) in enumerate(points) if loss <= limit]
    if not inside:
        return "none"
    low = points[inside[-1]]
    if inside[-1] == len(points) - 1:
        return f"> {low[0]:.1f}"
    high = points[inside[-1] + 1]
    share = (limit - low[1]) / (high[1] - low[1])
    return f"{math.exp((1 - share) * math.log(low[0]) + share * math.log(high[0])):.1f}"


def plot(points: list[Row]) -> None:
    """Loss of accuracy against the dense network over reduction, one panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(point["task"] for point in points))
    figure, axes = plt.subplots(1, len(tasks), figsize=(5.5 * len(tasks), 4.2), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for method, marker in zip(METHODS, "osD", strict=True):
            curve = [p for p in points if (p["task"], p["method"]) == (task, method)]
            axis.plot(
                [p["reduction"] for p in curve], [-p["loss, same steps"] for p in curve], marker + "-", label=method
            )
        axis.axhline(-LOSS_LIMIT, color="grey", linestyle=":", label=f"{LOSS_LIMIT} points below dense")
        axis.axvline(10, color="grey", linestyle="--", linewidth=0.8)
        seeds = min(p["seeds"] for p in points if p["task"] == task)
        axis.set(xscale="log", xlabel="reduction of multiplies", title=f"{task}, {seeds} seed{'s' * (seeds > 1)}")
        axis.set_xticks([2, 3, 5, 10, 20, 40], ["2", "3", "5", "10", "20", "40"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("accuracy against the dense network, points")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(RESULTS.with_suffix(".png"), dpi=110)
