"""What a detector is: two methods. `CaTDet`, `propagate` and the scheduler take any object that has them.

    class MyDetector:
        def detect(self, frame, regions=None): ...      -> Detections
        def operations(self, height, width, regions=None): ...  -> Operations

`regions` None asks for the whole frame. Otherwise the detector computes only what lies in the union of the boxes
`regions` [R, 4], each a proposal with its margin, and says what of its work that is: a detector that has a part with
a cost for each proposal counts R of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dgcomp.video.boxes import Boxes
from dgcomp.video.frames import Frame

__all__ = ["Detections", "Detector", "Operations", "detection_rows"]


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one frame: boxes [N, 4], scores [N] and class numbers [N]."""

    boxes: Boxes
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]

    def __post_init__(self) -> None:
        shapes = (self.boxes.shape, self.scores.shape, self.classes.shape)
        n = len(self.scores)
        if shapes != ((n, 4), (n,), (n,)):
            raise ValueError(f"boxes, scores and classes must have shapes (N, 4), (N,) and (N,), got {shapes}")

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: NDArray[np.generic]) -> "Detections":
        """Those that a mask or an array of indices picks."""
        return Detections(self.boxes[chosen], self.scores[chosen], self.classes[chosen])

    def above(self, score: float) -> "Detections":
        """Those with at least this score."""
        return self[self.scores >= score]

    @staticmethod
    def none() -> "Detections":
        """An empty frame's."""
        return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Operations:
    """Multiply-adds of one detector for one frame."""

    frame: int
    """of the part that runs over pixels: over the whole frame, or over the masked part of it"""
    proposals: int
    """of the part that runs once for each proposal; 0 for a detector without one"""
    mask_fraction: float = 1.0
    """share of the frame that was computed"""

    @property
    def total(self) -> int:
        """Multiply-adds of both parts."""
        return self.frame + self.proposals


class Detector(Protocol):
    """Finds objects in a frame or in regions of it, and says what that costs."""

    def detect(self, frame: Frame, regions: Boxes | None = None) -> Detections:
        """Objects in an RGB frame [height, width, 3], or in the union of `regions` [R, 4] only."""
        ...

    def operations(self, height: int, width: int, regions: Boxes | None = None) -> Operations:
        """What `detect` computes for a frame of this size and these regions."""
        ...


def detection_rows(found: Iterable[Detections], class_names: Mapping[int, Any] | None = None) -> list[tuple[Any, ...]]:
    """Rows (frame, class, score, x1, y1, x2, y2) of the detections of frames 0, 1, ..., as the metrics take them.

    `class_names` says what a class number is called in the ground truth; others stay numbers.
    """
    names = class_names or {}
    return [
        (frame, names.get(kind, kind), score, *box)
        for frame, one in enumerate(found)
        for kind, score, box in zip(one.classes.tolist(), one.scores.tolist(), one.boxes.tolist(), strict=True)
    ]
