"""What differs from the background of a camera that stands still, as a proposal detector that costs next to nothing.

The frame is averaged over cells of a few pixels; every cell has a running mean and a running mean deviation of its
colour. Cells that differ from their mean by several deviations, joined with their neighbours, are the proposals. It
knows nothing of what objects look like: what stays still long enough becomes background (a tracker holds it), and the
place that something left is proposed until it is learnt.
"""

import numpy as np
from numpy.typing import NDArray

from dgcomp.video.boxes import Boxes, contains_centers
from dgcomp.video.detectors import Detections, Operations
from dgcomp.video.frames import Frame

__all__ = ["BackgroundMotion"]

MACS_PER_CELL = 30
"""Counted by hand, for three channels: difference and largest of them (6), its comparison with deviation and floor (3),
means (6), deviation (5), neighbours joined (10). Besides, each value of the frame is added once to its cell's."""


class BackgroundMotion:
    """Moving things, class 0, in the frames of one video in order; see `dgcomp.video.detectors` for its two methods.

    The score of a proposal is the number of its cells. Every `detect` is one more frame; for another video make a new
    one.

    Parameters
    ----------
    cell : side of a cell in pixels.
    rate : share of a frame in the running means, in (0, 1].
    num_deviations, min_contrast : a cell is in motion where it differs from its mean by more than this many mean
        deviations and by more than this much, of 255, in one of its channels.
    min_cells : smaller proposals are dropped.
    """

    def __init__(
        self,
        *,
        cell: int = 4,
        rate: float = 0.02,
        num_deviations: float = 4.0,
        min_contrast: float = 12.0,
        min_cells: int = 6,
    ) -> None:
        if cell < 1:
            raise ValueError(f"cell must be at least 1 pixel, got {cell}")
        if not 0 < rate <= 1:
            raise ValueError(f"rate must be in (0, 1], got {rate}")
        self.cell, self.rate, self.min_cells = cell, rate, min_cells
        self.num_deviations, self.min_contrast = num_deviations, min_contrast
        self._mean: NDArray[np.float32] | None = None
        self._deviation = np.zeros(0, dtype=np.float32)

    def detect(self, frame: Frame, regions: Boxes | None = None) -> Detections:
        """What moves in a frame; with regions [R, 4], what moves and has its centre in one of them."""
        cells = self._cells(frame)
        if self._mean is None or self._mean.shape != cells.shape:
            self._mean = cells.copy()
            self._deviation = np.full(cells.shape[:2], self.min_contrast / self.num_deviations, dtype=np.float32)
        contrast = np.abs(cells - self._mean).max(axis=2)
        is_moving = contrast > np.maximum(self.num_deviations * self._deviation, self.min_contrast)
        self._mean += self.rate * (cells - self._mean)
        # A passing object must not make its cells blind: what it adds to the deviation is bounded.
        self._deviation += self.rate * (np.minimum(contrast, 4 * self._deviation + 1) - self._deviation)
        boxes, sizes = _components(_grown(is_moving))
        kept = sizes >= self.min_cells
        if regions is not None:
            kept &= contains_centers(regions, boxes * self.cell)
        return Detections(boxes[kept] * self.cell, sizes[kept], np.zeros(int(kept.sum()), dtype=np.int64))

    def operations(self, height: int, width: int, regions: Boxes | None = None) -> Operations:
        """Additions of pixels and work on cells, of the whole frame."""
        num_cells = (height // self.cell) * (width // self.cell)
        return Operations(num_cells * (3 * self.cell**2 + MACS_PER_CELL), 0)

    def _cells(self, frame: Frame) -> NDArray[np.float32]:
        """Means [rows, columns, 3] of whole cells."""
        rows, columns = frame.shape[0] // self.cell, frame.shape[1] // self.cell
        whole = frame[: rows * self.cell, : columns * self.cell]
        means: NDArray[np.float32] = whole.reshape(rows, self.cell, columns, self.cell, 3).mean(
            axis=(1, 3), dtype=np.float32
        )
        return means


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask with the eight neighbours of everything in it."""
    padded = np.pad(mask, 1)
    tall = padded[:-2] | padded[1:-1] | padded[2:]
    grown: NDArray[np.bool_] = tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:]
    return grown


def _components(mask: NDArray[np.bool_]) -> tuple[Boxes, NDArray[np.float64]]:
    """Boxes [N, 4] around what hangs together in a mask, corners too, in cells; and how many cells each one has."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        # Everybody takes the largest number among the neighbours, then jumps on to what that one has.
        padded = np.pad(labels, 1)
        tall = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
        largest = np.where(mask, np.maximum(np.maximum(tall[:, :-2], tall[:, 1:-1]), tall[:, 2:]), 0)
        largest = np.concatenate(([0], largest.ravel()))[largest]
        if (largest == labels).all():
            break
        labels = largest
    rows, columns = np.nonzero(mask)
    _, member, sizes = np.unique(labels[rows, columns], return_inverse=True, return_counts=True)
    boxes = np.empty((len(sizes), 4))
    for i in range(len(sizes)):
        inside = member == i
        x, y = columns[inside], rows[inside]
        boxes[i] = x.min(), y.min(), x.max() + 1, y.max() + 1
    return boxes, sizes.astype(np.float64)
