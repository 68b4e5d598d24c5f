"""Detections as text: one line each, `frame class score x1 y1 x2 y2`, frames counted from 0."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dgcomp.video.detectors import Detections

__all__ = ["read_rows", "write_rows"]


def write_rows(path: Path, found: Sequence[Detections]) -> None:
    """Write the detections of frames 0, 1, ... of a video."""
    lines = [
        f"{frame} {kind} {score:.4f} {x1:.2f} {y1:.2f} {x2:.2f} {y2:.2f}"
        for frame, one in enumerate(found)
        for kind, score, (x1, y1, x2, y2) in zip(
            one.classes.tolist(), one.scores.tolist(), one.boxes.tolist(), strict=True
        )
    ]
    path.write_text("".join(line + "\n" for line in lines))


def read_rows(path: Path) -> dict[int, Detections]:
    """Detections of each frame that has any; ValueError names the line that is wrong."""
    rows: dict[int, list[list[float]]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            frame, *values = [float(field) for field in line.split()]
            assert len(values) == 6
        except (ValueError, AssertionError):
            raise ValueError(f"{path}:{number}: must be `frame class score x1 y1 x2 y2`, got {line!r}") from None
        rows.setdefault(int(frame), []).append(values)
    found = {}
    for frame, values in rows.items():
        array = np.array(values)
        found[int(frame)] = Detections(array[:, 2:], array[:, 1], array[:, 0].astype(np.int64))
    return found
