"""All delay figures of one or several detectors on one ground truth, and the files that show them."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dgcomp.video.aggregate import WINDOW, Mode
from dgcomp.video.average_precision import COCOPrecision, coco_precision
from dgcomp.video.bootstrap import Bootstrap, Unit, bootstrap
from dgcomp.video.breakdown import breakdown
from dgcomp.video.delay import DelayResult, average_delay
from dgcomp.video.delay_at_precision import MeanDelayResult, mean_delay
from dgcomp.video.difficulty import Difficulty
from dgcomp.video.operating import FALSE_POSITIVE_RATIOS
from dgcomp.video.plots import plot_delay, plot_survival
from dgcomp.video.report_text import markdown
from dgcomp.video.streaming import LatencyMs

MODES: tuple[Mode, ...] = ("official", "exact", "censored")
CURVE_POINTS = 40


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a report is made with; fields as the arguments of `average_delay`, `mean_delay` and `bootstrap`."""

    false_positive_ratios: Sequence[float] = FALSE_POSITIVE_RATIOS
    iou_threshold: float | Mapping[Any, float] = 0.5
    window: int = WINDOW
    precision: float = 0.8
    classes: Sequence[Any] | None = None
    ignored: Mapping[Any, Any] | None = None
    difficulty: Difficulty | str | None = None
    num_frames: Mapping[Any, int] | None = None
    image_size: Mapping[Any, tuple[float, float]] | None = None
    frame_rate_hz: float | None = None
    latency_ms: LatencyMs | None = None
    level: float = 0.95
    num_resamples: int = 1000
    unit: Unit = "track"


@dataclass(frozen=True, kw_only=True)
class DetectorReport:
    """Everything about one detector."""

    by_mode: dict[Mode, DelayResult]
    confidence: Bootstrap
    """Of mode "exact"."""
    curve: DelayResult
    """Mode "exact" at many false-positive ratios."""
    at_precision: MeanDelayResult
    streamed: DelayResult | None
    """Mode "exact" on detections as a consumer in real time sees them; None without a latency."""
    coco: COCOPrecision | None
    """None without pycocotools."""


def evaluate_detector(
    ground_truth: Mapping[Any, Any], detections: Mapping[Any, Any], settings: Settings
) -> DetectorReport:
    """All figures of one detector; errors as in `average_delay`."""
    common: dict[str, Any] = {
        name: getattr(settings, name)
        for name in ("iou_threshold", "classes", "ignored", "difficulty", "num_frames", "image_size")
    }
    delay: dict[str, Any] = common | {"window": settings.window, "frame_rate_hz": settings.frame_rate_hz}
    ratios = settings.false_positive_ratios
    by_mode = {
        mode: average_delay(ground_truth, detections, mode, false_positive_ratios=ratios, **delay) for mode in MODES
    }
    dense = np.geomspace(min(ratios) / 4, max(ratios) * 2, CURVE_POINTS)
    streamed = None
    if settings.latency_ms is not None:
        streamed = average_delay(
            ground_truth,
            detections,
            "exact",
            false_positive_ratios=ratios,
            latency_ms=settings.latency_ms,
            **delay,
        )
    try:
        coco = coco_precision(
            ground_truth,
            detections,
            classes=settings.classes,
            ignored=settings.ignored,
            difficulty=settings.difficulty,
        )
    except ModuleNotFoundError:
        coco = None
    return DetectorReport(
        by_mode=by_mode,
        confidence=bootstrap(
            by_mode["exact"], level=settings.level, num_resamples=settings.num_resamples, unit=settings.unit
        ),
        curve=average_delay(ground_truth, detections, "exact", false_positive_ratios=dense, **delay),
        at_precision=mean_delay(ground_truth, detections, settings.precision, **common),
        streamed=streamed,
        coco=coco,
    )


def as_dict(reports: Mapping[str, DetectorReport], settings: Settings) -> dict[str, Any]:
    """Figures of all detectors as plain numbers, lists and texts, for JSON."""
    return {
        "settings": {
            "false_positive_ratios": [float(ratio) for ratio in settings.false_positive_ratios],
            "iou_threshold": settings.iou_threshold,
            "window_frames": settings.window,
            "precision": settings.precision,
            "frame_rate_hz": settings.frame_rate_hz,
            "latency_ms": settings.latency_ms if isinstance(settings.latency_ms, int | float | None) else "by frame",
            "confidence_level": settings.level,
            "resamples": settings.num_resamples,
            "resampled": settings.unit,
        },
        "detectors": {name: _detector(report) for name, report in reports.items()},
    }


def write_report(
    folder: str | Path, reports: Mapping[str, DetectorReport], settings: Settings, *, title: str = "Detection delay"
) -> list[Path]:
    """Write report.json and report.md and, with matplotlib, delay.png and survival.png; returns what was written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plots = []
    try:
        plots.append(plot_delay(folder / "delay.png", reports))
        plots.append(plot_survival(folder / "survival.png", {n: r.by_mode["exact"] for n, r in reports.items()}))
    except ModuleNotFoundError:
        plots = []  # the text says so
    figures = as_dict(reports, settings)
    (folder / "report.json").write_text(json.dumps(figures, indent=1) + "\n")
    (folder / "report.md").write_text(markdown(figures, title=title, plots=[path.name for path in plots]))
    return [folder / "report.md", folder / "report.json", *plots]


def _detector(report: DetectorReport) -> dict[str, Any]:
    exact, interval = report.by_mode["exact"], report.confidence
    figures: dict[str, Any] = {
        "tracks": len(exact.tracks),
        "boxes": exact.num_boxes,
        "detections": exact.num_detections,
        "max_false_positive_ratio": exact.max_false_positive_ratio,
        "average_delay": {mode: result.average_delay for mode, result in report.by_mode.items()},
        "average_delay_interval": [interval.low, interval.high],
        "average_precision_50": report.by_mode["official"].precision.mean,
        "coco": None if report.coco is None else _plain(dataclasses.asdict(report.coco)),
        "mean_delay": {
            "frames": report.at_precision.mean_delay,
            "precision": _plain(report.at_precision.precision),
            "reached": report.at_precision.reached,
            "saturated": report.at_precision.saturated,
            "by_class": {str(label): delay for label, delay in report.at_precision.class_delays.items()},
        },
        "points": [_point(report, a) for a in range(len(exact.delays))],
        "groups": {by: _groups(exact, by) for by in ("size", "class", "entry")},
    }
    if exact.frame_rate_hz is not None:
        figures["average_delay_ms"] = exact.average_delay_ms
    if report.streamed is not None:
        figures["streamed"] = {
            "average_delay": report.streamed.average_delay,
            "average_delay_ms": report.streamed.average_delay_ms,
            "average_precision_50": report.streamed.precision.mean,
        }
    return figures


def _point(report: DetectorReport, a: int) -> dict[str, Any]:
    exact, interval = report.by_mode["exact"], report.confidence
    return {
        "false_positive_ratio": float(exact.false_positive_ratios[a]),
        **{mode: float(result.delays[a]) for mode, result in report.by_mode.items()},
        "interval": [float(interval.delays_low[a]), float(interval.delays_high[a])],
        "threshold": _plain(float(exact.thresholds[a])),
        "reached_ratio": float(exact.reached_ratios[a]),
        "saturated": bool(exact.saturated[a]),
        "never_detected": float(1 - exact.detected[a].mean()),
    }


def _groups(result: DelayResult, by: Any) -> dict[str, dict[str, Any]]:
    return {
        str(name): {
            "average_delay": group.average_delay,
            "tracks": group.num_tracks,
            "never_detected": group.never_detected,
        }
        for name, group in breakdown(result, by).items()
    }


def _plain(value: Any) -> Any:
    """JSON has neither nan nor infinity: nan becomes null, infinity a text."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, float) and np.isnan(value):
        return None
    return str(value) if isinstance(value, float) and np.isinf(value) else value
