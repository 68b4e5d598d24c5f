"""The table and the plot of benchmarks/bandwidth.py, from its JSON rows alone."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.net.links import bits_per_s
from benchmarks.net.methods import TITLES

Row = dict[str, Any]

BASELINE = "ddp_fp32"
DENSE = ("ddp_fp32", "ddp_fp32_8mb", "ddp_fp32_100mb")
PLOTTED = (
    "ddp_fp32", "fp16_hook", "powersgd_r1", "powersgd_r4", "topk_pairs", "dgc_paper", "dgc_all_gather", "dgc_owner",
)  # fmt: skip


def write(rows: list[Row], results: Path) -> None:
    """Write NAME.md and NAME.png beside NAME.json."""
    replays = [row for row in rows if row["model"] != "training"]
    parts = [_intro(rows)]
    for model, nodes in sorted({(row["model"], row["nodes"]) for row in replays}):
        parts += _exchange_table([r for r in replays if (r["model"], r["nodes"]) == (model, nodes)], model, nodes)
    parts += _training_table([row for row in rows if row["model"] == "training"])
    results.with_suffix(".md").write_text("\n".join(parts) + "\n")
    plot(replays, results.with_suffix(".png"))


def _intro(rows: list[Row]) -> str:
    latest = max(rows, key=lambda row: row["time"])
    return (
        "# Gradient exchange over shaped links\n\n"
        f"Machine: {latest['machine']}; torch {latest['torch']}; commits {_named(r['commit'] for r in rows)}; "
        f"measured {min(r['time'] for r in rows)[:10]} to {latest['time'][:10]}.\n"
        "Written by benchmarks/bandwidth.py; docs/bandwidth.md says how it is measured. One process per rank, one\n"
        "thread each, all ranks on this machine's cores. A step is the exchange and the optimizer's update; the\n"
        "gradients cost nothing to compute. Median over the steps of the slowest rank; bytes come from the interface\n"
        "counters. Speed-ups are against the fastest of the measured bucket sizes of fp32 DDP in the same cell.\n"
    )


def _named(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _exchange_table(rows: list[Row], model: str, nodes: int) -> list[str]:
    cells = sorted({_cell(row) for row in rows}, key=lambda c: (c[1], c[2], bits_per_s(c[0])))
    found = {(_cell(row), row["method"]): row for row in rows}
    lines = [f"\n## {model}, {nodes} workers\n", "Milliseconds a step (speed-up over fp32 DDP):\n"]
    lines += _grid(cells, {method: [_step(cell, method, found) for cell in cells] for method in TITLES})
    added = {method: [_added(cell, method, found) for cell in cells] for method in TITLES}
    if any(number is not None for numbers in added.values() for number in numbers):
        lines += ["\nMilliseconds that the exchange adds to a step without one (speed-up over fp32 DDP):\n"]
        lines += _grid(cells, added)
    sent = {method: [_sent(cell, method, found) for cell in cells] for method in TITLES}
    lines += ["\nMegabytes sent a step and worker, by the interface counters:\n", *_grid(cells, sent)]
    checks = [f"{_heading(cell)}: {_checked(cell, found)}" for cell in cells]
    lines += ["", "Links as measured by raw TCP before each cell: " + "; ".join(checks) + ".", ""]
    return lines + _break_even_table(rows)


def _grid(cells: list[Any], numbers: dict[str, list[str | None]]) -> list[str]:
    """Markdown rows, methods down and cells across; methods without any number are left out."""
    lines = [f"| method | {' | '.join(_heading(cell) for cell in cells)} |", "|---" * (len(cells) + 1) + "|"]
    for method, texts in numbers.items():
        if any(texts):
            lines.append(f"| {TITLES[method]} | {' | '.join(text or '-' for text in texts)} |")
    return lines


def _step(cell: Any, method: str, found: dict[Any, Row]) -> str | None:
    return _speed(cell, method, found, floor_s=0.0)


def _added(cell: Any, method: str, found: dict[Any, Row]) -> str | None:
    floor = found.get((cell, "none"))
    if floor is None or method == "none":
        return None
    return _speed(cell, method, found, floor_s=floor["step_s"])


def _speed(cell: Any, method: str, found: dict[Any, Row], floor_s: float) -> str | None:
    row = found.get((cell, method))
    if row is None:
        return None
    seconds = row["step_s"] - floor_s
    text = f"{seconds * 1e3:,.0f}" if seconds > 0.1 else f"{seconds * 1e3:.1f}"
    dense = [found[cell, name]["step_s"] - floor_s for name in DENSE if (cell, name) in found]
    if not dense or method in DENSE or seconds <= 0:
        return text
    return f"{text} ({min(dense) / seconds:.1f}x)"


def _sent(cell: Any, method: str, found: dict[Any, Row]) -> str | None:
    row = found.get((cell, method))
    return None if row is None else f"{row['bytes_sent_per_worker'] / 1e6:.3g}"


def _checked(cell: Any, found: dict[Any, Row]) -> str:
    row = next(row for (where, _), row in found.items() if where == cell)
    return f"{row['line_gbit_per_s']:.3g} Gbit/s, round trip {row['round_trip_ms']:.2f} ms"


def _cell(row: Row) -> tuple[str, float, float]:
    return row["link"], row["rtt_ms"], row["loss"]


def _heading(cell: tuple[str, float, float]) -> str:
    link, rtt_ms, loss = cell
    return link + (f", +{rtt_ms:g} ms" if rtt_ms else "") + (f", {loss:.1%} loss" if loss else "")


def _training_table(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = ["\n## A real training, end to end\n"]
    lines += ["| link | workers | method | ms a step | whole run, s | held-out loss | accuracy | MB sent a step |"]
    lines += ["|---" * 8 + "|"]
    for row in sorted(rows, key=lambda r: (bits_per_s(r["link"]), r["nodes"], list(TITLES).index(r["method"]))):
        lines.append(
            f"| {_heading(_cell(row))} | {row['nodes']} | {TITLES[row['method']]} | {row['step_s'] * 1e3:.1f} "
            f"| {row['training_s']:.1f} | {row['held_out_loss']:.3f} | {row['held_out_accuracy']:.1%} "
            f"| {row['bytes_sent_per_worker'] / 1e6:.3g} |"
        )
    return lines


# --- Break-even ----------------------------------------------------------------------------------------------


def fit(rows: list[Row]) -> tuple[float, float] | None:
    """Fit `seconds = fixed + volume / line rate (Gbit/s)` to one method's steps, least squares of relative errors.

    Both numbers are held at zero or above. None where fewer than two line rates were measured.
    """
    if len({row["link"] for row in rows}) < 2:
        return None
    seconds = np.array([row["step_s"] for row in rows])
    design = np.array([[1.0, 1.0 / row["line_gbit_per_s"]] for row in rows]) / seconds[:, None]
    fixed, volume = np.linalg.lstsq(design, np.ones(len(rows)), rcond=None)[0]
    if fixed < 0 or volume < 0:
        column = 0 if volume < 0 else 1
        only = design[:, column]
        best = float(only.sum() / (only**2).sum())
        fixed, volume = (best, 0.0) if column == 0 else (0.0, best)
    return float(fixed), float(volume)


def break_even_gbit_per_s(method: tuple[float, float], baseline: tuple[float, float]) -> float:
    """Line rate below which `method` is faster: infinite if always, 0 if never."""
    fixed, volume = method[0] - baseline[0], baseline[1] - method[1]
    if fixed <= 0:
        return math.inf if volume >= 0 else 0.0
    return max(0.0, volume / fixed)


def fits(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """Fits of all methods, over the cells without added delay or loss."""
    plain = [row for row in rows if not row["rtt_ms"] and not row["loss"]]
    fitted = {method: fit([row for row in plain if row["method"] == method]) for method in TITLES}
    return {method: numbers for method, numbers in fitted.items() if numbers is not None}


def _break_even_table(rows: list[Row]) -> list[str]:
    fitted = fits(rows)
    if BASELINE not in fitted or len(fitted) < 2:
        return []
    lines = ["Break-even: the line rate below which a method is faster than fp32 DDP, from `fixed + volume / rate` "]
    lines[0] += "fitted to the cells without added delay:\n"
    lines += ["| method | fixed, ms | ms at 1 Gbit/s from volume | break-even, Gbit/s |", "|---|---|---|---|"]
    for method, (fixed, volume) in fitted.items():
        rate = break_even_gbit_per_s((fixed, volume), fitted[BASELINE])
        text = "-" if method == BASELINE else "always faster" if rate == math.inf else f"{rate:.3g}"
        lines.append(f"| {TITLES[method]} | {fixed * 1e3:.1f} | {volume * 1e3:.1f} | {text} |")
    return lines


def plot(rows: list[Row], path: Path) -> None:
    """Step time against line rate, measured points and fitted curves, break-even against fp32 DDP marked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = sorted({(row["model"], row["nodes"]) for row in rows})
    groups = [g for g in groups if len(fits([r for r in rows if (r["model"], r["nodes"]) == g])) > 1]
    if not groups:
        return
    figure, axes = plt.subplots(1, len(groups), figsize=(6.5 * len(groups), 5), squeeze=False)
    rates = np.logspace(-2, 2, 200)
    for axis, group in zip(axes[0], groups, strict=True):
        own = [r for r in rows if (r["model"], r["nodes"]) == group and not r["rtt_ms"] and not r["loss"]]
        fitted = fits(own)
        for number, method in enumerate(m for m in PLOTTED if m in fitted):
            fixed, volume = fitted[method]
            axis.plot(rates, (fixed + volume / rates) * 1e3, color=f"C{number}", label=TITLES[method])
            points = [(row["line_gbit_per_s"], row["step_s"] * 1e3) for row in own if row["method"] == method]
            axis.plot(*zip(*points, strict=True), "o", color=f"C{number}")
            rate = break_even_gbit_per_s(fitted[method], fitted.get(BASELINE, (0.0, 0.0)))
            if method != BASELINE and rates[0] < rate < rates[-1]:
                axis.plot(rate, (fixed + volume / rate) * 1e3, "x", color=f"C{number}", markersize=10)
        axis.set(xscale="log", yscale="log", xlabel="line rate, Gbit/s", ylabel="ms a step")
        axis.set_title(f"{group[0]}, {group[1]} workers; x: break-even with fp32 DDP")
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
