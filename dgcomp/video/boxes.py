"""Boxes as arrays [N, 4] of x1, y1, x2, y2 in pixels of the frame."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Boxes", "clip_boxes", "contains_centers", "iou_matrix", "paired_iou", "suppress"]

Boxes = NDArray[np.float64]


def iou_matrix(left: Boxes, right: Boxes) -> Boxes:
    """Intersection over union of every box of `left` [N, 4] with every box of `right` [M, 4]; 0 for empty boxes."""
    low = np.maximum(left[:, None, :2], right[None, :, :2])
    high = np.minimum(left[:, None, 2:], right[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    return _ratios(shared, _areas(left)[:, None] + _areas(right)[None] - shared)


def paired_iou(left: Boxes, right: Boxes) -> Boxes:
    """Intersection over union of the i-th box of `left` with the i-th of `right`."""
    shared = np.prod(np.clip(np.minimum(left[:, 2:], right[:, 2:]) - np.maximum(left[:, :2], right[:, :2]), 0, None), 1)
    return _ratios(shared, _areas(left) + _areas(right) - shared)


def _ratios(shared: Boxes, union: Boxes) -> Boxes:
    ratios: Boxes = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratios


def _areas(boxes: Boxes) -> Boxes:
    areas: Boxes = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    return areas


def clip_boxes(boxes: Boxes, height: int, width: int) -> Boxes:
    """The parts of boxes inside a frame; a box outside of it becomes one of no area on the border."""
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float64))


def contains_centers(regions: Boxes, boxes: Boxes) -> NDArray[np.bool_]:
    """Which of the boxes [N, 4] have their centre in at least one of the regions [R, 4]."""
    centers = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    is_inside = (centers >= regions[None, :, :2]) & (centers <= regions[None, :, 2:])
    contained: NDArray[np.bool_] = np.any(np.all(is_inside, axis=2), axis=1)
    return contained


def suppress(
    boxes: Boxes, scores: NDArray[np.float64], classes: NDArray[np.int64], *, max_iou: float
) -> NDArray[np.int64]:
    """Non-maximum suppression: indices of the boxes to keep, highest score first.

    A box goes where a kept one of the same class overlaps it by more than `max_iou`.
    """
    order = np.argsort(-scores, kind="stable")
    overlaps = iou_matrix(boxes[order], boxes[order]) > max_iou
    overlaps &= classes[order][:, None] == classes[order][None]
    kept: list[int] = []
    for i in range(len(order)):
        if not overlaps[i, kept].any():
            kept.append(i)
    return order[kept]
