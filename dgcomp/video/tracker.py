"""CaTDet's tracker: where the objects of the last frames will be in the next one.

SORT with its Kalman filter replaced by a velocity that decays exponentially into the past; detections are matched by
IoU, class by class, with the Hungarian method; a track lives on a stock of confidence that matches fill and misses use
up. RECONSTRUCTION: the paper (Mao et al., "CaTDet", SysML 2019, arXiv 1810.00434) has no published code, and only its
abstract and secondary sources were at hand; numbers that are our choice are marked so at `TrackerConfig`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgcomp.video.assignment import assign
from dgcomp.video.boxes import Boxes, clip_boxes, iou_matrix
from dgcomp.video.detectors import Detections

__all__ = ["DecayTracker", "TrackerConfig"]


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """What a tracker goes by."""

    decay: float = 0.7
    """share of the old velocity that stays when a track is matched, in [0, 1]"""
    min_iou: float = 0.3
    """a detection belongs to a track only with at least this overlap (SORT's value)"""
    max_confidence: int = 5
    """confidence is 1 at first, gains 1 with each match up to this and loses 1 with each miss; a track ends below 0.
    Our choice: an object is looked for through that many frames without a detection"""
    min_width: float = 10.0
    """predictions narrower than this, in pixels, are not proposed"""
    min_visible: float = 0.5
    """predictions with less than this share of their area inside the frame are not proposed; our choice"""

    def __post_init__(self) -> None:
        for name, high in (("decay", 1), ("min_iou", 1), ("min_visible", 1), ("min_width", np.inf)):
            value = getattr(self, name)
            if not 0 <= value <= high:
                raise ValueError(f"{name} must be in [0, {high}], got {value}")
        if self.max_confidence < 1:
            raise ValueError(f"max_confidence must be at least 1, got {self.max_confidence}")


class DecayTracker:
    """Tracks of all objects of one video; `predict` before a frame's detections, `update` after them.

    The state of a track is the centre and width of its box and their change from frame to frame; its aspect is that of
    the last detection.
    """

    def __init__(self, config: TrackerConfig | None = None) -> None:
        self.config = config or TrackerConfig()
        self.identities = np.zeros(0, dtype=np.int64)
        """Number of each track [N], counted from 0 over the whole video."""
        self.confidences = np.zeros(0, dtype=np.int64)
        self.classes = np.zeros(0, dtype=np.int64)
        self._state = np.zeros((0, 3))  # x, y, width
        self._velocity = np.zeros((0, 3))
        self._aspect = np.zeros(0)  # height over width
        self._num_started = 0

    def __len__(self) -> int:
        return len(self.identities)

    @property
    def boxes(self) -> Boxes:
        """Boxes [N, 4] of all tracks where they were last seen or thought to be."""
        return _boxes(self._state, self._aspect)

    def predict(self, height: int, width: int) -> Boxes:
        """Boxes [P, 4] where objects should be in the next frame: those of the tracks that are worth a look."""
        boxes = _boxes(self._state + self._velocity, self._aspect)
        inside = clip_boxes(boxes, height, width)
        visible = _areas(inside) / np.maximum(_areas(boxes), 1e-9)
        is_wide = boxes[:, 2] - boxes[:, 0] >= self.config.min_width
        return inside[is_wide & (visible >= self.config.min_visible)]

    def update(self, detections: Detections) -> None:
        """Move every track on by one frame: matched ones to their detections, others along their velocity."""
        predicted = self._state + self._velocity
        tracks, found = self._match(_boxes(predicted, self._aspect), detections)
        seen, aspect = _states(detections.boxes)
        moved = seen[found] - self._state[tracks]
        self._velocity[tracks] = self.config.decay * self._velocity[tracks] + (1 - self.config.decay) * moved
        predicted[tracks] = seen[found]
        self._state = predicted
        self._aspect[tracks] = aspect[found]
        is_matched = np.zeros(len(self), dtype=bool)
        is_matched[tracks] = True
        gained = np.minimum(self.confidences + 1, self.config.max_confidence)
        self.confidences = np.where(is_matched, gained, self.confidences - 1)
        self._keep(self.confidences >= 0)
        is_new = np.ones(len(detections), dtype=bool)
        is_new[found] = False
        self._start(seen[is_new], aspect[is_new], detections.classes[is_new])

    def _match(self, boxes: Boxes, detections: Detections) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tracks and the detections that belong to them."""
        overlaps = iou_matrix(boxes, detections.boxes)
        overlaps[self.classes[:, None] != detections.classes[None]] = 0
        # No reward for a pair that may not be: the assignment then leaves it to those that may.
        overlaps[overlaps < self.config.min_iou] = 0
        tracks, found = assign(-overlaps)
        is_match = overlaps[tracks, found] > 0
        return tracks[is_match], found[is_match]

    def _keep(self, chosen: NDArray[np.bool_]) -> None:
        for name in ("identities", "confidences", "classes", "_state", "_velocity", "_aspect"):
            setattr(self, name, getattr(self, name)[chosen])

    def _start(self, state: Boxes, aspect: NDArray[np.float64], classes: NDArray[np.int64]) -> None:
        n = len(state)
        self.identities = np.append(self.identities, self._num_started + np.arange(n))
        self.confidences = np.append(self.confidences, np.ones(n, dtype=np.int64))
        self.classes = np.append(self.classes, classes)
        self._state = np.concatenate((self._state, state))
        self._velocity = np.concatenate((self._velocity, np.zeros((n, 3))))
        self._aspect = np.append(self._aspect, aspect)
        self._num_started += n


def _states(boxes: Boxes) -> tuple[Boxes, NDArray[np.float64]]:
    """Centre and width [N, 3], and height over width [N]."""
    size = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.column_stack((center, size[:, 0])), size[:, 1] / size[:, 0]


def _boxes(state: Boxes, aspect: NDArray[np.float64]) -> Boxes:
    half_width = np.maximum(state[:, 2], 0) / 2
    half = np.column_stack((half_width, half_width * aspect))
    return np.concatenate((state[:, :2] - half, state[:, :2] + half), axis=1)


def _areas(boxes: Boxes) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return areas
