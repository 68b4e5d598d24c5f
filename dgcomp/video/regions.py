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
    hulls = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    while len(hulls) > 1:
        both = _hulls(hulls)
        areas = _rounded_areas(hulls, step)
        saved = areas[:, None] + areas[None] - _rounded_areas(both, step)
        saved[np.tril_indices(len(hulls))] = -np.inf
        i, j = np.unravel_index(saved.argmax(), saved.shape)
        if saved[i, j] < 0:
            break
        hulls = np.concatenate((np.delete(hulls, (i, j), axis=0), both[i, j][None]))
    return _placed(hulls, step, height, width)


def _hulls(boxes: Boxes) -> Boxes:
    """The smallest box [N, N, 4] around every two of the boxes [N, 4]."""
    low = np.minimum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.maximum(boxes[:, None, 2:], boxes[None, :, 2:])
    return np.concatenate((low, high), axis=2)


def _rounded_sizes(boxes: Boxes, step: int) -> Boxes:
    sizes: Boxes = np.ceil((boxes[..., 2:] - boxes[..., :2]) / step - 1e-9) * step
    return sizes


def _rounded_areas(boxes: Boxes, step: int) -> Boxes:
    areas: Boxes = np.prod(_rounded_sizes(boxes, step), axis=-1)
    return areas


def _placed(boxes: Boxes, step: int, height: int, width: int) -> Boxes:
    """The rectangles for hulls [N, 4], at whole pixels."""
    sizes = _rounded_sizes(boxes, step)
    corners = np.floor((boxes[:, :2] + boxes[:, 2:] - sizes) / 2)
    corners = np.clip(corners, 0, np.maximum(np.array([width, height]) - sizes, 0))
    return np.concatenate((corners, corners + sizes), axis=1)
