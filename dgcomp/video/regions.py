"""Regions of a frame that are worth computing: proposals with a margin, joined to rectangles, and what they cover."""

import numpy as np

from dgcomp.video.boxes import Boxes, clip_boxes

__all__ = ["dilate", "join_regions", "union_fraction"]


def dilate(boxes: Boxes, margin: float, height: int, width: int) -> Boxes:
    """Boxes [N, 4] grown by `margin` pixels on every side and clipped to the frame; those outside of it are dropped."""
    grown = clip_boxes(boxes + np.array([-margin, -margin, margin, margin]), height, width)
    return grown[((grown[:, 2:] - grown[:, :2]) > 0).all(1)]


def union_fraction(boxes: Boxes, height: int, width: int) -> float:
    """Share of a frame that lies in at least one of the boxes [N, 4]; exact, for corners between pixels too."""
    boxes = clip_boxes(boxes, height, width)
    xs, ys = np.unique(boxes[:, [0, 2]]), np.unique(boxes[:, [1, 3]])
    is_covered = np.zeros((max(len(ys) - 1, 0), max(len(xs) - 1, 0)), dtype=bool)
    for x1, y1, x2, y2 in boxes:
        columns, rows = np.searchsorted(xs, (x1, x2)), np.searchsorted(ys, (y1, y2))
        is_covered[rows[0] : rows[1], columns[0] : columns[1]] = True
    return float(np.diff(ys) @ is_covered @ np.diff(xs)) / (height * width)


def join_regions(boxes: Boxes, step: int, height: int, width: int) -> Boxes:
    """Rectangles that cover the boxes [N, 4]: sides are multiples of `step`, and no two would be cheaper as one.

    A rectangle is centred on its boxes and moved into the frame where it sticks out; one that is larger than the frame
    sticks out at the far end. Joining is greedy: always the two that save most.
    """
    rectangles = list(np.asarray(boxes, dtype=np.float64))
    areas = [_rounded_area(box, step) for box in rectangles]
    while len(rectangles) > 1:
        saved, i, j = _best_join(rectangles, areas, step)
        if saved < 0:
            break
        both = _hull(rectangles[i], rectangles[j])
        for index in (j, i):
            del rectangles[index], areas[index]
        rectangles.append(both)
        areas.append(_rounded_area(both, step))
    return np.array([_placed(box, step, height, width) for box in rectangles]).reshape(-1, 4)


def _best_join(rectangles: list[Boxes], areas: list[float], step: int) -> tuple[float, int, int]:
    """Area that the best join saves (negative: costs), and the indices i < j of its two."""
    best = (-np.inf, 0, 0)
    for j in range(1, len(rectangles)):
        for i in range(j):
            saved = areas[i] + areas[j] - _rounded_area(_hull(rectangles[i], rectangles[j]), step)
            best = max(best, (saved, i, j))
    return best


def _hull(a: Boxes, b: Boxes) -> Boxes:
    return np.concatenate((np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])))


def _rounded_size(box: Boxes, step: int) -> Boxes:
    return np.ceil((box[2:] - box[:2]) / step - 1e-9) * step


def _rounded_area(box: Boxes, step: int) -> float:
    return float(np.prod(_rounded_size(box, step)))


def _placed(box: Boxes, step: int, height: int, width: int) -> Boxes:
    """The rectangle for one hull, at whole pixels."""
    size = _rounded_size(box, step)
    corner = np.floor((box[:2] + box[2:] - size) / 2)
    corner = np.clip(corner, 0, np.maximum(np.array([width, height]) - size, 0))
    return np.concatenate((corner, corner + size))
