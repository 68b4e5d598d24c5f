"""Pictures of delays: against the rate of false alarms, and as the share of objects still unseen."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgcomp.video.breakdown import survival_curve
from dgcomp.video.delay import DelayResult

if TYPE_CHECKING:
    from dgcomp.video.report import DetectorReport


def plot_delay(path: str | Path, reports: Mapping[str, "DetectorReport"]) -> Path:
    """Mean delay against false alarms a box, with the operating points, their intervals, and where detectors end.

    Raises
    ------
    ModuleNotFoundError
        Without matplotlib.
    """
    figure, axis = _axis()
    for color, (name, report) in zip(_colors(), reports.items(), strict=False):
        curve, exact, interval = report.curve, report.by_mode["exact"], report.confidence
        going = ~curve.saturated
        axis.plot(curve.false_positive_ratios[going], curve.delays[going], color=color, label=_label(name, report))
        axis.plot(curve.false_positive_ratios[~going], curve.delays[~going], ":", color=color)
        spread = np.abs(np.stack([interval.delays_low, interval.delays_high]) - exact.delays)
        axis.errorbar(exact.false_positive_ratios, exact.delays, spread, fmt="o", color=color, capsize=3, markersize=4)
    axis.set_xscale("log")
    axis.set_xlabel("false alarms per box of ground truth (dotted: no more detections)")
    axis.set_ylabel("mean delay, frames")
    axis.set_ylim(bottom=0)
    axis.legend()
    figure.savefig(path, dpi=120)
    return Path(path)


def plot_survival(path: str | Path, results: Mapping[str, DelayResult]) -> Path:
    """Share of objects still unseen against frames since they appeared, at the strictest and the loosest point.

    Kaplan-Meier estimates. Raises ModuleNotFoundError without matplotlib.
    """
    figure, axis = _axis()
    for color, (name, result) in zip(_colors(), results.items(), strict=False):
        for point, style in ((0, "-"), (len(result.delays) - 1, "--")):
            curve = np.concatenate([[1.0], survival_curve(result, point)])
            label = f"{name}, {result.false_positive_ratios[point]:g} false alarms a box"
            axis.step(np.arange(len(curve)), curve, style, where="post", color=color, label=label)
    axis.set_xlabel("frames in which the object was there")
    axis.set_ylabel("share of objects still unseen")
    axis.set_ylim(0, 1.02)
    axis.legend()
    figure.savefig(path, dpi=120)
    return Path(path)


def _label(name: str, report: "DetectorReport") -> str:
    average, precision = report.by_mode["exact"].average_delay, report.by_mode["official"].precision.mean
    return f"{name}: AD {average:.2f}, mAP {100 * precision:.1f} %"


def _axis() -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plots need matplotlib: pip install 'dgcomp[plots]'") from error
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    axis.grid(alpha=0.3)
    return figure, axis


def _colors() -> list[str]:
    return [f"C{i}" for i in range(10)]
