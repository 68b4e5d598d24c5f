"""Mean delay (mD): how late objects are first detected at a given precision.

A reconstruction of the metric of Mao et al., "CaTDet" (MLSys 2019, arXiv 1810.00434), of which no code is public.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgcomp.video.aggregate import Mode, mean_delays
from dgcomp.video.columns import Bools, Floats
from dgcomp.video.difficulty import Difficulty
from dgcomp.video.evaluation import Evaluation, evaluate
from dgcomp.video.operating import precision_point
from dgcomp.video.tracks import ImageSize, Tracks


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanDelayResult:
    """Delays of T objects at one precision, in frames."""

    mean_delay: float
    """mD: the mean over classes of the class's mean delay."""
    class_delays: dict[Any, float]
    class_thresholds: dict[Any, float]
    precision: float
    """Precision at the threshold, the mean over classes; nan where no threshold reaches what was asked for."""
    saturated: bool
    """All detections count and the precision is not below what was asked for."""
    reached: bool
    """False: no threshold is precise enough, and nothing counts as detected."""
    track_delays: Floats = field(repr=False)
    """Shape (T,)."""
    detected: Bools = field(repr=False)
    tracks: Tracks = field(repr=False)
    mode: Mode
    window: int | None

    def __float__(self) -> float:
        return self.mean_delay


def mean_delay(
    ground_truth: Mapping[Any, Any],
    detections: Mapping[Any, Any],
    precision: float = 0.8,
    mode: Mode = "exact",
    *,
    per_class: bool = False,
    iou_threshold: float | Mapping[Any, float] = 0.5,
    window: int | None = None,
    classes: Iterable[Any] | None = None,
    ignored: Mapping[Any, Any] | None = None,
    difficulty: Difficulty | str | None = None,
    num_frames: Mapping[Any, int] | None = None,
    image_size: ImageSize | Mapping[Any, ImageSize] | None = None,
) -> MeanDelayResult:
    """Mean delay (mD): how many frames an object waits, at the lowest threshold that still has the precision.

    Precision is that of all detections above the threshold, averaged over the classes of the ground truth; mD is the
    mean over classes of the mean delay of a class's objects. Other arguments and errors as in `average_delay`;
    "official" is the published average delay's matching and clock. Nothing is clipped unless a window is given.

    Parameters
    ----------
    precision : float in (0, 1]
    per_class : bool
        A threshold for each class, at which that class has the precision, instead of one for all.
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision must lie in (0, 1], got {precision!r}")
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
    points = _points(one, precision, per_class=per_class)
    names = one.data.classes
    thresholds = {names[code]: point[0] for codes, point in points for code in codes}
    delays, detected = _delays(one, np.array([thresholds[label] for label in one.tracks.label]))
    class_delays = _class_delays(one, delays, detected, mode, window)
    return MeanDelayResult(
        mean_delay=float(np.mean(list(class_delays.values()))),
        class_delays=class_delays,
        class_thresholds=thresholds,
        precision=float(np.mean([point[1] for _, point in points])),
        saturated=all(point[2] for _, point in points),
        reached=all(np.isfinite(point[1]) for _, point in points),
        track_delays=delays,
        detected=detected,
        tracks=one.tracks,
        mode=mode,
        window=window,
    )


def _points(
    one: Evaluation, precision: float, *, per_class: bool
) -> list[tuple[NDArray[np.int64], tuple[float, float, bool]]]:
    """Classes of the ground truth that share a threshold, and their threshold, its precision and whether saturated."""
    found = one.data.detections
    codes = np.unique(one.data.ground_truth.label)
    points = []
    for group in [codes[i : i + 1] for i in range(len(codes))] if per_class else [codes]:
        own = np.isin(found.label, group)
        hit, false = one.matches.true_positive[own], one.matches.false_positive[own]
        points.append((group, precision_point(found.score[own], found.label[own], hit, false, precision)))
    return points


def _class_delays(one: Evaluation, delays: Floats, detected: Bools, mode: Mode, window: int | None) -> dict[Any, float]:
    """Mean delay of each class's objects."""
    class_delays = {}
    for label in dict.fromkeys(one.tracks.label):
        own = np.array([label == other for other in one.tracks.label])
        mean = mean_delays(delays[None, own], detected[None, own], mode=mode, window=window)
        class_delays[label] = float(mean[0])
    return class_delays


def _delays(one: Evaluation, thresholds: Floats) -> tuple[Floats, Bools]:
    """Delay and detection of each object at a threshold of its own; all of shape (T,)."""
    levels, level = np.unique(thresholds, return_inverse=True)
    delays, detected = one.delays_at(levels)
    each = np.arange(len(thresholds))
    return delays[level, each], detected[level, each]
