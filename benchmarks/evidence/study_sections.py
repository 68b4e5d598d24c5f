"""The page's sections on quantized training and on pruning: each paper's comparison as a plot and a table."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.evidence.page import Section, figure, paragraph, table
from benchmarks.evidence.study_claims import AFTER_TRAINING_LOSS, FROM_SCRATCH, FROM_SCRATCH_LOSS, SPEARMAN_LOSS
from benchmarks.evidence.svg import Axis, Series, dot_plot, line_plot
from benchmarks.evidence.tables import signed, standard_error
from benchmarks.sparse_report import LOSS_LIMIT, METHODS, curves, reduction_table

__all__ = ["pruning_section", "quantization_section"]

Rows = Sequence[dict[str, Any]]

UNITS = {"top-1 (%)": "points", "Spearman x 100": "hundredths of Spearman's correlation"}


def quantization_section(rows: Rows) -> Section:
    """Loss of every method against fp32 with the same seed, experiment by experiment."""
    body = [
        paragraph(
            "Each experiment trains, or takes, one network and changes nothing but how weights and activations are "
            "quantized: `max scaling` scales by the largest absolute value, `octav` clips where the mean squared "
            "error is least (Sakr et al., arXiv 2206.06501), with the gradient through the clip that the name says. "
            "Names such as 4/8/6/10 are VS-Quant's (arXiv 2102.04503): bits of weights, activations and their scales. "
            "Below zero a method is better than fp32; small dots are single seeds; dashed: the bar."
        )
    ]
    for title in dict.fromkeys(row["experiment"] for row in rows):
        body.append(_experiment(title, [row for row in rows if row["experiment"] == title]))
    return Section("quantization", "Quantized training", "\n".join(body))


def _experiment(title: str, rows: Rows) -> str:
    metric = rows[0]["metric"]
    unit = UNITS.get(metric, metric)
    sign = -1 if metric == "perplexity" else 1
    base = {row["seed"]: row["score"] for row in rows if row["method"] == "fp32"}
    lines, dots = [], []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {row["seed"]: row["score"] for row in rows if row["method"] == method}
        losses = [sign * (base[seed] - score) for seed, score in own.items() if seed in base]
        error = standard_error(losses)
        loss = statistics.mean(losses) if losses else math.nan
        shown = "" if method == "fp32" else signed(loss, error)
        lines.append([method, str(len(own)), (f"{statistics.mean(own.values()):.2f}", "n"), (shown, "n")])
        if method != "fp32":
            dots.append((method, loss, error, losses))
    parts = [f"<h3>{title}</h3>", table(["method", "seeds", metric, "loss against fp32"], lines)]
    if any(math.isfinite(dot[1]) for dot in dots):
        plot = dot_plot(title, Axis(f"loss against fp32, {unit} (left is better)"), dots, limit=_limit(title, metric))
        parts.append(figure(plot, f"{title}: loss against fp32."))
    return "\n".join(parts)


def _limit(title: str, metric: str) -> float | None:
    """The bar of a loss against fp32; perplexities have none."""
    if metric == "perplexity":
        return None
    if metric == "Spearman x 100":
        return SPEARMAN_LOSS
    return FROM_SCRATCH_LOSS if FROM_SCRATCH in title else AFTER_TRAINING_LOSS


def pruning_section(rows: Rows) -> Section:
    """Accuracy lost over multiplies saved: pruning in space, in Winograd's domain, and with the ReLU moved there."""
    points = curves([row for row in rows if row["what"] == "prune"])
    body = [
        paragraph(
            "Three ways to prune one network (Liu et al., arXiv 1802.06367): the weights of the filters, their "
            "Winograd transforms, and these with the ReLU moved into the same domain, so that activations are sparse "
            "there as well. Saved multiplies are counted while the test images run; the loss is against the dense "
            f"network trained for as many steps, mean over the seeds. The bar: {LOSS_LIMIT} points at 10x."
        ),
        table(
            ["task", "method", "seeds", f"multiplies saved at {LOSS_LIMIT} points", "against the longest dense run"],
            [
                [row["task"], row["method"], str(row["seeds"]), *((row[key], "n") for key in list(row)[3:])]
                for row in reduction_table(points)
            ],
        ),
    ]
    for task in dict.fromkeys(point["task"] for point in points):
        series = [
            Series(
                method,
                [(p["reduction"], p["loss, same steps"]) for p in points if (p["task"], p["method"]) == (task, method)],
                is_dashed=method == "spatial",
            )
            for method in METHODS
        ]
        axes = (Axis("multiplies saved, times", is_log=True), Axis("loss against the dense network, points"))
        body.append(figure(line_plot(f"{task}: three ways to prune", *axes, series), f"{task}: loss by reduction."))
    return Section("pruning", "Pruning with Winograd", "\n".join(body))
