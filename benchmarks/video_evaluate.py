"""The delay metrics: speed on made-up detections, and figures on real ones with the published code's beside them.

    python -m benchmarks.video evaluate                               # speed alone
    python -m benchmarks.video evaluate --data ../shared/data/video   # and three sequences of MOT15

Speed: sequences of 300 frames with eight objects and as many detections as asked for, on one thread; the first call in
a fresh process, which loads compiled kernels (imports are not counted), and medians of later ones. Beside it, in the
same run, COCO's evaluator (pycocotools, C) on the same boxes, once and up to 100,000 detections, where it is installed;
and the time that merely reading the rows into columns takes, a floor for any code that takes Python rows.

DATA holds PETS09-S2L1-gt.xml, TUD-Campus-gt.txt, TUD-Stadtmitte-gt.txt and NAME-fasterrcnn-det.txt of each (MOT15, with
the detections that SORT published).
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numba
import numpy as np

from benchmarks.store import describe_commit, processor
from dgcomp import video
from dgcomp.video.columns import DetectionRows, GroundTruthRows, load
from dgcomp.video.report import Settings, evaluate_detector, write_report
from dgcomp.video.report_text import table

RESULTS = Path(__file__).parent / "results"
COCO_MAX_DETECTIONS = 100_000
SIZES = ((21, 50_000), (100, 300_000))
NAMES = ("PETS09-S2L1", "TUD-Campus", "TUD-Stadtmitte")
# What VMetrics (RalphMao/VMetrics at 1c0f019, put through 2to3) prints for the detections of NAMES: sequences, mAP,
# mean delay at 0.1 false alarms a box and at the rest, AD.
PUBLISHED = (
    (NAMES[:1], 0.70405, 0.4737, 0.1053, 0.1533),
    (NAMES, 0.72804, 1.8378, 0.9459, 1.0535),
    (NAMES[1:2], 0.71604, 0.0, 0.0, 0.0),
    (NAMES[2:], 0.77288, 3.3, 3.3, 3.3),
)
STRICT = (0.01, 0.02, 0.03, 0.05, 0.1)
"""False alarms a box that the real detections reach; at the usual ratios all but one are saturated."""
FIRST_CALL = """
import json, sys, time
start = time.perf_counter()
from benchmarks.video_evaluate import made_up
rows = made_up(*json.loads(sys.argv[1]))
made = time.perf_counter()
from dgcomp import video
video.average_delay(*rows)
print(time.perf_counter() - made)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder of the three sequences; left out without it")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of video_evaluate.json and .md")


def run(options: argparse.Namespace) -> None:
    result: dict[str, Any] = {"surroundings": _surroundings(options), "repeats": options.repeats}
    result["speed"] = [speed(*size, repeats=options.repeats) for size in SIZES]
    if options.data:
        ground_truth, detections = real(options.data)
        result["published"] = published(ground_truth, detections)
        result["attacks"] = attacks(ground_truth, detections)
        result["modes"] = modes(ground_truth, detections)
        _draw(ground_truth, detections, options.results)
    _write(result, options.results)
    print((options.results / "video_evaluate.md").read_text())


def speed(num_sequences: int, num_detections: int, *, repeats: int) -> dict[str, Any]:
    """Seconds of the metrics on so many detections; medians, the contestants in turn."""
    rows = made_up(num_sequences, num_detections)
    calls: dict[str, Callable[[], object]] = {
        "official_s": lambda: video.average_delay(*rows, "official"),
        "exact_s": lambda: video.average_delay(*rows, "exact"),
        "censored_s": lambda: video.average_delay(*rows, "censored"),
        "mean_delay_s": lambda: video.mean_delay(*rows),
        "whole_report_s": lambda: _report_without_coco(*rows),
        "reading_rows_s": lambda: load(*rows),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(_seconds(call))
    medians = {name: round(statistics.median(values), 3) for name, values in times.items()}
    if num_detections <= COCO_MAX_DETECTIONS:
        with contextlib.suppress(ModuleNotFoundError):
            medians["coco_s"] = round(_seconds(lambda: video.coco_precision(*rows)), 3)
    command = [sys.executable, "-c", FIRST_CALL, json.dumps([num_sequences, num_detections])]
    first = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return {
        "sequences": num_sequences,
        "detections": sum(map(len, rows[1].values())),
        "boxes": sum(map(len, rows[0].values())),
        "fresh_process_s": round(float(first.stdout), 3),
        **medians,
    }


def made_up(num_sequences: int, num_detections: int) -> tuple[GroundTruthRows, DetectionRows]:
    """Objects that walk through 300 frames, detections near them with scores, and false ones."""
    rng = np.random.default_rng(0)
    ground_truth, detections = {}, {}
    per_frame = -(-num_detections // (num_sequences * 300))
    for s in range(num_sequences):
        first = rng.integers(0, 250, 8)
        corner, size, step = rng.uniform(0, 900, (8, 2)), rng.uniform(20, 150, (8, 2)), rng.uniform(-3, 3, (8, 2))
        rows, found = [], []
        for frame in range(300):
            alive = np.flatnonzero(first <= frame)
            place = corner[alive] + step[alive] * frame
            boxes = np.concatenate([place, place + size[alive]], axis=1)
            rows += [(frame, int(t), int(t) % 3, *box) for t, box in zip(alive, boxes.tolist(), strict=True)]
            hits = boxes[rng.random(len(alive)) < 0.7]
            hits[:, :2] += rng.normal(0, 4, (len(hits), 2))
            low = rng.uniform(0, 900, (max(per_frame - len(hits), 0), 2))
            near = np.concatenate([hits, np.concatenate([low, low + rng.uniform(20, 150, low.shape)], axis=1)])
            score = np.concatenate([rng.beta(4, 2, len(hits)), rng.beta(2, 4, len(low))])
            near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
            labels = rng.integers(0, 3, len(near))
            columns = zip(labels.tolist(), score.tolist(), near.tolist(), strict=True)
            found += [(frame, label, value, *box) for label, value, box in columns]
        ground_truth[f"s{s:03d}"], detections[f"s{s:03d}"] = rows, found
    return ground_truth, detections


def real(folder: Path) -> tuple[GroundTruthRows, DetectionRows]:
    """Ground truth and detections of the three sequences."""
    ground_truth: GroundTruthRows = {}
    detections: DetectionRows = {}
    for name in NAMES:
        path = next(folder.glob(f"{name}-gt.*"))
        ground_truth |= video.read_ground_truth(path, sequence=name).ground_truth
        detections |= video.read_detections(folder / f"{name}-fasterrcnn-det.txt", sequence=name)
    return ground_truth, detections


def published(ground_truth: GroundTruthRows, detections: DetectionRows) -> list[dict[str, Any]]:
    """Mode "official" beside the published code's figures."""
    rows = []
    for names, mean_ap, first, rest, average in PUBLISHED:
        result = video.average_delay(*_some(names, ground_truth, detections), "official")
        rows.append(
            {
                "sequences": ", ".join(names),
                "tracks": len(result.tracks),
                "boxes": result.num_boxes,
                "mAP": f"{result.precision.mean:.5f}",
                "mAP published": f"{mean_ap:.5f}",
                "D at 0.1, at 0.2 to 3.2": f"{result.delays[0]:.4f}, {result.delays[1]:.4f}",
                "D published": f"{first:.4f}, {rest:.4f}",
                "AD": f"{result.average_delay:.4f}",
                "AD published": f"{average:.4f}",
            }
        )
    return rows


def attacks(ground_truth: GroundTruthRows, detections: DetectionRows) -> list[dict[str, Any]]:
    """What retardation and tail boost do to delay and precision, mode "exact"."""
    variants = {"as they are": detections}
    variants |= {f"retarded {n} times": video.retardation(ground_truth, detections, n) for n in (1, 2, 3, 5)}
    variants["tail boosted"] = video.tail_boost(ground_truth, detections)
    rows = []
    for name, changed in variants.items():
        strict = video.average_delay(ground_truth, changed, "exact", false_positive_ratios=STRICT)
        usual = video.average_delay(ground_truth, changed, "exact")
        row = {"detections": name, "mAP %": f"{100 * usual.precision.mean:.2f}"}
        row[f"AD at {STRICT[0]} to {STRICT[-1]} false alarms a box"] = f"{strict.average_delay:.3f}"
        rows.append(row | {"AD at 0.1 to 3.2": f"{usual.average_delay:.3f}"})
    return rows


def modes(ground_truth: GroundTruthRows, detections: DetectionRows) -> list[dict[str, Any]]:
    """The three modes with intervals, at strict operating points, where objects are missed."""
    rows = []
    for names in (*[(name,) for name in NAMES], NAMES):
        own = _some(names, ground_truth, detections)
        row: dict[str, Any] = {"sequences": ", ".join(names)}
        for mode in ("official", "exact", "censored"):
            result = video.average_delay(*own, mode, false_positive_ratios=STRICT)  # type: ignore[arg-type]
            interval = video.bootstrap(result)
            row[f"AD {mode}"] = f"{result.average_delay:.3f} ({interval.low:.2f} to {interval.high:.2f})"
            row["never detected %"] = f"{100 * (1 - result.detected.mean()):.1f}"
        mean = video.mean_delay(*own, precision=0.9)
        rows.append(row | {"mD@0.9": f"{mean.mean_delay:.3f}" + ("*" if mean.saturated else "")})
    return rows


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _report_without_coco(ground_truth: GroundTruthRows, detections: DetectionRows) -> None:
    for mode in ("official", "exact", "censored"):
        result = video.average_delay(ground_truth, detections, mode)  # type: ignore[arg-type]
    video.bootstrap(result)
    for by in ("size", "class", "entry"):
        video.breakdown(result, by)  # type: ignore[arg-type]
    video.mean_delay(ground_truth, detections)


def _some(names: tuple[str, ...], *parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{name: part[name] for name in names} for part in parts]


def _draw(ground_truth: GroundTruthRows, detections: DetectionRows, folder: Path) -> None:
    """The report's two plots, of the detections as they are and retarded."""
    settings = Settings(false_positive_ratios=STRICT)
    variants = {
        "Faster R-CNN": detections,
        "the same, retarded 5 times": video.retardation(ground_truth, detections, 5),
    }
    reports = {name: evaluate_detector(ground_truth, own, settings) for name, own in variants.items()}
    for path in write_report(folder / "video_report", reports, settings, title="Delay of Faster R-CNN on MOT15"):
        if path.suffix == ".png":
            path.rename(folder / f"video_{path.name}")
        else:
            path.unlink()
    (folder / "video_report").rmdir()


def _surroundings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": describe_commit(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "numba": numba.__version__},
        "command": "python -m benchmarks.video evaluate" + (" --data DATA" if options.data else ""),
    }


def _write(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "video_evaluate.json"
    history = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*history, result], indent=1) + "\n")
    (folder / "video_evaluate.md").write_text(render(result))


def render(result: dict[str, Any]) -> str:
    """A result as Markdown."""
    about = result["surroundings"]
    sections = [
        "# Delay metrics",
        f"{about['machine']}; {about['versions']}; commit {about['commit']}; {about['time']}; `{about['command']}`",
        "## Speed, seconds",
        "One thread. Fresh process: the first call, which loads compiled kernels (imports not counted). Others: "
        f"medians of {result['repeats']} calls. Whole report: three modes, bootstrap of 1,000, three breakdowns, mD. "
        "Reading rows: from Python tuples to columns, in every call. COCO: pycocotools' average precision on the same "
        "boxes.",
        table([{k.removesuffix("_s").replace("_", " "): v for k, v in row.items()} for row in result["speed"]]),
    ]
    if "published" in result:
        sections += [
            "## Mode official and the published code",
            table(result["published"]),
            "## Attacks on the three sequences, mode exact",
            "Retardation takes the first detections of each object away, so many times over; tail boost makes late "
            "detections sure. Beyond 0.15 false alarms a box these detections are saturated, and a score of 0 still "
            "counts.",
            table(result["attacks"]),
            f"## Modes at {STRICT[0]} to {STRICT[-1]} false alarms a box, with 95 % of the bootstrap over objects",
            table(result["modes"]) + "\n\n\\* all detections together are more precise than that.",
            "![delay against false alarms](video_delay.png)",
            "![share of objects still unseen](video_survival.png)",
        ]
    return "\n\n".join(sections) + "\n"
