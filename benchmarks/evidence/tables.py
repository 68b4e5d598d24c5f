"""From the rows of results/accuracy.json to figures by task and method, and to Markdown."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.evidence.recipes import LENGTHS, METHODS, TASKS

__all__ = [
    "Entry",
    "accuracy_markdown",
    "entries",
    "mean_curve",
    "number",
    "paired_losses",
    "signed",
    "spread",
    "standard_error",
    "tasks_present",
]

Row = dict[str, Any]

MAX_LOSS_POINTS = 0.3
"""the bar: DGC is as good as dense within so many points of accuracy ..."""
MAX_LOSS_PERCENT = 0.5
"""... or so many percent of perplexity"""


@dataclass(frozen=True)
class Entry:
    """One method on one task, over its seeds."""

    task: str
    method: str
    rows: tuple[Row, ...]
    losses: tuple[float, ...]
    """by how much the method is worse than dense with the same seed: points of accuracy, or percent of perplexity"""

    @property
    def values(self) -> list[float]:
        """The metric of each seed; runs that diverged have none."""
        return [row["value"] for row in self.rows if row["value"] is not None]

    @property
    def num_diverged(self) -> int:
        return len(self.rows) - len(self.values)

    @property
    def mean(self) -> float:
        return statistics.mean(self.values) if self.values else math.nan

    @property
    def loss(self) -> float:
        """Mean loss against dense, over the seeds that both have."""
        return statistics.mean(self.losses) if self.losses else math.nan

    @property
    def loss_error(self) -> float:
        """Standard error of `loss`, from the spread over the seeds; NaN for a single seed."""
        return standard_error(self.losses)

    @property
    def max_loss(self) -> float:
        return MAX_LOSS_PERCENT if TASKS[self.task].is_perplexity else MAX_LOSS_POINTS

    def ratio(self, kind: str) -> float:
        """Dense fp32 bytes over uploaded bytes: "steady_matrices", "steady" or "whole_run"."""
        return float(statistics.mean(row["ratio"][kind] or math.nan for row in self.rows))


def tasks_present(rows: Sequence[Row]) -> list[str]:
    """Tasks that have rows, in the order of the recipes, each followed by its longer forms."""
    present = {_parts(row)[0] for row in rows}
    names = dict.fromkeys(name for task in TASKS for name in LENGTHS.get(task, (task,)))
    return [task for task in names if task in present]


def entries(rows: Sequence[Row], task: str) -> dict[str, Entry]:
    """Methods of a task that have rows, in the order of the recipes; rows with options of their own are left out."""
    grouped: dict[str, dict[str, Row]] = {method: {} for method in METHODS}
    for row in rows:
        row_task, method, seed, *extra = _parts(row)
        if row_task == task and method in grouped and not extra:
            grouped[method][seed] = row
    dense = {seed: row["value"] for seed, row in grouped["dense"].items()}
    return {
        method: Entry(task, method, tuple(by_seed.values()), _losses(task, by_seed, dense))
        for method, by_seed in grouped.items()
        if by_seed
    }


def paired_losses(entry: Entry, reference: Entry) -> tuple[float, ...]:
    """By how much a method is worse than another one of its task, for each seed that both have."""
    values = {_parts(row)[2]: row["value"] for row in reference.rows}
    return _losses(entry.task, {_parts(row)[2]: row for row in entry.rows}, values)


def _parts(row: Row) -> list[str]:
    return str(row["name"]).split("/", 3)


def _losses(task: str, by_seed: dict[str, Row], dense: dict[str, float | None]) -> tuple[float, ...]:
    losses = []
    for seed, row in by_seed.items():
        value, reference = row["value"], dense.get(seed)
        if value is None or reference is None:
            continue
        losses.append(100 * (value / reference - 1) if TASKS[task].is_perplexity else reference - value)
    return tuple(losses)


def mean_curve(entry: Entry) -> list[tuple[float, float]]:
    """(step, metric) of each evaluation, the mean over the seeds that did not diverge; empty without history."""
    kept = [row["history"] for row in entry.rows if row["value"] is not None and "history" in row]
    if not kept:
        return []
    count = min(map(len, kept))
    step = entry.rows[0]["steps"] / count
    return [(step * (n + 1), statistics.mean(history[n] for history in kept)) for n in range(count)]


def accuracy_markdown(rows: Sequence[Row]) -> str:
    """All tasks: mean and spread over the seeds, loss against dense, upload ratios."""
    lines = ["# Accuracy and upload: DGC beside dense DDP and its peers", ""]
    for task in tasks_present(rows):
        lines += _task_lines(rows, task)
    lines += [
        "Loss is against dense DDP with the same seed: points of accuracy or percent of perplexity, mean and standard "
        "error; below zero the method is better. Ratios are dense fp32 bytes over the bytes that one rank uploads, "
        "counted while training; the warm-up is in the whole run.",
        "",
    ]
    machines = {f"{row['machine']}, torch {row['versions']['torch']}, commit {row['commit']}" for row in rows}
    lines += [f"- {machine}" for machine in sorted(machines)]
    return "\n".join(lines) + "\n"


def _task_lines(rows: Sequence[Row], task: str) -> list[str]:
    found = entries(rows, task)
    first = next(iter(found.values())).rows[0]
    unit = "%" if TASKS[task].is_perplexity else "points"
    return [
        f"## {task}: {TASKS[task].title}; {TASKS[task].ranks} ranks, {first['steps']} steps",
        "",
        f"`{' '.join(TASKS[task].options)}`",
        "",
        f"| method | seeds | {first['metric']}, mean (lowest to highest) | loss against dense ({unit}) "
        "| upload ratio, tensors of 2 or more dimensions, steady | everything, steady | everything, whole run |",
        "|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(_cells(entry))} |" for entry in found.values()),
        "",
    ]


def _cells(entry: Entry) -> list[str]:
    return [
        METHODS[entry.method].title,
        str(len(entry.rows)),
        spread(entry),
        "" if entry.method == "dense" else signed(entry.loss, entry.loss_error),
        *(number(entry.ratio(kind)) for kind in ("steady_matrices", "steady", "whole_run")),
    ]


def spread(entry: Entry) -> str:
    """Mean of the metric, with the lowest and the highest seed where there are several."""
    if not entry.values:
        return "diverged"
    text = f"{entry.mean:.2f}"
    if len(entry.values) > 1:
        text += f" ({min(entry.values):.2f} to {max(entry.values):.2f})"
    return f"{text}, {entry.num_diverged} diverged" if entry.num_diverged else text


def standard_error(values: Sequence[float]) -> float:
    """Of the mean, from the spread of the values; NaN for a single one."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def signed(value: float, error: float = math.nan) -> str:
    """A difference with its standard error, where there is one."""
    if math.isnan(value):
        return ""
    return f"{value:+.2f}" if math.isnan(error) else f"{value:+.2f} ± {error:.2f}"


def number(ratio: float) -> str:
    """A ratio for people."""
    return "" if math.isnan(ratio) else f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.1f}x"
