"""Detections as a consumer in real time sees them, while the detector is still busy with an older frame.

Streaming evaluation after Li et al., "Towards Streaming Perception" (ECCV 2020): at each frame's time the newest
finished output counts. It measures what computing costs; average delay measures what the detector misses. On streamed
detections average delay measures both.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from dgcomp.video.columns import DetectionRows, Floats, as_list

LatencyMs: TypeAlias = float | Mapping[Any, Sequence[float] | Floats]

ROUNDING_FRAMES = 1e-9
"""A result due at a frame's time is there in time, whatever the last bit says."""


def as_streamed(
    detections: Mapping[Any, Any], *, latency_ms: LatencyMs, frame_rate_hz: float, num_frames: Mapping[Any, int]
) -> DetectionRows:
    """Detections of the newest frame finished by each frame's time, as detections of that frame.

    Parameters
    ----------
    detections : {sequence: rows of (frame, class, score, x1, y1, x2, y2)}
        What the detector would find in each frame, had it the time to look at it.
    latency_ms : float, or {sequence: one value for each frame}
        How long a frame takes.
    frame_rate_hz : float
    num_frames : {sequence: int}
        Length of each sequence; results that come later are seen by nobody.

    Raises
    ------
    ValueError
        If rate or latencies are not positive (latency may be 0), or a sequence has too few latencies.
    """
    if not (frame_rate_hz > 0 and math.isfinite(frame_rate_hz)):
        raise ValueError(f"frame_rate_hz must be positive, got {frame_rate_hz!r}")
    streamed: DetectionRows = {}
    for sequence, rows in detections.items():
        own = latency_ms[sequence] if isinstance(latency_ms, Mapping) else latency_ms
        latency_frames = _latencies(own, sequence, num_frames[sequence]) * frame_rate_hz / 1000
        by_frame: dict[int, list[Any]] = {}
        for row in as_list(rows):
            by_frame.setdefault(int(row[0]), []).append(row)
        streamed[sequence] = [
            (frame, *row[1:])
            for frame, shown in enumerate(newest_finished(latency_frames))
            for row in by_frame.get(int(shown), ())
        ]
    return streamed


def newest_finished(latency_frames: Floats) -> list[int]:
    """For each frame the newest frame whose result is there at its time, -1 for none yet.

    One processor takes the newest frame whenever it is free. `latency_frames`, shape (F,), is what each frame costs in
    frame periods.
    """
    num_frames = len(latency_frames)
    shown = [-1] * num_frames
    frame, start = 0, 0.0
    while frame < num_frames:
        finish = start + float(latency_frames[frame])
        visible = math.ceil(finish - ROUNDING_FRAMES)
        if visible >= num_frames:
            break
        shown[visible] = frame
        newest = math.floor(finish + ROUNDING_FRAMES)
        start = max(finish, float(frame + 1))
        frame = max(newest, frame + 1)
    return np.maximum.accumulate(np.array(shown, np.int64)).tolist() if num_frames else []


def lengths(ground_truth: Mapping[Any, Any], detections: Mapping[Any, Any]) -> dict[Any, int]:
    """The least number of frames that each sequence must have."""
    longest = {}
    for sequence in {**ground_truth, **detections}:
        frames = [int(row[0]) for part in (ground_truth, detections) for row in as_list(part.get(sequence, ()))]
        longest[sequence] = 1 + max(frames, default=-1)
    return longest


def _latencies(latency_ms: Any, sequence: Any, num_frames: int) -> Floats:
    values = np.asarray(latency_ms, np.float64)
    if values.ndim == 0:
        values = np.full(num_frames, float(values))
    if len(values) < num_frames:
        raise ValueError(
            f"latency_ms[{sequence!r}] must have a value for each of {num_frames} frames, got {len(values)}"
        )
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"latency_ms must be finite numbers from 0 on, got {latency_ms!r} for {sequence!r}")
    return values[:num_frames]
