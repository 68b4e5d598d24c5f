"""OpenCV's pedestrian detector (histograms of oriented gradients and a linear SVM) as a cheap proposal detector.

It needs OpenCV 4 (the module left OpenCV's main part in version 5) and no weight file. Dalal and Triggs, CVPR 2005.
"""

import math

import numpy as np

from dgcomp.video.boxes import Boxes, suppress
from dgcomp.video.detectors import Detections, Operations
from dgcomp.video.frames import Frame, load_opencv, resize_frame
from dgcomp.video.regions import join_regions

__all__ = ["HOGPeople"]

WINDOW = (64, 128)  # width, height
# The detector was trained on windows with a border around the person: the box of the person inside its window.
PERSON_SHARE = np.array([0.68, 0.86])
CELL = 8  # pixels of a cell; a block is 2 x 2 cells, one for each cell, with 9 bins a cell
WEIGHTS = 3780  # of the SVM: 7 x 15 blocks of 36
# Multiply-adds for each pixel of the pyramid, counted by hand. A gradient: two differences in three channels, their
# squares and the largest of them (12). Votes: a pixel lies in four blocks, votes there for 2.25 cells on average, in
# two bins, with two products a vote (36). Normalization of a block's 36 values, twice, one block for 64 pixels (2).
MACS_PER_PIXEL = 50


class HOGPeople:
    """Persons, class 0; see `dgcomp.video.detectors` for its two methods.

    Parameters
    ----------
    zoom : frames are enlarged by this first: people must become 96 pixels high or more.
    scale : step from one pyramid level to the next, above 1.
    stride : pixels from one window to the next, a multiple of 8.
    padding : pixels by which windows may stick out of the frame (a multiple of 8), where people enter it.
    min_score : distance from the SVM's plane, the score; lower ones are dropped.
    max_iou : of boxes that overlap more, the best stays.
    """

    def __init__(
        self,
        *,
        zoom: float = 1.5,
        scale: float = 1.2,
        stride: int = 16,
        padding: int = 32,
        min_score: float = -1.0,
        max_iou: float = 0.5,
    ) -> None:
        if stride < CELL or stride % CELL:
            raise ValueError(f"stride must be a positive multiple of {CELL}, got {stride}")
        if padding < 0 or padding % CELL:
            raise ValueError(f"padding must be a multiple of {CELL} or 0, got {padding}")
        if not scale > 1:
            raise ValueError(f"scale must be above 1, got {scale}")
        if not zoom > 0:
            raise ValueError(f"zoom must be positive, got {zoom}")
        self.zoom, self.scale, self.stride, self.padding = zoom, scale, stride, padding
        self.min_score, self.max_iou = min_score, max_iou
        cv2 = load_opencv()
        self._hog = cv2.HOGDescriptor()
        self._hog.setSVMDetector(cv2.HOGDescriptor_getDefaultPeopleDetector())

    def detect(self, frame: Frame, regions: Boxes | None = None) -> Detections:
        """Persons in a frame, or in rectangles that cover the regions [R, 4]."""
        image = resize_frame(frame, self.zoom)
        found = []
        height, width = image.shape[:2]
        for x1, y1, x2, y2 in self._rectangles(height, width, regions).astype(int):
            boxes, scores = self._in_image(np.ascontiguousarray(image[y1:y2, x1:x2, ::-1]))
            found.append(np.column_stack((boxes + np.array([x1, y1, x1, y1]), scores)))
        rows = np.concatenate(found) if found else np.zeros((0, 5))
        classes = np.zeros(len(rows), dtype=np.int64)
        kept = suppress(rows[:, :4], rows[:, 4], classes, max_iou=self.max_iou)
        return Detections(rows[kept, :4] / self.zoom, rows[kept, 4], classes[kept])

    def operations(self, height: int, width: int, regions: Boxes | None = None) -> Operations:
        """Multiply-adds of the pyramid over what `detect` runs on."""
        height, width = round(height * self.zoom), round(width * self.zoom)
        whole = self._macs(height, width)
        rectangles = self._rectangles(height, width, regions)
        macs = sum(self._macs(int(y2 - y1), int(x2 - x1)) for x1, y1, x2, y2 in rectangles)
        return Operations(macs, 0, macs / max(whole, 1))

    def _rectangles(self, height: int, width: int, regions: Boxes | None) -> Boxes:
        if regions is None:
            return np.array([[0, 0, width, height]], dtype=np.float64)
        return join_regions(regions * self.zoom, CELL, height, width)

    def _in_image(self, image: Frame) -> tuple[Boxes, Boxes]:
        """Boxes [N, 4] of persons and their scores [N] in a BGR image."""
        if image.shape[0] < WINDOW[1] or image.shape[1] < WINDOW[0]:
            return np.zeros((0, 4)), np.zeros(0)
        corners, scores = self._hog.detectMultiScale(
            image,
            hitThreshold=self.min_score,
            winStride=(self.stride, self.stride),
            padding=(self.padding, self.padding),
            scale=self.scale,
            groupThreshold=0,
        )
        windows = np.asarray(corners, dtype=np.float64).reshape(-1, 4)
        center, half = windows[:, :2] + windows[:, 2:] / 2, windows[:, 2:] * PERSON_SHARE / 2
        return np.concatenate((center - half, center + half), axis=1), np.asarray(scores, dtype=np.float64).ravel()

    def _macs(self, height: int, width: int) -> int:
        """Of all pyramid levels, as far as a window fits."""
        total, level = 0.0, 1.0
        while height / level >= WINDOW[1] and width / level >= WINDOW[0]:
            rows, columns = (math.floor(side / level) + 2 * self.padding for side in (height, width))
            windows = ((rows - WINDOW[1]) // self.stride + 1) * ((columns - WINDOW[0]) // self.stride + 1)
            total += rows * columns * MACS_PER_PIXEL + windows * WEIGHTS
            level *= self.scale
        return round(total)
