"""The page's sections on accuracy: every task's table and plots, and what each part of DGC is worth."""

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.evidence.page import Section, details, figure, paragraph, table
from benchmarks.evidence.recipes import HEADLINES, LENGTHS, METHODS, TASKS
from benchmarks.evidence.svg import Axis, Series, dot_plot, line_plot
from benchmarks.evidence.tables import Entry, entries, mean_curve, number, signed, spread, tasks_present

__all__ = ["ablation_section", "accuracy_section", "bytes_section", "steps_section", "summary_section"]

CURVES = (
    *("dense", "dgc", "dgc-int4", "drop", "powersgd", "dgc-local-adam", "dgc-paper"),
    *("dgc-equal-bytes", "dgc-local-adam-equal-bytes"),
)
PEERS = ("fp16", "powersgd-1", "powersgd", "demo-like")
SGD_BYTES = (*PEERS[:3], "dgc", "dgc-int4", "dgc-equal-bytes", "dgc-1-percent", "drop")
ADAM_BYTES = (*PEERS, "dgc", "dgc-local-adam", "dgc-local-adam-equal-bytes", "dgc-local-adam-1-percent")
"""No more than the eight colours of a plot."""
STEPS_METHODS = ("dgc", "dgc-int4", "dgc-equal-bytes", "dgc-local-adam", "dgc-local-adam-equal-bytes", "drop")
PARTS = (
    "dgc",
    "dgc-no-correction",
    "dgc-no-clipping",
    "dgc-no-masking",
    "dgc-no-warmup",
    "dgc-current-rate",
    "dgc-1-percent",
    "drop",
)


def summary_section(rows: Sequence[dict[str, Any]]) -> Section:
    """DGC at 0.1 % in the longest run of each task, and beside it the loss in the shortest."""
    lines: list[list[str | tuple[str, str]]] = []
    for task, method, name in HEADLINES:
        found = entries(rows, task)
        if not {"dense", method} <= found.keys():
            continue
        dense, ours = found["dense"], found[method]
        lengths = next((lengths for lengths in LENGTHS.values() if task in lengths), (task,))
        shortest = entries(rows, lengths[0]).get(method)
        before = "" if shortest is None or lengths[0] == task else _with_steps(shortest)
        cells = (f"{ours.rows[0]['steps']:,}", spread(dense), spread(ours), _loss(ours), before)
        first = f"{name}, {TASKS[task].ranks} ranks: {ours.rows[0]['metric']}"
        lines.append([first, *((cell, "n") for cell in cells), number(ours.ratio("steady_matrices"))])
    head = ["task", "steps", "dense DDP", "DGC at 0.1 %", "loss (seeds)", "loss in the shortest run"]
    body = [
        paragraph(
            "DGC at a density of 0.1 %, in the longest run of each task: an entry waits for about 1,000 "
            "steps, so that short runs lose more, and here the loss of the shortest one stands beside it. Losses are "
            "against dense DDP with the same seed, in points or percent of perplexity; below zero DGC is better. "
            "Upload: of tensors of two or more dimensions, in a steady step."
        ),
        table([*head, "less upload"], lines),
    ]
    return Section("summary", "In short", "\n".join(body))


def _with_steps(entry: Entry) -> str:
    return f"{_loss(entry)}, {entry.rows[0]['steps']:,} steps"


def accuracy_section(rows: Sequence[dict[str, Any]]) -> Section:
    """All tasks, one after the other."""
    body = [
        paragraph(
            "All methods of a task have the same model, data, order of samples, number of steps and learning rate; the "
            "rate was tuned for dense DDP alone. Ranks are real processes over gloo. A loss is against dense DDP with "
            "the same seed, in points of accuracy or percent of perplexity: below zero the method is better. Large "
            "dots: mean and standard error; small ones: single seeds; dashed: the bar (0.3 points, 0.5 %)."
        )
    ]
    for task in tasks_present(rows):
        body.append(_task(rows, task))
    return Section("accuracy", "Accuracy at equal budgets", "\n".join(body))


def _task(rows: Sequence[dict[str, Any]], task: str) -> str:
    found = entries(rows, task)
    first = next(iter(found.values())).rows[0]
    recipe = TASKS[task]
    body = [
        f"<h3>{recipe.title}</h3>",
        paragraph(f"{recipe.ranks} ranks, {first['steps']:,} steps. `{' '.join(recipe.options)}`", "note"),
        table(
            ["method", "seeds", first["metric"], "loss", "less upload per step", "in the whole run"],
            [_cells(entry) for entry in found.values()],
        ),
    ]
    if recipe.note:
        body.append(paragraph(recipe.note))
    compared = [entry for entry in found.values() if entry.method != "dense" and not math.isnan(entry.loss)]
    if compared:
        unit = "% of perplexity" if recipe.is_perplexity else "points"
        plot = dot_plot(
            f"{recipe.title}: loss against dense",
            Axis(f"loss against dense DDP, {unit} (left is better)"),
            [(METHODS[e.method].title, e.loss, e.loss_error, e.losses) for e in compared],
            limit=compared[0].max_loss,
        )
        body.append(figure(plot, f"{recipe.title}: loss against dense DDP."))
    curves = [
        Series(METHODS[method].title, mean_curve(found[method]), is_dashed=method == "dense")
        for method in CURVES
        if method in found and mean_curve(found[method])
    ]
    if curves and max(len(curve.points) for curve in curves) > 1:
        plot = line_plot(f"{recipe.title}: while training", Axis("steps"), Axis(first["metric"]), curves)
        body.append(figure(plot, f"{recipe.title}: {first['metric']} while training, mean over the seeds."))
    commands = "".join(f"<li><code>{entry.rows[0]['command']}</code></li>" for entry in found.values())
    return "\n".join([*body, details("commands", f"<ul>{commands}</ul>")])


def _cells(entry: Entry) -> list[str | tuple[str, str]]:
    loss = "" if entry.method == "dense" else signed(entry.loss, entry.loss_error)
    return [
        METHODS[entry.method].title,
        str(len(entry.rows)),
        (spread(entry), "n"),
        (loss, "n"),
        number(entry.ratio("steady")),
        number(entry.ratio("whole_run")),
    ]


def bytes_section(rows: Sequence[dict[str, Any]]) -> Section:
    """Loss over upload, for every task on which a peer of DGC was trained as well."""
    body = [
        paragraph(
            "What each method sends and what it loses. Upload: of everything, norms and biases included, in a steady "
            "step, against dense fp32; loss: against dense DDP with the same seed, mean over the seeds. Right and low "
            "is good. A method has its use where no point lies to the right of it and below."
        )
    ]
    for task in tasks_present(rows):
        found = entries(rows, task)
        kept = [found[m] for m in (ADAM_BYTES if "demo-like" in found else SGD_BYTES) if m in found]
        kept = [entry for entry in kept if not math.isnan(entry.loss)]
        if not any(entry.method in PEERS for entry in kept) or len(kept) < 4:
            continue
        unit = "% of perplexity" if TASKS[task].is_perplexity else "points"
        steps = f"{TASKS[task].title}, {kept[0].rows[0]['steps']:,} steps"
        series = [Series(METHODS[entry.method].title, [(entry.ratio("steady"), entry.loss)]) for entry in kept]
        axes = (Axis("times less upload than dense fp32", is_log=True), Axis(f"loss against dense DDP, {unit}"))
        body.append(figure(line_plot(f"{steps}: loss over upload", *axes, series), f"{steps}: loss over upload."))
    return Section("bytes", "Accuracy for the bytes", "\n".join(body))


def ablation_section(rows: Sequence[dict[str, Any]]) -> Section:
    """One row for each part of DGC, one column for each task: the loss when that part is left out."""
    by_task = {task: entries(rows, task) for task in tasks_present(rows)}
    shown = [task for task, found in by_task.items() if len(found.keys() & {*PARTS}) > 2]
    lines = [
        [METHODS[method].title, *((_part(by_task[task], task, method), "n") for task in shown)] for method in PARTS
    ]
    body = [
        paragraph(
            "Loss against dense DDP when one part is left out or changed, with the number of seeds. A dash marks what "
            "is not planned: momentum in the word model and clipping of the images, which the recipes do not have, and "
            "what is left out of longer runs. Gradient dropping leaves "
            "all four out: selection and residual as in DGC, then clipping and momentum on the exchanged gradient, "
            "without warm-up. The flushed value is the same run after one dense exchange of what was still held back."
        ),
        table(["", *(TASKS[task].title for task in shown)], lines),
        table(
            ["flushed at the end", *(TASKS[task].title for task in shown)],
            [
                [METHODS[method].title, *((_flushed(by_task[task], method), "n") for task in shown)]
                for method in ("dgc", "dgc-int4")
            ],
        ),
    ]
    return Section("ablation", "What each part of DGC is worth", "\n".join(body))


def _part(found: dict[str, Entry], task: str, method: str) -> str:
    if method not in TASKS[task].methods:
        return "\u2013"
    return _loss(found[method]) if method in found else "not run yet"


def steps_section(rows: Sequence[dict[str, Any]]) -> Section:
    """The loss of DGC and of gradient dropping as the same tasks are trained for longer."""
    by_task = {task: entries(rows, task) for lengths in LENGTHS.values() for task in lengths}
    body = [
        paragraph(
            "At a density of 0.1 % an entry waits for up to 1,000 steps on its way. A run of 1,500 steps is hardly "
            "longer than that; the paper's runs have tens of thousands. The same tasks with more epochs, and a warm-up "
            "that grows with them, show what is left of the loss."
        ),
        table(
            ["task", "steps", "dense DDP", *(METHODS[method].title for method in STEPS_METHODS)],
            [
                [TASKS[lengths[0]].title, f"{found['dense'].rows[0]['steps']:,}", f"{found['dense'].mean:.2f}"]
                + [(_loss(found.get(method)), "n") for method in STEPS_METHODS]
                for lengths in LENGTHS.values()
                for found in (by_task[task] for task in lengths)
                if "dense" in found
            ],
        ),
    ]
    for is_perplexity, unit in ((False, "points"), (True, "% of perplexity")):
        series = [
            Series(f"{METHODS[method].title}: {TASKS[lengths[0]].title}", points, is_dashed=method == "drop")
            for lengths in LENGTHS.values()
            for method in ("dgc", "drop")
            if TASKS[lengths[0]].is_perplexity == is_perplexity
            and len(points := _losses_by_steps([by_task[task] for task in lengths], method)) > 1
        ]
        if series:
            axes = (Axis("steps"), Axis(f"loss against dense DDP, {unit}"))
            body.append(figure(line_plot(f"Loss by length of the run, {unit}", *axes, series), "Loss by steps."))
    return Section("steps", "What more steps do", "\n".join(body))


def _losses_by_steps(lengths: Sequence[dict[str, Entry]], method: str) -> list[tuple[float, float]]:
    """(steps, loss) of a method for each length of a task that has both it and the dense baseline."""
    return [
        (found["dense"].rows[0]["steps"], found[method].loss)
        for found in lengths
        if {"dense", method} <= found.keys() and not math.isnan(found[method].loss)
    ]


def _loss(entry: Entry | None) -> str:
    if entry is None:
        return ""
    if not entry.values:
        return "diverged"
    return f"{signed(entry.loss, entry.loss_error)} ({len(entry.rows)})"


def _flushed(found: dict[str, Entry], method: str) -> str:
    """Loss of the flushed weights against dense, over the seeds that have both."""
    dense = {row["name"].split("/")[2]: row["value"] for row in found["dense"].rows}
    losses = []
    for row in found[method].rows if method in found else ():
        value, reference = row.get("flushed_value"), dense.get(row["name"].split("/")[2])
        if value is not None and reference is not None:
            is_perplexity = TASKS[found["dense"].task].is_perplexity
            losses.append(100 * (value / reference - 1) if is_perplexity else reference - value)
    return f"{sum(losses) / len(losses):+.2f} ({len(losses)})" if losses else ""
