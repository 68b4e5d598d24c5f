"""PETS ground truth in CVML: <frame number><objectlist><object id><box h w xc yc/>, boxes by centre and size."""

from pathlib import Path
from xml.parsers import expat

import numpy as np

from dgcomp.video.readers.annotations import Annotations, ground_truth_rows, named, sequence_files
from dgcomp.video.readers.mot import PEDESTRIAN


def read_pets(path: str | Path, *, sequence: str | None = None, first_frame: int = 0) -> Annotations:
    """Ground truth of pedestrians, from a file or a folder of *.xml.

    `first_frame` is the number of a sequence's first frame in its file; the rows count from 0.

    Raises
    ------
    ValueError
        For malformed XML or a missing attribute, naming file and line.
    FileNotFoundError
        If there is no file.
    """
    result = Annotations()
    for name, file in named(sequence, sequence_files(Path(path), ["*.xml"], "PETS ground truth")).items():
        reader = _Reader(file)
        reader.parse()
        boxes = np.array(reader.boxes, np.float64).reshape(-1, 4)
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
        frame = np.array(reader.frames, np.float64) - first_frame
        labels = [PEDESTRIAN] * len(frame)
        result.ground_truth[name] = ground_truth_rows(reader.where, frame, list(reader.tracks), labels, corners)
        result.num_frames[name] = reader.last_frame - first_frame + 1
    return result


class _Reader:
    """Collects boxes and the lines that they stand on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.frame, self.last_frame, self.track = -1, -1, -1
        self.frames: list[int] = []
        self.tracks: list[int] = []
        self.boxes: list[tuple[float, ...]] = []
        self.lines: list[int] = []

    def parse(self) -> None:
        try:
            self.parser.Parse(self.path.read_bytes(), True)
        except expat.ExpatError as error:
            raise ValueError(f"{self.path}, line {error.lineno}: {expat.ErrorString(error.code)}") from None

    def where(self, row: int) -> str:
        return f"{self.path}, line {self.lines[row]}"

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "frame":
            self.frame = int(self._number(attributes, "number", name))
            self.last_frame = max(self.last_frame, self.frame)
        elif name == "object":
            self.track = int(self._number(attributes, "id", name))
        elif name == "box":
            self.boxes.append(tuple(self._number(attributes, key, name) for key in ("xc", "yc", "w", "h")))
            self.frames.append(self.frame)
            self.tracks.append(self.track)
            self.lines.append(self.parser.CurrentLineNumber)

    def _number(self, attributes: dict[str, str], key: str, element: str) -> float:
        try:
            return float(attributes[key])
        except (KeyError, ValueError):
            got = repr(attributes[key]) if key in attributes else "none"
            line = self.parser.CurrentLineNumber
            raise ValueError(f"{self.path}, line {line}: <{element}> needs a number {key}, got {got}") from None
