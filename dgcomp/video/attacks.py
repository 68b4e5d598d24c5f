"""Changes to detections that average precision and average delay must answer differently: tests of a metric.

Both experiments are those of Mao et al., arXiv 1908.06368, as described by their published scripts.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dgcomp.video.columns import Bools, Dataset, DetectionRows, Floats, Ints, as_list, load
from dgcomp.video.matching import best_boxes, thresholds_of
from dgcomp.video.tracks import Tracks, collect_tracks, delays_at

BOOST_AFTER_DETECTION_FRAMES = 10
BOOST_AFTER_APPEARANCE_FRAMES = 30


def retardation(
    ground_truth: Mapping[Any, Any],
    detections: Mapping[Any, Any],
    times: int = 1,
    *,
    iou_threshold: float | Mapping[Any, float] = 0.5,
) -> DetectionRows:
    """Detections that see every object later: the first that show it get score 0, `times` times over.

    The delay grows by about a frame a pass; average precision hardly notices. All detections that show an object in its
    first detected frame go, and the score is 0 or the lowest there is, so that detectors with negative scores lose
    theirs as well (the published script takes one detection, and 0).

    Raises
    ------
    ValueError
        If times is negative, and for malformed rows.
    """
    if times < 0:
        raise ValueError(f"times must not be negative, got {times!r}")
    data = load(ground_truth, detections)
    showing, box = _showing(data, iou_threshold)
    tracks = collect_tracks(data)
    score = data.detections.score.copy()
    lowest = min(0.0, float(score.min(initial=0.0)))
    for _ in range(times):
        alive = showing & (score > lowest)
        place, first = _first_seen(data, tracks, alive, box)
        rows = np.flatnonzero(alive)
        score[rows[place[box[rows]] == first[box[rows]]]] = lowest
    return _with_scores(detections, score)


def tail_boost(
    ground_truth: Mapping[Any, Any],
    detections: Mapping[Any, Any],
    *,
    min_score: float = 0.2,
    iou_threshold: float | Mapping[Any, float] = 0.5,
) -> DetectionRows:
    """Detections that are sure of what they have long seen: late ones that show an object get score 1.

    Late is 10 frames after its first detection with at least `min_score`, or 30 frames after it appeared. Average
    precision rises; the delay does not get better. The score is 1 or the highest there is.
    """
    data = load(ground_truth, detections)
    showing, box = _showing(data, iou_threshold)
    tracks = collect_tracks(data)
    score = data.detections.score.copy()
    alive = showing & (score >= min_score)
    _, first = _first_seen(data, tracks, alive, box)
    appeared = np.empty(len(data.ground_truth), np.int64)
    appeared[tracks.box] = np.repeat(tracks.first_frame, tracks.num_boxes)
    rows = np.flatnonzero(alive)
    frame = data.detections.frame[rows]
    late = frame - tracks.frame[first[box[rows]]] >= BOOST_AFTER_DETECTION_FRAMES
    late |= frame - appeared[box[rows]] >= BOOST_AFTER_APPEARANCE_FRAMES
    score[rows[late]] = max(1.0, float(score.max(initial=0.0)))
    return _with_scores(detections, score)


def _showing(data: Dataset, iou_threshold: float | Mapping[Any, float]) -> tuple[Bools, Ints]:
    """Which detections show an object, taken or not, and in which box."""
    box, overlap = best_boxes(data, data.ground_truth)
    return overlap > thresholds_of(data, iou_threshold), box


def _first_seen(data: Dataset, tracks: Tracks, alive: Bools, box: Ints) -> tuple[Ints, Ints]:
    """For each box its place among the objects' boxes, and the place where its object is first seen (M: never)."""
    shown = np.full(len(data.ground_truth), np.nan)
    shown[box[alive]] = 1.0
    delays, detected = delays_at(tracks, shown, np.array([1.0]), "boxes")
    first = np.where(detected[0], tracks.start + delays[0].astype(np.int64), len(tracks.box))
    place, of_box = np.empty(len(shown), np.int64), np.empty(len(shown), np.int64)
    place[tracks.box] = np.arange(len(tracks.box))
    of_box[tracks.box] = np.repeat(first, tracks.num_boxes)
    return place, of_box


def _with_scores(detections: Mapping[Any, Any], score: Floats) -> DetectionRows:
    scores = iter(score.tolist())
    return {
        sequence: [(*row[:2], next(scores), *row[3:]) for row in as_list(rows)] for sequence, rows in detections.items()
    }
