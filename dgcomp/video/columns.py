"""Rows of boxes as columns: one array a field over all sequences, checked once.

Rows come as lists, tuples or arrays, `{sequence: rows}`: ground truth as (frame, track, class, x1, y1, x2, y2),
detections as (frame, class, score, x1, y1, x2, y2), what is to be ignored as (frame, class, x1, y1, x2, y2); values
that follow are left alone. Frames count from 0. Classes and tracks are numbers or texts.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]
GroundTruthRows: TypeAlias = dict[str, list[tuple[Any, ...]]]
DetectionRows: TypeAlias = dict[str, list[tuple[Any, ...]]]
IgnoredRows: TypeAlias = dict[str, list[tuple[Any, ...]]]

GROUND_TRUTH_FIELDS = ("frame", "track", "class", "x1", "y1", "x2", "y2")
DETECTION_FIELDS = ("frame", "class", "score", "x1", "y1", "x2", "y2")
IGNORED_FIELDS = ("frame", "class", "x1", "y1", "x2", "y2")
ANY_CLASS, UNWANTED = -1, -2


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """N boxes of all sequences, in the order in which they were given."""

    sequence: Ints
    """Index into Dataset.sequences."""
    frame: Ints
    label: Ints
    """Index into Dataset.classes."""
    corners: Floats
    """Shape (N, 4): x1, y1, x2, y2 in pixels."""

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True, kw_only=True)
class GroundTruth(Boxes):
    track: Ints
    """Index into Dataset.tracks."""


@dataclass(frozen=True, kw_only=True)
class Detections(Boxes):
    score: Floats


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a metric works on."""

    sequences: list[Any]
    classes: list[Any]
    tracks: list[tuple[Any, Any]]
    """(sequence, track) as the caller named them."""
    ground_truth: GroundTruth
    detections: Detections
    ignored: Boxes
    """Boxes and, with label ANY_CLASS, regions; what lies there counts neither as hit nor as false alarm."""

    def key(self, boxes: Boxes, *, by_class: bool = True) -> Ints:
        """One number for sequence, frame and (unless the class does not matter) class; shape (N,)."""
        num_frames = 1 + max((int(b.frame.max()) for b in self._all() if len(b)), default=0)
        key = boxes.sequence * num_frames + boxes.frame
        return key * len(self.classes) + boxes.label if by_class else key

    def _all(self) -> tuple[Boxes, ...]:
        return self.ground_truth, self.detections, self.ignored


def load(
    ground_truth: Mapping[Any, Any],
    detections: Mapping[Any, Any],
    *,
    ignored: Mapping[Any, Any] | None = None,
    classes: Iterable[Any] | None = None,
    num_frames: Mapping[Any, int] | None = None,
) -> Dataset:
    """Check and convert what the public functions take.

    A sequence that detections lack is one in which nothing was detected. `classes` keeps those classes only,
    everywhere; without it a detection of a class that the ground truth never shows is a false alarm. `num_frames` holds
    the length of sequences: with it a frame beyond the end is an error. A region whose frame is None lies in every
    frame, one whose class is None is there for every class.

    Raises
    ------
    TypeError
        If the arguments are not mappings of sequences.
    ValueError
        For a malformed row, a box of negative size, a score or corner that is not a number, a frame that is not a
        whole number from 0 on, a track with two boxes in a frame or with two classes, a sequence without ground truth.
    """
    if isinstance(classes, str):
        raise TypeError(f"classes must be a list of classes, got the text {classes!r}")
    for name, value in (("ground_truth", ground_truth), ("detections", detections), ("ignored", ignored or {})):
        if not isinstance(value, Mapping):
            raise TypeError(f"{name} must be a dict {{sequence: rows}}, got {type(value).__name__}")
        strangers = [sequence for sequence in value if sequence not in ground_truth]
        if strangers:
            raise ValueError(
                f"{name} has the sequence {strangers[0]!r}, which ground_truth lacks; "
                "give it an empty list there if nothing is to be seen in it, or leave it out"
            )
    codes: dict[Any, int] = {} if classes is None else {label: code for code, label in enumerate(classes)}
    reader = _Reader(list(ground_truth), codes, fixed=classes is not None, num_frames=num_frames or {})
    boxes, tracks = reader.ground_truth(ground_truth)
    if not len(boxes) and reader.left_out:
        raise ValueError(f"classes must name classes of ground_truth, {list(reader.left_out)}, got {list(codes)}")
    num_true_classes = len(codes)
    found = reader.detections(detections)
    _check_class_types(list(codes), num_true_classes)
    left_out = reader.ignored(ignored or {}, found)
    return Dataset(
        sequences=reader.sequences,
        classes=list(codes),
        tracks=tracks,
        ground_truth=boxes,
        detections=found,
        ignored=left_out,
    )


@dataclass
class _Reader:
    """Turns rows into columns; class codes grow with what it meets unless they are fixed."""

    sequences: list[Any]
    codes: dict[Any, int]
    fixed: bool
    num_frames: Mapping[Any, int]
    left_out: dict[Any, None] = field(default_factory=dict)
    """Classes met that are not wanted."""

    def ground_truth(self, rows: Mapping[Any, Any]) -> tuple[GroundTruth, list[tuple[Any, Any]]]:
        parts, numbers = [], [np.empty(0, np.int64)]
        tracks: dict[tuple[Any, Any], int] = {}
        for sequence, columns, where in self._sequences("ground_truth", rows, GROUND_TRUTH_FIELDS):
            part, keep = self._boxes(sequence, columns[0], columns[2], columns[3:], where)
            frames = as_floats(columns[0], "frame", where).astype(np.int64).tolist()
            check_tracks(where, frames, as_list(columns[1]), as_list(columns[2]))
            own = [(sequence, track) for track, kept in zip(as_list(columns[1]), keep, strict=True) if kept]
            number = np.array([tracks.setdefault(track, len(tracks)) for track in own], np.int64)
            parts.append(part)
            numbers.append(number)
        return GroundTruth(**_join(parts), track=np.concatenate(numbers)), list(tracks)

    def detections(self, rows: Mapping[Any, Any]) -> Detections:
        parts, scores = [], [np.empty(0)]
        for sequence, columns, where in self._sequences("detections", rows, DETECTION_FIELDS):
            score = as_floats(columns[2], "score", where)
            part, keep = self._boxes(sequence, columns[0], columns[1], columns[3:], where, score=score)
            parts.append(part)
            scores.append(score[keep])
        return Detections(**_join(parts), score=np.concatenate(scores))

    def ignored(self, rows: Mapping[Any, Any], detections: Detections) -> Boxes:
        parts = []
        for sequence, columns, where in self._sequences("ignored", rows, IGNORED_FIELDS):
            everywhere = [frame is None for frame in as_list(columns[0])]
            frames = [0 if frame is None else frame for frame in as_list(columns[0])]
            part, keep = self._boxes(sequence, frames, columns[1], columns[2:], where, regions=True)
            frames_seen = np.unique(detections.frame[detections.sequence == self.sequences.index(sequence)])
            parts.append(_in_every_frame(part, np.array(everywhere, bool)[keep], frames_seen))
        return Boxes(**_join(parts))

    def _sequences(self, name: str, rows: Mapping[Any, Any], fields: tuple[str, ...]) -> Iterable[tuple[Any, Any, Any]]:
        for sequence, own in rows.items():
            columns = _transpose(own, fields, f"{name}[{sequence!r}]")
            if columns:
                yield sequence, columns, lambda row, at=f"{name}[{sequence!r}]": f"{at} row {row}"

    def _boxes(
        self,
        sequence: Any,
        frames: Any,
        labels: Any,
        corners: Any,
        where: Callable[[int], str],
        *,
        score: Floats | None = None,
        regions: bool = False,
    ) -> tuple[Boxes, Bools]:
        """Boxes of one sequence whose class is wanted, and which of the rows these are."""
        frame = as_floats(frames, "frame", where)
        sides = np.stack([as_floats(c, n, where) for c, n in zip(corners, ("x1", "y1", "x2", "y2"), strict=True)], 1)
        check_rows(where, frame, sides, score, self.num_frames.get(sequence))
        named = as_list(labels)
        if not regions and None in named:
            raise ValueError(f"{where(named.index(None))}: class must be a number or a text, got None")
        label = np.array([self._code(label) for label in named], np.int64)
        keep = label != UNWANTED
        index = np.full(int(keep.sum()), self.sequences.index(sequence), np.int64)
        return Boxes(sequence=index, frame=frame[keep].astype(np.int64), label=label[keep], corners=sides[keep]), keep

    def _code(self, label: Any) -> int:
        if label is None:
            return ANY_CLASS
        if self.fixed and label not in self.codes:
            self.left_out[label] = None
            return UNWANTED
        return self.codes.setdefault(label, len(self.codes))


def check_rows(
    where: Callable[[int], str], frame: Floats, corners: Floats, score: Floats | None = None, length: int | None = None
) -> None:
    """Raise ValueError for the first row that no metric can use; `where(row)` says where it stands."""
    faults: list[tuple[Any, Callable[[int], str]]] = [
        (
            ~((frame >= 0) & (frame == np.floor(frame)) & (frame < 2.0**53)),
            lambda i: f"frame must be a whole number from 0 on, got {frame[i]:g}",
        ),
        (
            ~np.isfinite(corners).all(axis=1),
            lambda i: f"corners must be finite numbers, got {_text(corners[i])}",
        ),
        (
            (corners[:, 2] < corners[:, 0]) | (corners[:, 3] < corners[:, 1]),
            lambda i: f"a box must have x1 <= x2 and y1 <= y2, got {_text(corners[i])}",
        ),
    ]
    if score is not None:
        faults.append((np.isnan(score), lambda i: "score must be a number, got nan"))
    if length is not None:
        faults.append(
            (frame >= length, lambda i: f"frame {frame[i]:g} lies beyond the end, the sequence has {length} frames")
        )
    bad = [(int(np.argmax(mask)), text) for mask, text in faults if mask.any()]
    if bad:
        row, text = min(bad, key=lambda fault: fault[0])
        raise ValueError(f"{where(row)}: {text(row)}")


def check_tracks(where: Callable[[int], str], frames: list[int], tracks: list[Any], labels: list[Any]) -> None:
    """Raise ValueError for the first row that gives a track a second box in a frame, or another class."""
    seen: set[tuple[Any, Any]] = set()
    known: dict[Any, Any] = {}
    for i, (frame, track, label) in enumerate(zip(frames, tracks, labels, strict=True)):
        if (frame, track) in seen:
            raise ValueError(
                f"{where(i)}: track {track!r} has a second box in frame {frame}; give objects tracks of their own"
            )
        if known.setdefault(track, label) != label:
            raise ValueError(
                f"{where(i)}: track {track!r} changes class, from {known[track]!r} to {label!r}; "
                "give each class a track of its own"
            )
        seen.add((frame, track))


def as_floats(column: Any, name: str, where: Callable[[int], str]) -> Floats:
    """A column as float64; ValueError for the first value that is not a number."""
    try:
        return np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError):
        row, value = next((i, v) for i, v in enumerate(as_list(column)) if not is_number(v))
        raise ValueError(f"{where(row)}: {name} must be a number, got {value!r}") from None


def as_list(column: Any) -> list[Any]:
    """The values of a column, or the rows of a table, as Python objects; arrays and tensors become lists."""
    return np.asarray(column).tolist() if hasattr(column, "__array__") else list(column)


def is_number(value: Any) -> bool:
    """Whether a value, or the number that a text spells, can be a float."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _transpose(rows: Any, fields: tuple[str, ...], where: str) -> list[Any]:
    """Columns of one sequence's rows; an empty list where there is no row."""
    expected = f"must hold rows of {len(fields)} values ({', '.join(fields)})"
    if hasattr(rows, "__array__"):
        array = np.asarray(rows)
        if array.size == 0:
            return []
        if array.ndim == 2 and array.shape[1] >= len(fields):
            return list(array.T[: len(fields)])
        rows = array.tolist()
        if array.dtype.names is None:
            raise ValueError(f"{where} {expected}, got an array of shape {array.shape}")
    rows = list(rows)
    for i, row in enumerate(rows):
        if not hasattr(row, "__len__") or isinstance(row, str) or len(row) < len(fields):
            raise ValueError(f"{where} {expected}, got {row!r} in row {i}")
    return list(zip(*rows, strict=False))[: len(fields)]


def _join(parts: list[Boxes]) -> dict[str, Any]:
    return {
        "sequence": np.concatenate([np.empty(0, np.int64), *(p.sequence for p in parts)]),
        "frame": np.concatenate([np.empty(0, np.int64), *(p.frame for p in parts)]),
        "label": np.concatenate([np.empty(0, np.int64), *(p.label for p in parts)]),
        "corners": np.concatenate([np.empty((0, 4)), *(p.corners for p in parts)]),
    }


def _in_every_frame(boxes: Boxes, everywhere: Bools, frames: Ints) -> Boxes:
    """Repeat the boxes that lie everywhere for each of these frames."""
    index = np.concatenate([np.flatnonzero(~everywhere), np.repeat(np.flatnonzero(everywhere), len(frames))])
    frame = np.concatenate([boxes.frame[~everywhere], np.tile(frames, int(everywhere.sum()))])
    return Boxes(sequence=boxes.sequence[index], frame=frame, label=boxes.label[index], corners=boxes.corners[index])


def _check_class_types(classes: list[Any], num_true: int) -> None:
    """Numbers on one side and texts on the other would match nothing, without a word."""
    true, other = classes[:num_true], classes[num_true:]
    if true and other and len({isinstance(label, str) for label in true}) == 1:
        strange = [label for label in other if isinstance(label, str) != isinstance(true[0], str)]
        if strange:
            raise ValueError(
                f"detections name the class {strange[0]!r} ({type(strange[0]).__name__}) where ground_truth has "
                f"{true[0]!r} ({type(true[0]).__name__}); use numbers or names in both"
            )


def _text(corners: Floats) -> str:
    return "(" + ", ".join(f"{c:g}" for c in corners) + ")"
