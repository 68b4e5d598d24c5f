"""Which detection shows which object, by the published convention and by one without its defects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from dgcomp.video.columns import ANY_CLASS, Bools, Boxes, Dataset, Floats, Ints

REGION_SHARE = 0.5
"""A detection of which this share lies in a region to be ignored is ignored (KITTI's rule for "DontCare")."""


@dataclass(frozen=True, kw_only=True)
class Matches:
    """What became of N detections and M boxes of ground truth."""

    true_positive: Bools
    """Shape (N,)."""
    ignored: Bools
    """Shape (N,): neither a hit nor a false alarm."""
    box_score: Floats
    """Shape (M,): the highest score of a detection that shows the box; nan where none does."""

    @property
    def false_positive(self) -> Bools:
        return ~(self.true_positive | self.ignored)


def match_official(data: Dataset, iou_threshold: float | Mapping[Any, float]) -> Matches:
    """Match as the published code does, with its two conventions.

    For hits and false alarms (VMetrics, ap.py): boxes are one pixel wider and higher than their corners say, a
    detection goes to the box of its class that it overlaps most, needs IoU >= threshold, and the best score takes it.
    For delays (delay.py): no such pixel, IoU > threshold, and every detection shows its box, be it taken or not.
    """
    threshold = thresholds_of(data, iou_threshold)
    box, overlap = best_boxes(data, data.ground_truth, extra_px=1.0)
    true_positive = _first_takes(np.where(overlap >= threshold, box, -1), data.detections.score)
    box, overlap = best_boxes(data, data.ground_truth)
    showing = overlap > threshold
    box_score = np.full(len(data.ground_truth), np.nan)
    np.fmax.at(box_score, box[showing], data.detections.score[showing])
    return Matches(
        true_positive=true_positive,
        ignored=~true_positive & _lies_in_ignored(data, threshold),
        box_score=box_score,
    )


def match_exact(data: Dataset, iou_threshold: float | Mapping[Any, float]) -> Matches:
    """Match one to one with one convention: IoU >= threshold, the best score takes the box and alone shows it."""
    threshold = thresholds_of(data, iou_threshold)
    box, overlap = best_boxes(data, data.ground_truth)
    true_positive = _first_takes(np.where(overlap >= threshold, box, -1), data.detections.score)
    box_score = np.full(len(data.ground_truth), np.nan)
    box_score[box[true_positive]] = data.detections.score[true_positive]
    return Matches(
        true_positive=true_positive,
        ignored=~true_positive & _lies_in_ignored(data, threshold),
        box_score=box_score,
    )


def thresholds_of(data: Dataset, iou_threshold: float | Mapping[Any, float]) -> Floats:
    """The IoU threshold of each detection, shape (N,); ValueError outside (0, 1] or for a class without one."""
    if isinstance(iou_threshold, Mapping):
        missing = [label for label in data.classes if label not in iou_threshold]
        if missing:
            raise ValueError(f"iou_threshold has no value for the class {missing[0]!r}, only for {list(iou_threshold)}")
        by_class = [float(iou_threshold[label]) for label in data.classes]
    else:
        by_class = [float(iou_threshold)] * len(data.classes)
    for value in by_class:
        if not 0 < value <= 1:
            raise ValueError(f"iou_threshold must lie in (0, 1], got {value:g}")
    return np.array(by_class, np.float64)[data.detections.label]


def best_boxes(data: Dataset, boxes: Boxes, *, extra_px: float = 0.0) -> tuple[Ints, Floats]:
    """For each detection the box of its sequence, frame and class that it overlaps most, and their IoU.

    -1 and 0 where it touches none. Of equals the first counts. `extra_px` is added to every width and height.
    """
    order, first, last = _ranges(data.key(data.detections), data.key(boxes))
    index, overlap = _best_iou(data.detections.corners, boxes.corners[order], first, last, extra_px)
    return np.where(index >= 0, order[index] if len(order) else index, -1), overlap


def _first_takes(box: Ints, score: Floats) -> Bools:
    """Which detections come first, by score, at the box that each goes to (-1: at none)."""
    order = np.argsort(-score, kind="stable")
    order = order[box[order] >= 0]
    taken = np.zeros(len(box), bool)
    taken[order[np.unique(box[order], return_index=True)[1]]] = True
    return taken


def _lies_in_ignored(data: Dataset, threshold: Floats) -> Bools:
    """Whether each detection overlaps a box to be ignored, or lies in a region to be ignored."""
    region = data.ignored.label == ANY_CLASS
    _, overlap = best_boxes(data, _subset(data.ignored, ~region))
    regions = _subset(data.ignored, region)
    order, first, last = _ranges(data.key(data.detections, by_class=False), data.key(regions, by_class=False))
    share = _largest_share(data.detections.corners, regions.corners[order], first, last)
    return (overlap >= threshold) | (share >= REGION_SHARE)


def _subset(boxes: Boxes, keep: Bools) -> Boxes:
    return Boxes(
        sequence=boxes.sequence[keep], frame=boxes.frame[keep], label=boxes.label[keep], corners=boxes.corners[keep]
    )


def _ranges(query_key: Ints, box_key: Ints) -> tuple[Ints, Ints, Ints]:
    """Order of the boxes by key, and for each query the range in that order of the boxes with its key."""
    order = np.argsort(box_key, kind="stable")
    ordered = box_key[order]
    return order, np.searchsorted(ordered, query_key, "left"), np.searchsorted(ordered, query_key, "right")


@numba.njit(cache=True, nogil=True)
def _best_iou(queries: Floats, boxes: Floats, first: Ints, last: Ints, extra_px: float) -> tuple[Ints, Floats]:
    index = np.full(len(queries), -1, np.int64)
    overlap = np.zeros(len(queries))
    for i in range(len(queries)):
        for j in range(first[i], last[i]):
            width = min(queries[i, 2], boxes[j, 2]) - max(queries[i, 0], boxes[j, 0]) + extra_px
            height = min(queries[i, 3], boxes[j, 3]) - max(queries[i, 1], boxes[j, 1]) + extra_px
            if width > 0 and height > 0:
                # summed in the published order, so that ties and thresholds fall alike to the last bit
                own = (queries[i, 2] - queries[i, 0] + extra_px) * (queries[i, 3] - queries[i, 1] + extra_px)
                other = (boxes[j, 2] - boxes[j, 0] + extra_px) * (boxes[j, 3] - boxes[j, 1] + extra_px)
                iou = width * height / (own + other - width * height)
                if iou > overlap[i]:
                    overlap[i] = iou
                    index[i] = j
    return index, overlap


@numba.njit(cache=True, nogil=True)
def _largest_share(queries: Floats, regions: Floats, first: Ints, last: Ints) -> Floats:
    """The largest part of each query's area that lies in one region."""
    share = np.zeros(len(queries))
    for i in range(len(queries)):
        area = (queries[i, 2] - queries[i, 0]) * (queries[i, 3] - queries[i, 1])
        for j in range(first[i], last[i]):
            width = min(queries[i, 2], regions[j, 2]) - max(queries[i, 0], regions[j, 0])
            height = min(queries[i, 3], regions[j, 3]) - max(queries[i, 1], regions[j, 1])
            if width > 0 and height > 0:
                share[i] = max(share[i], width * height / area)
    return share
