"""What readers of ground truth return, and the lines of text that most of them read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dgcomp.video.columns import (
    DetectionRows,
    Floats,
    GroundTruthRows,
    IgnoredRows,
    check_rows,
    check_tracks,
    is_number,
)


@dataclass(kw_only=True)
class Annotations:
    """Ground truth of several sequences, in the form that `average_delay` takes, by sequence name."""

    ground_truth: GroundTruthRows = field(default_factory=dict)
    ignored: IgnoredRows = field(default_factory=dict)
    num_frames: dict[str, int] = field(default_factory=dict)
    """Lengths, of the sequences whose files tell."""
    image_size: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Width and height in pixels, of the sequences whose files tell."""

    def update(self, other: "Annotations") -> None:
        """Add the sequences of another set; ValueError if one is here already."""
        twice = sorted(set(self.ground_truth) & set(other.ground_truth))
        if twice:
            raise ValueError(f"the sequence {twice[0]!r} comes from two files; name them with SEQUENCE=PATH")
        for mine, new in zip(vars(self).values(), vars(other).values(), strict=True):
            mine.update(new)


@dataclass(frozen=True, kw_only=True)
class Lines:
    """The filled lines of a text file, split into fields."""

    path: Path
    numbers: list[int]
    """Line numbers from 1."""
    fields: list[list[str]]

    def where(self, row: int) -> str:
        return f"{self.path}, line {self.numbers[row]}"

    def column(self, index: int, name: str) -> Floats:
        """One field of all lines as numbers; ValueError naming file and line."""
        texts = [fields[index] for fields in self.fields]
        try:
            return np.array(texts, np.float64)
        except ValueError:
            row = next(i for i, text in enumerate(texts) if not is_number(text))
            raise ValueError(f"{self.where(row)}: {name} must be a number, got {texts[row]!r}") from None

    def whole_numbers(self, index: int, name: str) -> list[int]:
        """One field of all lines as integers of 64 bits, exact; ValueError naming file and line."""
        values = self.column(index, name)
        bad = ~((np.abs(values) < 2.0**63) & (values == np.floor(values)))
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"{self.where(row)}: {name} must be a whole number, got {self.fields[row][index]!r}")
        texts = (fields[index].strip() for fields in self.fields)
        # Beyond 2^53 two numbers can be one float.
        return [int(text if text.isdecimal() else value) for text, value in zip(texts, values, strict=True)]

    def texts(self, index: int) -> list[str]:
        return [fields[index] for fields in self.fields]


def read_lines(path: Path, *, fields: Sequence[int], what: str, separator: str | None = None) -> Lines:
    """Split a file's lines; ValueError naming file and line where the number of fields is not one of `fields`.

    All lines must have as many fields as the first.
    """
    numbers: list[int] = []
    rows: list[list[str]] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        row = line.split(separator)
        if len(row) not in fields:
            allowed = " or ".join(map(str, fields)) if len(fields) < 4 else f"{min(fields)} to {max(fields)}"
            raise ValueError(f"{path}, line {number}: a line of {what} has {allowed} fields, got {len(row)}: {line!r}")
        if rows and len(row) != len(rows[0]):
            raise ValueError(f"{path}, line {number}: has {len(row)} fields, line {numbers[0]} has {len(rows[0])}")
        numbers.append(number)
        rows.append(row)
    return Lines(path=path, numbers=numbers, fields=rows)


def read_text(path: Path) -> str:
    """Content of a file in UTF-8, with a byte order mark or without; ValueError naming file and line otherwise."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: must be text in UTF-8, got the byte {content[error.start]:#04x}"
        ) from None


def detection_rows(
    where: Callable[[int], str],
    frame: Floats,
    label: list[Any],
    score: Floats,
    corners: Floats,
    *,
    length: int | None,
) -> list[tuple[Any, ...]]:
    """Rows of detections, checked; with the sequence's length, frames beyond it are an error."""
    check_rows(where, frame, corners, score, length)
    columns = frame.astype(np.int64).tolist(), label, score.tolist(), *corners.T.tolist()
    return list(zip(*columns, strict=True))


def ground_truth_rows(
    where: Callable[[int], str],
    frame: Floats,
    track: list[Any],
    label: list[Any],
    corners: Floats,
    *,
    length: int | None = None,
    more: Sequence[Floats] = (),
) -> list[tuple[Any, ...]]:
    """Rows of ground truth, checked, with more columns after the corners."""
    check_rows(where, frame, corners, length=length)
    frames = frame.astype(np.int64).tolist()
    check_tracks(where, frames, track, label)
    columns = frames, track, label, *corners.T.tolist(), *(column.tolist() for column in more)
    return list(zip(*columns, strict=True))


def sequence_files(path: Path, patterns: Sequence[str], what: str) -> dict[str, Path]:
    """Files by sequence: one file, or those of a folder that match the first pattern that any matches.

    A file gt.txt or det.txt is named after the folder two levels up, as in MOTChallenge's layout; any other after
    itself. Raises FileNotFoundError where there is none.
    """
    if path.is_file():
        return {sequence_name(path): path}
    for pattern in patterns:
        found = sorted(path.glob(pattern))
        if found:
            return {sequence_name(file): file for file in found}
    raise FileNotFoundError(f"no {what} at {path}: expected a file, or a folder with {' or '.join(patterns)}")


def sequence_name(path: Path) -> str:
    """Name of the sequence that a file is about."""
    return path.absolute().parent.parent.name if path.name in ("gt.txt", "det.txt") else path.stem


def named(sequence: str | None, files: dict[str, Path]) -> dict[str, Path]:
    """The files with the caller's name for the sequence; ValueError if there are several."""
    if sequence is None:
        return files
    if len(files) > 1:
        raise ValueError(f"sequence names one file, got {len(files)} files for {sequence!r}")
    return {sequence: next(iter(files.values()))}


def from_corner_and_size(left: Floats, top: Floats, width: Floats, height: Floats) -> Floats:
    """Corners, shape (N, 4)."""
    return np.stack([left, top, left + width, top + height], axis=1)


def merge(parts: Sequence[DetectionRows]) -> DetectionRows:
    """All sequences of several sets; ValueError if one comes twice."""
    joined: DetectionRows = {}
    for part in parts:
        twice = sorted(set(joined) & set(part))
        if twice:
            raise ValueError(f"the sequence {twice[0]!r} comes from two files; name them with SEQUENCE=PATH")
        joined.update(part)
    return joined


def number_or_text(text: str) -> Any:
    """A class or track as files and command lines name it."""
    try:
        return int(text)
    except ValueError:
        return text
