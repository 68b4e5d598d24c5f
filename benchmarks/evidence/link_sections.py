"""The page's sections on bytes and time: the wire, measured steps, scale, and total cost of ownership."""

from collections.abc import Sequence
from typing import Any

from benchmarks.evidence.page import Section, figure, paragraph, table
from benchmarks.evidence.svg import Axis, Series, line_plot

__all__ = ["bandwidth_section", "ownership_section", "scale_section", "wire_section"]

LINKS = ("100mbit", "1gbit", "unshaped")


def wire_section(results: dict[str, Any]) -> Section:
    """Size of one worker's message for whole models, by codec."""
    rows = [
        [
            row["model"],
            row["codec"],
            row["dense_codec"],
            f"{row['padded_bytes'] / 1e3:,.1f}",
            f"{row['ratio']:,.0f}x",
        ]
        for row in results["models"]["rows"]
    ]
    body = [
        paragraph(
            "Bytes that one worker uploads in a step at 0.1 %, biases and norms included, coded from random gradients "
            "of the models' shapes. The paper's definition of the ratio: it leaves out the warm-up, and that an "
            "all-gather grows with the number of workers."
        ),
        table(["model", "values", "biases and norms", "kB a step", "less than dense fp32"], rows),
    ]
    return Section("wire", "Bytes on the wire", "\n".join(body))


def bandwidth_section(rows: Sequence[dict[str, Any]]) -> Section:
    """Measured seconds of a step on shaped links, ResNet-50's gradients and 4 workers."""
    cells = [
        row for row in rows if (row["model"], row["nodes"], row["rtt_ms"], row["loss"]) == ("resnet50", 4, 0.0, 0.0)
    ]
    by_method: dict[str, dict[str, dict[str, Any]]] = {}
    for row in cells:
        by_method.setdefault(row["method"], {})[row["link"]] = row
    lines = [
        [method, *((_milliseconds(found.get(link)), "n") for link in LINKS)]
        for method, found in sorted(by_method.items(), key=lambda item: _worst(item[1]))
    ]
    body = [
        paragraph(
            "ResNet-50's gradients, 4 workers in network namespaces on two cores, links shaped in both directions; "
            "milliseconds of a step with the optimizer and without backward, median (lowest to highest). Unshaped "
            "is where compression has the least to win, and `none` is the step without any exchange."
        ),
        table(["method", *(f"{link}" for link in LINKS)], lines),
    ]
    return Section("bandwidth", "Time of a step on real links", "\n".join(body))


def _milliseconds(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    low, middle, high = (row[key] * 1e3 for key in ("step_s_low", "step_s", "step_s_high"))
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


def _worst(found: dict[str, dict[str, Any]]) -> float:
    """Seconds on the slowest link that was measured; those without one come last."""
    return next((float(found[link]["step_s"]) for link in ("100mbit", "1gbit") if link in found), float("inf"))


def scale_section(record: dict[str, Any]) -> Section:
    """Seconds of an exchange for 2 to 4,096 workers, by the cost model, and how well the model holds."""
    series = [
        Series(name, [(n, cost["seconds"] * 1e3) for n, cost in zip(record["world_sizes"], costs, strict=True)])
        for name, costs in record["curves"].items()
    ]
    errors = [abs(point["error"]) for point in record["validation"]]
    within = sum(error <= 0.15 for error in errors)
    body = [
        figure(
            line_plot(
                f"Exchanges at scale: {record['title']}",
                Axis("workers", is_log=True),
                Axis("ms an exchange", is_log=True),
                series,
            ),
            f"Modelled, not measured: {record['title']}.",
        ),
        paragraph(
            f"The model is held against measured steps of up to 8 workers: {within} of {len(errors)} cells lie within "
            f"15 %, the worst is off by {max(errors, default=0.0):.0%}. Beyond 8 workers nothing was measured."
        ),
    ]
    return Section("scale", "More workers, by the cost model", "\n".join(body))


def ownership_section(record: dict[str, Any]) -> Section:
    """Hours and energy to a target, and the line rates at which DGC stops to pay."""
    factors = [
        [
            name,
            f"{found['median']:.2f}",
            f"{found['low']:.2f} to {found['high']:.2f}" if found["by_task"] else "assumed",
            str(len(found["by_task"])),
        ]
        for name, found in record["steps_factor"].items()
    ]
    body = [
        paragraph(
            f"{record['model']}, {record['compute_ms']:g} ms of computing a step and worker: measured steps to a "
            "target times modelled seconds of a step, `benchmarks/ownership.py`. The peers are favoured wherever a "
            "number was missing: their exchange hides behind the backward pass and their arithmetic is free. Equal "
            "steps is the paper's claim; the measured factors come from short runs, DGC's worst case."
        ),
        table(["exchange", "steps to target, dense = 1", "over the tasks", "tasks"], factors),
    ]
    cells = record["cells"]["equal steps"]
    body += [_hours(cells, workers, list(record["steps_factor"])) for workers in (8, 64, 1024)]
    break_even = [
        Series(
            f"than {peer}, {case}",
            [(row["workers"], row[peer]) for row in rows if row[peer]],
            is_dashed=case != "equal steps",
        )
        for case, rows in record["break_even_gbit_per_s"].items()
        for peer in rows[0]
        if peer != "workers"
    ]
    if any(series.points for series in break_even):
        axes = (Axis("workers", is_log=True), Axis("line rate, Gbit/s", is_log=True))
        plot = line_plot("Line rate below which DGC is faster", *axes, break_even)
        body.append(figure(plot, "Break-even: below the line a run with DGC is over sooner."))
    body.append(_energy(cells, list(record["steps_factor"])))
    return Section("ownership", "Total cost of ownership", "\n".join(body))


def _hours(cells: Sequence[dict[str, Any]], workers: int, exchanges: Sequence[str]) -> str:
    title = f"{workers:,} workers: hours to target, equal steps"
    series = [
        Series(name, [(c["gbit_per_s"], c["hours"]) for c in cells if (c["workers"], c["exchange"]) == (workers, name)])
        for name in exchanges
    ]
    axes = (Axis("line rate, Gbit/s", is_log=True), Axis("hours to target", is_log=True))
    return figure(line_plot(title, *axes, series), f"{title}.")


def _energy(cells: Sequence[dict[str, Any]], exchanges: Sequence[str]) -> str:
    rates = (0.1, 1.0, 10.0, 100.0)
    by_key = {(cell["workers"], cell["exchange"], cell["gbit_per_s"]): cell["kilowatt_hours"] for cell in cells}
    rows = [
        [f"{workers:,}", name, *((f"{by_key[workers, name, rate]:,.0f}", "n") for rate in rates)]
        for workers in (8, 64, 1024)
        for name in exchanges
    ]
    return table(["workers", "kilowatt-hours, equal steps", *(f"{rate:g} Gbit/s" for rate in rates)], rows)
