"""Reports of profiled steps: text, CSV, Chrome trace, HTML, TensorBoard scalars and a picture."""

import csv
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgcomp.hwmodel.cost import Cost
from dgcomp.hwmodel.profile.step import OperationCost, StepReport

__all__ = ["plot", "scalars", "summary", "table", "write_csv", "write_html", "write_trace"]

PHASES = ("forward", "recompute", "input_grad", "weight_grad")


def si(value: float, unit: str) -> str:
    """A number with three digits and an SI prefix: 0.00123 -> "1.23 ms"."""
    if value == 0:
        return f"0 {unit}"
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n")):
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value / 1e-12:.3g} p{unit}"


def table(report: StepReport, *, layers: bool) -> str:
    """Layers and directions, totals, exchanges, and what is not priced."""
    names = report.accelerators
    header = ["layer", "direction", "MACs", "W dens.", "A density", "W/A/ws/as", *names]
    rows = [_layer_row(group, names) for group in _by_layer(report).values()] if layers else []
    rows.append(["total", "", si(report.macs, ""), "", "", "", *(_time_energy(report.total(name)) for name in names)])
    lines = [f"step {report.step}", *_aligned([header, *rows])]
    for network, costs in report.networks.items():
        exchange = next(iter(costs.values())).breakdown["exchange_seconds"]
        parts = ", ".join(f"{name} +{si(cost.seconds, 's')}" for name, cost in costs.items())
        lines.append(f"{network}: exchange {si(exchange, 's')}; exposed after the backward pass: {parts}")
    return "\n".join(lines + not_priced_lines(report))


def not_priced_lines(report: StepReport) -> list[str]:
    """What no model covers, with its share: nothing is dropped in silence."""
    lines = []
    for name in report.accelerators:
        share, parts = report.not_priced(name)
        if share:
            listed = ", ".join(f"{what} {part:.1%}" for what, part in parts.items())
            lines.append(f"{name}: not priced: {share:.1%} of the multiply-accumulates ({listed})")
    if report.unknown:
        listed = ", ".join(f"{name} ({calls} calls)" for name, calls in report.unknown.items())
        lines.append(f"not priced by any: unknown operators {listed}")
    lines.append(
        f"not priced by any: {report.other_calls} calls that multiply no matrices (elementwise, normalization, "
        f"optimizer), {si(report.other_elements, '')}elements written"
    )
    return lines


def summary(report: StepReport) -> str:
    """One line: time and energy of the step on every accelerator, with the networks' share."""
    parts = [f"{name} {_time_energy(report.total(name))}{_star(report, name)}" for name in report.accelerators]
    for network, costs in report.networks.items():
        exposed = ", ".join(si(cost.seconds, "s") for cost in costs.values())
        parts.append(f"{network} + {exposed}")
    return f"step {report.step}: " + " | ".join(parts)


def scalars(report: StepReport) -> dict[str, float]:
    """Tags and values for TensorBoard."""
    values: dict[str, float] = {}
    for name in report.accelerators:
        cost = report.total(name)
        values[f"hwmodel/{name}/step_seconds"] = cost.seconds
        values[f"hwmodel/{name}/step_joules"] = cost.joules
        values[f"hwmodel/{name}/not_priced_share"] = report.not_priced(name)[0]
    for network, costs in report.networks.items():
        for name, cost in costs.items():
            values[f"hwmodel/{network}/{name}/exposed_seconds"] = cost.seconds
    return values


def write_csv(reports: Sequence[StepReport], path: Path) -> None:
    """One line for each operation of each sampled step; an empty cell is not priced."""
    names = reports[-1].accelerators
    columns = ["step", "layer", "kind", "phase", "macs", "weight_density", "activation_density"]
    columns += ["activation_density_error", "precision"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *(f"{name}_{unit}" for name in names for unit in ("cycles", "seconds", "joules"))])
        for report in reports:
            for row in report.operations:
                costs = [row.costs[name] for name in names]
                numbers = [[c.cycles, c.seconds, c.joules] if c is not None else ["", "", ""] for c in costs]
                fields = [report.step, *(getattr(row, column) for column in columns[1:])]
                writer.writerow([*fields, *(number for part in numbers for number in part)])


def write_trace(reports: Sequence[StepReport], path: Path) -> None:
    """Chrome trace (chrome://tracing, ui.perfetto.dev): one process an accelerator, one bar an operation."""
    events: list[dict[str, Any]] = []
    for process, name in enumerate(reports[-1].accelerators):
        events.append({"name": "process_name", "ph": "M", "pid": process, "args": {"name": name}})
        now_us = 0.0
        for report in reports:
            start_us = now_us
            for row in report.operations:
                cost = row.costs[name]
                if cost is None:
                    continue
                events.append(_trace_event(row, cost, process, now_us))
                now_us += cost.seconds * 1e6
            for network, costs in report.networks.items():
                exposed_us = costs[name].seconds * 1e6
                events.append(
                    {"name": network, "ph": "X", "pid": process, "tid": 2, "ts": now_us, "dur": exposed_us, "args": {}}
                )
            now_us += max((costs[name].seconds * 1e6 for costs in report.networks.values()), default=0.0)
            step = {"name": f"step {report.step}", "ph": "X", "pid": process, "tid": 0, "ts": start_us}
            events.append({**step, "dur": now_us - start_us, "args": {}})
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}))


def _trace_event(row: OperationCost, cost: Cost, process: int, start_us: float) -> dict[str, Any]:
    arguments = {
        "kind": row.kind,
        "macs": row.macs,
        "weight_density": row.weight_density,
        "activation_density": row.activation_density,
        "precision": str(row.precision),
        "joules": cost.joules,
        **cost.breakdown,
        "notes": "; ".join(cost.notes),
    }
    name = f"{row.layer} {row.phase}"
    event = {"name": name, "cat": row.phase, "ph": "X", "pid": process, "tid": 1, "ts": start_us}
    return {**event, "dur": cost.seconds * 1e6, "args": arguments}


def write_html(reports: Sequence[StepReport], path: Path) -> None:
    """A self-contained page: bars of time and energy, and the table of the last sampled step."""
    report = reports[-1]
    bars = "".join(_svg_bars(report, unit) for unit in ("seconds", "joules"))
    notes = sorted({note for row in report.operations for cost in row.costs.values() if cost for note in cost.notes})
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes[:200])
    text = html.escape(table(report, layers=True))
    path.write_text(
        "<!doctype html><meta charset=utf-8><title>Hardware cost of a training step</title>"
        "<style>body{font:14px sans-serif;margin:2em}pre{font-size:12px}text{font:12px sans-serif}</style>"
        f"<h1>Hardware cost of training step {report.step}</h1>{bars}<pre>{text}</pre><h2>Notes</h2><ul>{listed}</ul>"
    )


SYMBOLS = {"seconds": "s", "joules": "J"}
COLORS = {"forward": "#4477aa", "recompute": "#66ccee", "input_grad": "#ccbb44", "weight_grad": "#ee6677"}


def _svg_bars(report: StepReport, unit: str) -> str:
    """Stacked bars, one for each accelerator, as long as its share of the largest."""
    largest = max((getattr(report.total(name), unit) for name in report.accelerators), default=0.0) or 1.0
    parts = []
    for line, name in enumerate(report.accelerators):
        y, x = 24 * line, 180.0
        parts.append(f'<text x="0" y="{y + 14}">{html.escape(name)}</text>')
        for phase in PHASES:
            width = 500 * phase_cost(report, name, phase, unit) / largest
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="18" fill="{COLORS[phase]}"/>')
            x += width
        total = si(getattr(report.total(name), unit), SYMBOLS[unit])
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 14}">{total}</text>')
    legend = " ".join(f'<b style="color:{color}">{phase}</b>' for phase, color in COLORS.items())
    height = 24 * len(report.accelerators)
    return f"<h2>{unit} per step</h2><p>{legend}</p><svg width=800 height={height}>{''.join(parts)}</svg>"


def phase_cost(report: StepReport, accelerator: str, phase: str, unit: str) -> float:
    """Seconds or joules of one direction of the step."""
    costs = (row.costs[accelerator] for row in report.operations if row.phase == phase)
    return float(sum(getattr(cost, unit) for cost in costs if cost is not None))


def plot(reports: Sequence[StepReport], path: Path) -> None:
    """Picture of time and energy per step on every accelerator, by direction, over the sampled steps' last one."""
    try:
        import matplotlib.figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib: pip install 'dgcomp[plots]'") from error
    report = reports[-1]
    figure = matplotlib.figure.Figure(figsize=(10, 1.4 + 0.55 * len(report.accelerators)), layout="constrained")
    for axis, unit in zip(figure.subplots(1, 2, sharey=True), ("seconds", "joules"), strict=True):
        left = [0.0] * len(report.accelerators)
        for phase in PHASES:
            widths = [phase_cost(report, name, phase, unit) for name in report.accelerators]
            axis.barh(report.accelerators, widths, left=left, color=COLORS[phase], label=phase.replace("_", " "))
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for line, name in enumerate(report.accelerators):
            label = si(left[line], SYMBOLS[unit]) + _star(report, name)
            axis.annotate(f" {label}", (left[line], line), va="center", fontsize=9)
        axis.set_xlabel(f"{unit} per training step")
        axis.margins(x=0.4)
    figure.axes[0].invert_yaxis()
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(
        f"Step {report.step}, {si(report.macs, 'MAC')} dense   (* prices part of the step only)", fontsize=10
    )
    figure.savefig(path, dpi=120)


def _star(report: StepReport, accelerator: str) -> str:
    share, _ = report.not_priced(accelerator)
    return f" ({1 - share:.0%} priced)*" if share else ""


def _by_layer(report: StepReport) -> dict[tuple[str, str], list[OperationCost]]:
    groups: dict[tuple[str, str], list[OperationCost]] = {}
    for row in report.operations:
        groups.setdefault((row.layer, row.phase), []).append(row)
    return groups


def _layer_row(rows: list[OperationCost], names: Sequence[str]) -> list[str]:
    first, macs = rows[0], sum(row.macs for row in rows)
    error = f"+-{first.activation_density_error:.3f}" if first.activation_density_error else ""
    cells = []
    for name in names:
        priced = [cost for cost in (row.costs[name] for row in rows) if cost is not None]
        cells.append(_time_energy(sum(priced, Cost())) if priced else "-")
    densities = [f"{first.weight_density:.3f}", f"{first.activation_density:.3f}{error}"]
    return [first.layer, first.phase, si(macs, ""), *densities, str(first.precision), *cells]


def _time_energy(cost: Cost) -> str:
    return f"{si(cost.seconds, 's')} {si(cost.joules, 'J')}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
