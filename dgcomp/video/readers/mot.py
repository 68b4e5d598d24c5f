"""MOTChallenge text: comma-separated, frames from 1, boxes by left, top, width and height.

Ground truth: frame, id, left, top, width, height, flag, then class and visibility (MOT16 on) or a place in the world
(MOT15). Detections: frame, -1, left, top, width, height, score, and what follows is left alone.
"""

import configparser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dgcomp.video.columns import DetectionRows, Floats, check_rows
from dgcomp.video.readers.annotations import (
    Annotations,
    Lines,
    detection_rows,
    from_corner_and_size,
    ground_truth_rows,
    named,
    read_lines,
    sequence_files,
)

PEDESTRIAN = "pedestrian"
# MOT16 (Milan et al., arXiv 1603.00831), table 3: people that a detector may or may not report
DISTRACTORS = {2: "person on vehicle", 7: "static person", 8: "distractor", 12: "reflection"}


def read_mot(path: str | Path, *, sequence: str | None = None) -> Annotations:
    """Ground truth of pedestrians, from a gt.txt or a folder with */gt/gt.txt or *.txt; frames are made to start at 0.

    Boxes with flag 0, and from MOT16 on those of distractors (static persons, reflections), are to be ignored; other
    classes are left out. Length and picture size come from seqinfo.ini where it lies beside the folder gt.

    Raises
    ------
    ValueError
        For a malformed line, naming file and line, and for a box beyond the sequence's end.
    FileNotFoundError
        If there is no file.
    """
    result = Annotations()
    for name, file in named(sequence, sequence_files(Path(path), ["*/gt/gt.txt", "*.txt"], "MOT ground truth")).items():
        _read_info(result, name, file.parent.parent / "seqinfo.ini")
        lines = read_lines(file, fields=range(7, 11), what="MOT ground truth", separator=",")
        _add(result, name, lines)
    return result


def read_mot_detections(
    path: str | Path,
    *,
    sequence: str | None = None,
    label: Any = PEDESTRIAN,
    num_frames: Mapping[str, int] | None = None,
) -> DetectionRows:
    """Detections from a det.txt or a folder with */det/det.txt or *.txt, all of the class `label`."""
    found: DetectionRows = {}
    lengths = num_frames or {}
    files = sequence_files(Path(path), ["*/det/det.txt", "*.txt"], "MOT detections")
    for name, file in named(sequence, files).items():
        lines = read_lines(file, fields=range(7, 11), what="MOT detections", separator=",")
        frame, score = _frames(lines), lines.column(6, "score")
        found[name] = detection_rows(
            lines.where, frame, [label] * len(frame), score, _corners(lines), length=lengths.get(name)
        )
    return found


def _add(result: Annotations, name: str, lines: Lines) -> None:
    frame, corners = _frames(lines), _corners(lines)
    check_rows(lines.where, frame, corners, length=result.num_frames.get(name))
    track = lines.whole_numbers(1, "id")
    counts = lines.column(6, "flag") != 0
    ignored = ~counts
    if lines.fields and len(lines.fields[0]) == 9:
        label = lines.column(7, "class")
        distracting = np.isin(label, list(DISTRACTORS))
        counts &= label == 1
        ignored = distracting | (~counts & (label == 1))
    rows = np.flatnonzero(counts)
    result.ground_truth[name] = ground_truth_rows(
        lambda i: lines.where(int(rows[i])),
        frame[rows],
        [track[i] for i in rows],
        [PEDESTRIAN] * len(rows),
        corners[rows],
    )
    result.ignored[name] = [(int(frame[i]), PEDESTRIAN, *corners[i].tolist()) for i in np.flatnonzero(ignored)]


def _frames(lines: Lines) -> Floats:
    """Frames counted from 0; the files count from 1."""
    frame = lines.column(0, "frame")
    if (frame < 1).any():
        row = int(np.argmax(frame < 1))
        raise ValueError(
            f"{lines.where(row)}: frame must be a whole number from 1 on, as MOTChallenge counts, got {frame[row]:g}"
        )
    return frame - 1


def _corners(lines: Lines) -> Floats:
    left, top, width, height = (lines.column(2 + i, side) for i, side in enumerate(("left", "top", "width", "height")))
    return from_corner_and_size(left, top, width, height)


def _read_info(result: Annotations, name: str, path: Path) -> None:
    if not path.is_file():
        return
    parser = configparser.ConfigParser()
    parser.read(path)
    try:
        section = parser["Sequence"]
        result.num_frames[name] = int(section["seqLength"])
        result.image_size[name] = (float(section["imWidth"]), float(section["imHeight"]))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: needs numbers seqLength, imWidth and imHeight under [Sequence], {error}") from None
