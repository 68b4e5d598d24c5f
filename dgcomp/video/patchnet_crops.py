"""PatchNet's inputs: templates and search windows, warped out of a frame of bytes.

One pass over the output in compiled code: no frame is converted to floats for the few pixels that a box needs.
"""

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgcomp.video.boxes import Boxes
from dgcomp.video.frames import Frame
from dgcomp.video.patchnet import SEARCH_SIZE, TEMPLATE_SIZE

__all__ = ["crop_searches", "crop_templates", "search_boxes"]

MEAN_BGR = np.array([102.9801, 115.9465, 122.7717], dtype=np.float32)


def crop_templates(frame: Frame, boxes: Boxes) -> Tensor:
    """The inside of each box [N, 4] of an RGB frame as float BGR [N, 3, 64, 64] less the mean colour."""
    return torch.from_numpy(_crop(np.ascontiguousarray(frame), _sampled(boxes), TEMPLATE_SIZE, MEAN_BGR))


def crop_searches(frame: Frame, boxes: Boxes) -> Tensor:
    """The search window around each box [N, 4] of an RGB frame, [N, 3, 119, 119], as `crop_templates`."""
    return torch.from_numpy(_crop(np.ascontiguousarray(frame), _sampled(search_boxes(boxes)), SEARCH_SIZE, MEAN_BGR))


def search_boxes(boxes: Boxes) -> Boxes:
    """Boxes [N, 4] with the same centres, 119 / 64 as wide and high."""
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * (SEARCH_SIZE / TEMPLATE_SIZE / 2)
    return np.concatenate((center - half, center + half), axis=1)


def _sampled(boxes: Boxes) -> Boxes:
    """Positions of the first and last sample: x2 and y2 name the last pixel, and sampling ends one after it.

    So in the authors' code; the weights were trained with it.
    """
    corners: Boxes = np.ascontiguousarray(boxes, dtype=np.float64) + np.array([0.0, 0.0, 1.0, 1.0])
    return corners


@numba.njit(cache=True, nogil=True, fastmath=True)  # type: ignore[untyped-decorator]
def _crop(frame: Frame, boxes: Boxes, size: int, mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bilinear samples on a size x size grid from corner to corner; what lies outside of the frame is 0.

    Channels come out reversed, and `mean` is in that order.
    """
    height, width = frame.shape[:2]
    out = np.zeros((len(boxes), 3, size, size), dtype=np.float32)
    for n in range(len(boxes)):
        for i in range(size):
            y = boxes[n, 1] + (boxes[n, 3] - boxes[n, 1]) * i / (size - 1)
            top = int(np.floor(y))
            for j in range(size):
                x = boxes[n, 0] + (boxes[n, 2] - boxes[n, 0]) * j / (size - 1)
                left = int(np.floor(x))
                for dy in range(2):
                    for dx in range(2):
                        row, column = top + dy, left + dx
                        if 0 <= row < height and 0 <= column < width:
                            share = np.float32((1 - abs(y - row)) * (1 - abs(x - column)))
                            for channel in range(3):
                                out[n, channel, i, j] += share * (frame[row, column, 2 - channel] - mean[channel])
    return out
