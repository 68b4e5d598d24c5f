"""KITTI tracking labels: blank-separated text, a file for each sequence.

frame track type truncated occluded alpha left top right bottom height width length x y z rotation [score]
(the data set's devkit, readme.txt). Frames count from 0.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dgcomp.video.columns import DetectionRows, check_rows
from dgcomp.video.readers.annotations import (
    Annotations,
    Lines,
    detection_rows,
    ground_truth_rows,
    named,
    read_lines,
    sequence_files,
)

DONT_CARE = "DontCare"
NEIGHBOURS = {"Van": "Car", "Person_sitting": "Pedestrian"}
"""Types that neither count for nor against a detector of the other type (KITTI's evaluation code)."""


def read_kitti(path: str | Path, *, sequence: str | None = None, classes: Sequence[str] | None = None) -> Annotations:
    """Ground truth of a file or of a folder of files.

    Rows have truncation and occlusion as 8th and 9th value, for `difficulty`. "DontCare" areas become regions to be
    ignored. With `classes` other types are left out, but those like one of them (Van for Car, Person_sitting for
    Pedestrian) become boxes to be ignored.

    Raises
    ------
    ValueError
        For a malformed line, naming file and line.
    FileNotFoundError
        If there is no file.
    """
    result = Annotations()
    for name, file in named(sequence, sequence_files(Path(path), ["*.txt"], "KITTI labels")).items():
        lines = read_lines(file, fields=(17, 18), what="KITTI tracking labels")
        _add(result, name, lines, classes)
    return result


def read_kitti_detections(
    path: str | Path, *, sequence: str | None = None, num_frames: Mapping[str, int] | None = None
) -> DetectionRows:
    """Detections or tracker output of a file or of a folder of files: lines of 18 fields, the last the score.

    With `num_frames`, the sequences' lengths, a frame beyond the end is an error.
    """
    found: DetectionRows = {}
    lengths = num_frames or {}
    for name, file in named(sequence, sequence_files(Path(path), ["*.txt"], "KITTI detections")).items():
        lines = read_lines(file, fields=(18,), what="KITTI detections")
        frame, score = lines.column(0, "frame"), lines.column(17, "score")
        found[name] = detection_rows(
            lines.where, frame, lines.texts(2), score, _corners(lines), length=lengths.get(name)
        )
    return found


def _add(result: Annotations, name: str, lines: Lines, classes: Sequence[str] | None) -> None:
    frame, corners, types = lines.column(0, "frame"), _corners(lines), lines.texts(2)
    check_rows(lines.where, frame, corners)
    track = lines.whole_numbers(1, "track")
    truncation, occlusion = lines.column(3, "truncated"), lines.column(4, "occluded")
    wanted = [t != DONT_CARE and (classes is None or t in classes) for t in types]
    rows = np.flatnonzero(wanted)
    result.ground_truth[name] = ground_truth_rows(
        lambda i: lines.where(int(rows[i])),
        frame[rows],
        [track[i] for i in rows],
        [types[i] for i in rows],
        corners[rows],
        more=(truncation[rows], occlusion[rows]),
    )
    result.ignored[name] = [
        (int(frame[i]), None if types[i] == DONT_CARE else NEIGHBOURS[types[i]], *corners[i].tolist())
        for i in np.flatnonzero(~np.array(wanted, bool))
        if types[i] == DONT_CARE or (classes is not None and NEIGHBOURS.get(types[i]) in classes)
    ]


def _corners(lines: Lines) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.stack([lines.column(6 + i, name) for i, name in enumerate(("left", "top", "right", "bottom"))], axis=1)
