"""Plain text like ImageNet VID's submissions, a file for each sequence.

Detections: frame class score x1 y1 x2 y2. Ground truth: frame track class x1 y1 x2 y2. Blank-separated, frames from 0.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgcomp.video.columns import DetectionRows, as_list
from dgcomp.video.readers.annotations import (
    Annotations,
    Lines,
    detection_rows,
    ground_truth_rows,
    named,
    number_or_text,
    read_lines,
    sequence_files,
)

# fmt: off
IMAGENET_VID_CLASSES = (
    "__background__", "airplane", "antelope", "bear", "bicycle", "bird", "bus", "car", "cattle", "dog", "domestic_cat",
    "elephant", "fox", "giant_panda", "hamster", "horse", "lion", "lizard", "monkey", "motorcycle", "rabbit",
    "red_panda", "sheep", "snake", "squirrel", "tiger", "train", "turtle", "watercraft", "whale", "zebra",
)
# fmt: on
"""ImageNet VID's classes by number."""


def read_vid(path: str | Path, *, sequence: str | None = None, class_names: Sequence[str] | None = None) -> Annotations:
    """Ground truth of a file or of a folder of *.txt; classes are numbers or names.

    Raises
    ------
    ValueError
        For a malformed line or a class that is not in `class_names`, naming file and line.
    FileNotFoundError
        If there is no file.
    """
    result = Annotations()
    for name, file in named(sequence, sequence_files(Path(path), ["*.txt"], "ground truth")).items():
        lines = read_lines(file, fields=(7,), what="ground truth (frame track class x1 y1 x2 y2)")
        track = [number_or_text(text) for text in lines.texts(1)]
        result.ground_truth[name] = ground_truth_rows(
            lines.where, lines.column(0, "frame"), track, _labels(lines, 2, class_names), _corners(lines)
        )
    return result


def read_vid_detections(
    path: str | Path,
    *,
    sequence: str | None = None,
    class_names: Sequence[str] | None = None,
    num_frames: Mapping[str, int] | None = None,
) -> DetectionRows:
    """Detections of a file or of a folder of *.txt.

    With `class_names`, such as `IMAGENET_VID_CLASSES`, class numbers become names, and an unknown one is an error.
    """
    found: DetectionRows = {}
    lengths = num_frames or {}
    for name, file in named(sequence, sequence_files(Path(path), ["*.txt"], "detections")).items():
        lines = read_lines(file, fields=(7,), what="detections (frame class score x1 y1 x2 y2)")
        frame, score = lines.column(0, "frame"), lines.column(2, "score")
        found[name] = detection_rows(
            lines.where, frame, _labels(lines, 1, class_names), score, _corners(lines), length=lengths.get(name)
        )
    return found


def write_vid_detections(folder: str | Path, detections: Mapping[Any, Any]) -> None:
    """Write a text file for each sequence, which `read_vid_detections` reads back to the last bit."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for sequence, rows in detections.items():
        lines = [
            f"{int(row[0])} {row[1]} " + " ".join(repr(float(value)) for value in row[2:7]) for row in as_list(rows)
        ]
        (Path(folder) / f"{sequence}.txt").write_text("".join(line + "\n" for line in lines))


def _labels(lines: Lines, index: int, class_names: Sequence[str] | None) -> list[Any]:
    labels = [number_or_text(text) for text in lines.texts(index)]
    if class_names is None:
        return labels
    named_labels: dict[Any, str] = {**dict(enumerate(class_names)), **{name: name for name in class_names}}
    for row, label in enumerate(labels):
        if label not in named_labels:
            raise ValueError(
                f"{lines.where(row)}: class must be one of {len(class_names)} names or their numbers, got {label!r}"
            )
    return [named_labels[label] for label in labels]


def _corners(lines: Lines) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.stack([lines.column(3 + i, name) for i, name in enumerate(("x1", "y1", "x2", "y2"))], axis=1)
