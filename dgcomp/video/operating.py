"""Score thresholds at which a detector is judged: so many false alarms a box, or so much precision."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dgcomp.video.columns import Bools, Floats, Ints

FALSE_POSITIVE_RATIOS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""False alarms per box of ground truth at which average delay is taken (VMetrics, eval_map_ad.py)."""


@dataclass(frozen=True, kw_only=True)
class OperatingPoints:
    """A points; a detection counts where its score >= threshold."""

    thresholds: Floats
    reached_ratios: Floats
    """False alarms a box that there really are at each threshold."""
    saturated: Bools
    """The detector has fewer false alarms than asked for: all its detections count, and more would be allowed."""


def check_ratios(ratios: Sequence[float] | Floats) -> Floats:
    """The false-positive ratios as an array; ValueError if there is none or one is not positive."""
    values = np.atleast_1d(np.asarray(ratios, np.float64))
    if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"false_positive_ratios must be positive numbers, got {ratios!r}")
    return values


def official_points(score: Floats, false_positive: Bools, num_boxes: int, ratios: Floats) -> OperatingPoints:
    """Thresholds of the published code: the score of the first detection at which the ratio exceeds the target.

    So the target is overshot by that detection and its equals; where it is never exceeded the threshold is 0, which
    leaves out negative scores.
    """
    order = np.argsort(-score, kind="stable")
    ratio = np.cumsum(false_positive[order]) / num_boxes
    first = np.searchsorted(ratio, ratios, side="right")
    saturated = first == len(ratio)
    thresholds = np.append(score[order], 0.0)[first]
    return _points(thresholds, saturated, score, false_positive, num_boxes)


def exact_points(score: Floats, false_positive: Bools, num_boxes: int, ratios: Floats) -> OperatingPoints:
    """The lowest thresholds at which the ratio does not exceed the target; detections of equal score go together.

    -inf where all detections may count, inf where not even those of the best score may.
    """
    levels, false = _levels(score, false_positive)
    allowed = np.searchsorted(np.cumsum(false) / num_boxes, ratios, side="right")
    thresholds = np.concatenate([[np.inf], levels])[allowed]
    thresholds[allowed == len(levels)] = -np.inf
    saturated = false.sum() / num_boxes < ratios
    return _points(thresholds, saturated, score, false_positive, num_boxes)


def precision_point(
    score: Floats, label: Ints, true_positive: Bools, false_positive: Bools, precision: float
) -> tuple[float, float, bool]:
    """The lowest threshold whose precision, averaged over the classes detected there, still is at least `precision`.

    Precision is cumulative: of all detections above the threshold. It need not fall as the threshold does, hence
    "lowest". Returns threshold, precision there, and whether all detections are taken. (inf, nan, False) where no
    threshold will do.
    """
    order = np.argsort(-score, kind="stable")
    order = order[(true_positive | false_positive)[order]]
    change = np.zeros(len(order))
    classes = np.zeros(len(order))
    for one in np.unique(label[order]):
        own = np.flatnonzero(label[order] == one)
        hits = np.cumsum(true_positive[order][own])
        change[own] = np.diff(hits / np.arange(1, len(own) + 1), prepend=0.0)
        classes[own[0]] = 1
    mean = np.cumsum(change) / np.cumsum(classes)
    last_of_level = np.append(score[order][1:] != score[order][:-1], True)[: len(order)]
    # the sum of changes is exact to about 1e-13; a precision of exactly 0.8 must pass for 0.8
    good = np.flatnonzero(last_of_level & (mean >= precision - 1e-9))
    if not len(good):
        return np.inf, np.nan, False
    everything = good[-1] == len(order) - 1
    return (-np.inf if everything else float(score[order][good[-1]])), float(mean[good[-1]]), bool(everything)


def _levels(score: Floats, false_positive: Bools) -> tuple[Floats, Ints]:
    """The different scores from the best down, and the number of false alarms at each."""
    levels, inverse = np.unique(-score, return_inverse=True)
    return -levels, np.bincount(inverse[false_positive], minlength=len(levels)).astype(np.int64)


def _points(
    thresholds: Floats, saturated: Bools, score: Floats, false_positive: Bools, num_boxes: int
) -> OperatingPoints:
    false_scores = np.sort(score[false_positive])
    above = len(false_scores) - np.searchsorted(false_scores, thresholds, side="left")
    return OperatingPoints(thresholds=thresholds, reached_ratios=above / num_boxes, saturated=saturated)
