"""Figures of a report as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

MODE_NOTES = (
    "Delays are in frames, 0 for an object detected in its first. *official* repeats the published code, defects "
    "included; *exact* mends them; *censored* takes the wait of an object that was never detected as cut off. AD is "
    "1 / mean(1 / (D + 1)) - 1 over the operating points."
)


def markdown(figures: Mapping[str, Any], *, title: str, plots: Sequence[str]) -> str:
    """The whole report: one row a detector, then a section for each."""
    settings, detectors = figures["settings"], figures["detectors"]
    sections = [f"# {title}", _summary(detectors, settings), MODE_NOTES]
    sections += [f"![{name.removesuffix('.png')}]({name})" for name in plots]
    if not plots:
        sections.append("Plots need matplotlib: `pip install 'dgcomp[plots]'`.")
    for name, detector in detectors.items():
        sections += [f"## {name}", *_notes(detector, settings), _points(detector, settings)]
        sections += [_groups(by, groups) for by, groups in detector["groups"].items()]
    return "\n\n".join(sections) + "\n"


def summary_rows(detectors: Mapping[str, Any], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a detector, by column title."""
    rows = []
    for name, detector in detectors.items():
        low, high = detector["average_delay_interval"]
        row = {"detector": name, "mAP .5": f"{100 * detector['average_precision_50']:.2f}"}
        if detector["coco"] is not None:
            row["COCO AP"] = f"{100 * (detector['coco']['ap'] or 0):.2f}"
        row |= {f"AD {mode}": f"{value:.4f}" for mode, value in detector["average_delay"].items()}
        row[f"{100 * settings['confidence_level']:g} % of exact"] = f"{low:.3f} to {high:.3f}"
        row[f"mD@{settings['precision']:g}"] = f"{detector['mean_delay']['frames']:.3f}"
        if "average_delay_ms" in detector:
            row["AD ms"] = f"{detector['average_delay_ms']:.1f}"
        if "streamed" in detector:
            row["AD ms, streamed"] = f"{detector['streamed']['average_delay_ms']:.1f}"
        row |= {key: f"{detector[key]:,}" for key in ("tracks", "boxes", "detections")}
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def _summary(detectors: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    return table(summary_rows(detectors, settings))


def _notes(detector: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    notes = []
    saturated = [f"{p['false_positive_ratio']:g}" for p in detector["points"] if p["saturated"]]
    if saturated:
        notes.append(
            f"**Saturated** at {', '.join(saturated)}: all detections together make only "
            f"{detector['max_false_positive_ratio']:.3f} false alarms a box, so that all detections count at each of "
            "these points. Detections with lower scores would tell more."
        )
    mean = detector["mean_delay"]
    if not mean["reached"]:
        notes.append(f"No threshold reaches precision {settings['precision']:g}; in mD nothing counts as detected.")
    elif mean["saturated"]:
        notes.append(f"All detections together have precision {mean['precision']:.3f}; mD is taken there.")
    if detector["coco"] is None:
        notes.append("COCO's average precision needs pycocotools: `pip install 'dgcomp[video]'`.")
    return notes


def _points(detector: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    rows = [
        {
            "false alarms a box": f"{point['false_positive_ratio']:g}",
            "official": f"{point['official']:.4f}",
            "exact": f"{point['exact']:.4f}",
            f"{100 * settings['confidence_level']:g} %": f"{point['interval'][0]:.2f} to {point['interval'][1]:.2f}",
            "censored": f"{point['censored']:.4f}",
            "threshold": _number(point["threshold"]),
            "reached": f"{point['reached_ratio']:.3f}",
            "never detected": f"{100 * point['never_detected']:.1f} %",
            "saturated": "yes" if point["saturated"] else "",
        }
        for point in detector["points"]
    ]
    return table(rows)


def _groups(by: str, groups: Mapping[str, Any]) -> str:
    return table(
        [
            {
                f"by {by}": name,
                "objects": group["tracks"],
                "AD exact": f"{group['average_delay']:.4f}",
                "never detected": f"{100 * group['never_detected']:.1f} %",
            }
            for name, group in groups.items()
        ]
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
