"""Average delay (AD): how late objects are first detected at given rates of false alarms.

After Mao et al., "A Delay Metric for Video Object Detection: What Average Precision Fails to Tell" (ICCV 2019, arXiv
1908.06368), in the form of its authors' code (VMetrics).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dgcomp.video.aggregate import WINDOW, Mode, harmonic_delay, mean_delays
from dgcomp.video.average_precision import VOCPrecision, voc_precision
from dgcomp.video.columns import Bools, Floats
from dgcomp.video.difficulty import Difficulty
from dgcomp.video.evaluation import Evaluation, evaluate
from dgcomp.video.operating import FALSE_POSITIVE_RATIOS, check_ratios, exact_points, official_points
from dgcomp.video.streaming import LatencyMs, as_streamed, lengths
from dgcomp.video.tracks import ImageSize, Tracks

DEFECTS = {
    "last frame": "the last frame of every sequence is left out of the delays, objects that live there alone vanish",
    "zero threshold": "where a target is never exceeded the threshold is 0: detectors with negative scores are cut off",
    "overshoot": "the threshold is the score at which the false alarms exceed the target, not the last at which they "
    "do not",
    "two IoU conventions": "for false alarms boxes are a pixel larger and IoU must be >= 0.5, for delays plainly > 0.5",
    "many to one": "a detection shows its object also where another has taken it and it counts as a false alarm",
    "missed as detected": "an object that is never detected counts as one detected in its last frame: 0 if it has one",
    "gaps": "frames in which an object has no box count as waiting",
    "single precision": "means are taken in 32 bits",
}
"""What mode "official" repeats and mode "exact" mends, each with its name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DelayResult:
    """Delays of T objects at A operating points, in frames."""

    average_delay: float
    """AD."""
    delays: Floats
    """Shape (A,): the mean delay at each operating point."""
    false_positive_ratios: Floats
    """Shape (A,): false alarms per box of ground truth that were asked for."""
    thresholds: Floats
    """Shape (A,): a detection counts where its score is at least this."""
    reached_ratios: Floats
    """Shape (A,): false alarms per box that there are at the thresholds."""
    saturated: Bools
    """Shape (A,): the detector has fewer false alarms than asked for, even with all its detections."""
    track_delays: Floats = field(repr=False)
    """Shape (A, T), not clipped; of an object never detected, how long it was there."""
    detected: Bools = field(repr=False)
    """Shape (A, T)."""
    tracks: Tracks = field(repr=False)
    precision: VOCPrecision
    """Average precision by class, from the same matching."""
    mode: Mode
    window: int | None
    num_boxes: int
    num_detections: int
    max_false_positive_ratio: float
    frame_rate_hz: float | None = None

    @property
    def average_delay_ms(self) -> float:
        """AD in milliseconds."""
        return self.average_delay * self._frame_ms()

    @property
    def delays_ms(self) -> Floats:
        """Shape (A,)."""
        return self.delays * self._frame_ms()

    def _frame_ms(self) -> float:
        if self.frame_rate_hz is None:
            raise ValueError("a delay in milliseconds needs the frame rate: average_delay(..., frame_rate_hz=30)")
        return 1000 / self.frame_rate_hz

    def __float__(self) -> float:
        return self.average_delay


def average_delay(
    ground_truth: Mapping[Any, Any],
    detections: Mapping[Any, Any],
    mode: Mode = "official",
    *,
    false_positive_ratios: Sequence[float] | Floats = FALSE_POSITIVE_RATIOS,
    iou_threshold: float | Mapping[Any, float] = 0.5,
    window: int | None = WINDOW,
    classes: Iterable[Any] | None = None,
    ignored: Mapping[Any, Any] | None = None,
    difficulty: Difficulty | str | None = None,
    num_frames: Mapping[Any, int] | None = None,
    image_size: ImageSize | Mapping[Any, ImageSize] | None = None,
    frame_rate_hz: float | None = None,
    latency_ms: LatencyMs | None = None,
) -> DelayResult:
    """Average delay: how many frames an object waits for its first detection, at set rates of false alarms.

    At each ratio one threshold, the same for all classes and sequences, is taken; each object's delay is clipped at
    `window`; D is their mean, and AD = 1 / mean(1 / (D + 1)) - 1 over the ratios.

    Parameters
    ----------
    ground_truth : {sequence: rows of (frame, track, class, x1, y1, x2, y2)}
        Lists, tuples or arrays. Frames from 0, corners in pixels.
    detections : {sequence: rows of (frame, class, score, x1, y1, x2, y2)}
        A sequence that is not there has no detections.
    mode : {"official", "exact", "censored"}
        "official" repeats the published code, defects included, to the last bit. "exact" mends what `DEFECTS` names: in
        it an object that is never detected waited for as many frames as it was there. That is a lower bound;
        "censored" takes it for what it is, a wait that was cut off, and gives the restricted mean of the
        Kaplan-Meier curve at `window`.
    false_positive_ratios : shape (A,)
        False alarms per box of ground truth.
    iou_threshold : float in (0, 1], or {class: float}
    window : int, frames; None clips nothing
    classes : optional
        Keeps these classes on both sides. Without it detections of other classes are false alarms.
    ignored : {sequence: rows of (frame, class, x1, y1, x2, y2)}, optional
        Detections there count neither way. Class None: a region for any class, which takes a detection of which half
        lies in it. Frame None: there in every frame.
    difficulty : optional
        "easy", "moderate", "hard" or a `Difficulty`: harder boxes become ignored ones.
    num_frames : {sequence: int}, optional
        With it a detection or box beyond the end is an error; without it such detections are false alarms.
    image_size : (width, height) or {sequence: (width, height)}, pixels, optional
        Tells objects that enter at the border from those that appear inside.
    frame_rate_hz, latency_ms : optional
        With the frame rate, `average_delay_ms` is there. With the compute latency as well (milliseconds, or an array
        for each sequence), detections are those of the newest frame finished by each frame's time (`as_streamed`).

    Raises
    ------
    ValueError, TypeError
        For arguments out of range and for malformed rows, naming sequence and row (see `columns.load`).
    """
    ratios = check_ratios(false_positive_ratios)
    if latency_ms is not None:
        detections = _streamed(ground_truth, detections, latency_ms, frame_rate_hz, num_frames)
    one = evaluate(
        ground_truth,
        detections,
        mode,
        window=window,
        iou_threshold=iou_threshold,
        classes=classes,
        ignored=ignored,
        difficulty=difficulty,
        num_frames=num_frames,
        image_size=image_size,
    )
    return _at_ratios(one, mode, ratios, window, frame_rate_hz)


def _streamed(
    ground_truth: Mapping[Any, Any],
    detections: Mapping[Any, Any],
    latency_ms: LatencyMs,
    frame_rate_hz: float | None,
    num_frames: Mapping[Any, int] | None,
) -> Mapping[Any, Any]:
    if frame_rate_hz is None:
        raise ValueError("latency_ms needs frame_rate_hz, the number of frames a second")
    known = lengths(ground_truth, detections) | dict(num_frames or {})
    return as_streamed(detections, latency_ms=latency_ms, frame_rate_hz=frame_rate_hz, num_frames=known)


def _at_ratios(
    one: Evaluation, mode: Mode, ratios: Floats, window: int | None, frame_rate_hz: float | None
) -> DelayResult:
    """Delays at the thresholds of the false-positive ratios [A]."""
    score, false_positive = one.data.detections.score, one.matches.false_positive
    num_boxes = len(one.data.ground_truth)
    choose = official_points if mode == "official" else exact_points
    points = choose(score, false_positive, num_boxes, ratios)
    delays, detected = one.delays_at(points.thresholds)
    means = mean_delays(delays, detected, mode=mode, window=window)
    return DelayResult(
        average_delay=float(harmonic_delay(means)),
        delays=means.astype(np.float64),
        false_positive_ratios=ratios,
        thresholds=points.thresholds,
        reached_ratios=points.reached_ratios,
        saturated=points.saturated,
        track_delays=delays,
        detected=detected,
        tracks=one.tracks,
        precision=voc_precision(one.data, one.matches),
        mode=mode,
        window=window,
        num_boxes=num_boxes,
        num_detections=len(score),
        max_false_positive_ratio=float(false_positive.sum() / num_boxes),
        frame_rate_hz=frame_rate_hz,
    )
