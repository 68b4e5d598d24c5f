"""Carry boxes through a video with PatchNet: a detector, or a file of detections, speaks in key frames only.

  python -m dgcomp.video patchnet Crossing.zip --weights patchnet-weights.npz --box 204 150 221 200 --interval 120
  python -m dgcomp.video patchnet vtest.avi --detections-from found.txt --interval 6 --output annotated.avi

Without --weights the network's untrained geometry is used. --min-confidence 0.8 makes a key frame of every frame
where the positions get unsure. Weights: docs/video_pipelines.md.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dgcomp.video.annotate import FrameWriter, draw_boxes
from dgcomp.video.detectors import Detections, detection_rows
from dgcomp.video.frames import Frame, read_frames
from dgcomp.video.patchnet import PatchNet, operation_count
from dgcomp.video.patchnet_track import PropagatedFrame, propagate
from dgcomp.video.readers import read_detections, write_vid_detections

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("video", type=Path, help="a video, a folder of images or a zip of images")
    boxes = parser.add_mutually_exclusive_group(required=True)
    boxes.add_argument("--box", type=float, nargs=4, metavar=("X1", "Y1", "X2", "Y2"), help="follow this one")
    boxes.add_argument("--detections-from", type=Path, help="lines of: frame class score x1 y1 x2 y2")
    boxes.add_argument("--centernet", type=Path, help="detect persons in key frames: centernet.json")
    parser.add_argument("--weights", type=Path, help="patchnet-weights.npz")
    parser.add_argument("--interval", type=int, default=6, help="frames from key frame to key frame (default 6)")
    parser.add_argument("--min-confidence", type=float, default=0.0, help="key frame where the mean falls below")
    parser.add_argument("--min-score", type=float, default=0.3, help="detections below are dropped (default 0.3)")
    parser.add_argument("--size-rate", type=float, default=1.0, help="share of a change of size that is believed")
    parser.add_argument("--max-frames", type=int, help="stop after so many")
    parser.add_argument("--output", type=Path, help="annotated .avi or .mp4, or a folder for annotated frames")
    parser.add_argument("--detections", type=Path, help=".txt file for the boxes of all frames")


def run(options: argparse.Namespace) -> None:
    """Follow, write what was asked for, and print how often the detector ran."""
    network = PatchNet() if options.weights is None else PatchNet.from_weights(options.weights)
    source = _Frames(options.video, options.max_frames)
    detect, names = _detector(options, source)
    results = []
    with FrameWriter(options.output) if options.output else nullcontext() as writer:
        for result in propagate(
            network,
            source,
            detect,
            interval=options.interval if options.box is None else 10**9,
            min_confidence=options.min_confidence if options.box is None else 0.0,
            min_score=options.min_score,
            size_rate=options.size_rate,
        ):
            results.append(result)
            if writer is not None:
                writer.write(_annotated(source.frame, result))
    if options.detections is not None:
        rows = detection_rows((result.detections for result in results), names)
        write_vid_detections(options.detections.parent, {options.detections.stem: rows})
    carried = sum(len(result.detections) for result in results if not result.is_key)
    print(
        f"{len(results)} frames, {sum(result.is_key for result in results)} of them key frames; {carried} boxes "
        f"carried for {sum(operation_count().values()) / 1e9:.4f} G multiply-adds each"
    )


class _Frames:
    """Frames of a video that remember which one was given out last: detections in a file go by its number."""

    def __init__(self, path: Path, max_frames: int | None) -> None:
        self.path, self.max_frames, self.number = path, max_frames, -1
        self.frame: Frame = np.zeros((0, 0, 3), dtype=np.uint8)

    def __iter__(self) -> "_Frames":
        self._iterator = islice(read_frames(self.path), self.max_frames)
        return self

    def __next__(self) -> Frame:
        self.frame = next(self._iterator)
        self.number += 1
        return self.frame


def _detector(options: argparse.Namespace, source: _Frames) -> tuple[Callable[[Frame], Detections], dict[int, Any]]:
    """What is called with key frames, and the names of its class numbers."""
    if options.centernet is not None:
        from dgcomp.video.centernet import PERSON, CenterNet

        return CenterNet(options.centernet, zoom=1.5).detect, {PERSON: "pedestrian"}
    if options.detections_from is not None:
        rows = read_detections(options.detections_from, "vid", sequence="video")["video"]
        names = list(dict.fromkeys(row[1] for row in rows))
        return lambda frame: _of_frame(rows, source.number, names), dict(enumerate(names))
    one = Detections(np.array([options.box]), np.ones(1), np.zeros(1, dtype=np.int64))
    return lambda frame: one, {}


def _of_frame(rows: list[tuple[Any, ...]], number: int, names: list[Any]) -> Detections:
    """The detections of one frame; classes are numbered by their place among the names."""
    own = [row for row in rows if row[0] == number]
    if not own:
        return Detections.none()
    values = np.array([row[2:7] for row in own], dtype=np.float64)
    classes = np.array([names.index(row[1]) for row in own], dtype=np.int64)
    return Detections(values[:, 1:], values[:, 0], classes)


def _annotated(frame: Frame, result: PropagatedFrame) -> Frame:
    """Key frames' boxes in another colour; the others with the confidence of their position."""
    labels = [f"{confidence:.2f}" for confidence in result.confidences]
    return draw_boxes(frame, result.detections.boxes, labels, color=0 if result.is_key else 1)
