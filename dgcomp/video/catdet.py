"""CaTDet: a cheap detector says where to look, a tracker where things should still be, an expensive one looks there.

Every frame goes through the proposal detector; its detections above `c_threshold` and the tracker's predictions are
the regions that the refinement detector computes, and what that finds above `t_threshold` feeds the tracker. The
tracker keeps up the precision that a plain cascade loses; the proposal detector decides how late a new object is seen.

Mao et al., "CaTDet: cascaded tracked detector for efficient object detection from video", arXiv 1810.00434.
RECONSTRUCTION, see `dgcomp.video.tracker`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from dgcomp.video.boxes import Boxes, iou_matrix
from dgcomp.video.detectors import Detections, Detector, Operations
from dgcomp.video.frames import Frame
from dgcomp.video.regions import dilate, union_fraction
from dgcomp.video.tracker import DecayTracker, TrackerConfig

__all__ = ["CaTDet", "CaTDetConfig", "FrameRecord", "Ledger", "run_single"]


@dataclass(frozen=True, kw_only=True)
class CaTDetConfig:
    """Thresholds of a CaTDet; the scheduler chooses among them."""

    c_threshold: float = 0.1
    """score that a proposal needs to be looked at; on the proposal detector's scale"""
    t_threshold: float = 0.15
    """score that a refined detection needs to be tracked; on the refinement detector's scale"""
    margin: float = 4.0
    """pixels around proposals and predictions that the refinement detector computes too"""
    recheck_interval: int = 1
    """frames from one look at a proposal in which nothing was found to the next, as long as it stays in its place;
    1: look always, as the paper does. More is our addition: a cheap detector errs at the same spots of a background"""
    whole_frame_interval: int = 0
    """frames from one that the refinement detector computes whole to the next, the first one included; 0: none. A
    detector with a memory needs the first; the ledger counts them"""
    tracker: TrackerConfig | None = field(default_factory=TrackerConfig)
    """None: a plain cascade, for comparison"""

    def __post_init__(self) -> None:
        if not self.margin >= 0:
            raise ValueError(f"margin must be at least 0 pixels, got {self.margin}")
        if self.recheck_interval < 1:
            raise ValueError(f"recheck_interval must be at least 1 frame, got {self.recheck_interval}")
        if self.whole_frame_interval < 0:
            raise ValueError(f"whole_frame_interval must be at least 0 frames, got {self.whole_frame_interval}")


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """What one frame cost."""

    proposal: Operations
    refinement: Operations
    num_proposals: int
    """regions that the proposal detector asked for"""
    num_predictions: int
    """regions that the tracker asked for"""
    union_fraction: float
    """share of the frame in the union of the regions with their margins"""

    @property
    def total(self) -> int:
        """Multiply-adds of both detectors; the tracker's few hundred are not counted."""
        return self.proposal.total + self.refinement.total


@dataclass
class Ledger:
    """Multiply-adds of a run, frame by frame: full-frame part, masked part, part for each proposal."""

    frames: list[FrameRecord] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Multiply-adds of all frames."""
        return sum(frame.total for frame in self.frames)

    def mean(self) -> dict[str, float]:
        """Means over the frames: multiply-adds by part, shares of the frame, regions."""
        rows = [
            {
                "total": frame.total,
                "proposal": frame.proposal.total,
                "refinement_frame": frame.refinement.frame,
                "refinement_proposals": frame.refinement.proposals,
                "computed_fraction": frame.refinement.mask_fraction,
                "union_fraction": frame.union_fraction,
                "num_proposals": frame.num_proposals,
                "num_predictions": frame.num_predictions,
            }
            for frame in self.frames
        ]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}


class CaTDet:
    """Detector of a video's frames in order, made of two detectors of single frames.

    Parameters
    ----------
    proposal, refinement : any two objects with the methods of `dgcomp.video.Detector`; their class numbers must agree.
    """

    def __init__(self, proposal: Detector, refinement: Detector, config: CaTDetConfig | None = None) -> None:
        self.proposal, self.refinement = proposal, refinement
        self.config = config or CaTDetConfig()
        self.reset()

    def reset(self) -> None:
        """Forget tracks and ledger: another video begins."""
        self.tracker = None if self.config.tracker is None else DecayTracker(self.config.tracker)
        self.ledger = Ledger()
        self._rejected = _Rejected(self.config.recheck_interval)
        self.regions: Boxes = np.zeros((0, 4))
        """Regions [R, 4] with their margins that the last frame's refinement looked at."""

    def step(self, frame: Frame) -> Detections:
        """Objects of the next frame."""
        height, width = frame.shape[:2]
        proposed = self._rejected.without(self.proposal.detect(frame).above(self.config.c_threshold).boxes)
        predicted = np.zeros((0, 4)) if self.tracker is None else self.tracker.predict(height, width)
        self.regions = dilate(np.concatenate((predicted, proposed)), self.config.margin, height, width)
        interval = self.config.whole_frame_interval
        if interval and len(self.ledger.frames) % interval == 0:
            self.regions = np.array([[0, 0, width, height]], dtype=np.float64)
            refined, cost = self.refinement.detect(frame), self.refinement.operations(height, width)
        else:
            refined = self.refinement.detect(frame, self.regions)
            cost = self.refinement.operations(height, width, self.regions)
        believed = refined.above(self.config.t_threshold)
        self._rejected.update(proposed, believed.boxes)
        if self.tracker is not None:
            self.tracker.update(believed)
        self.ledger.frames.append(
            FrameRecord(
                proposal=self.proposal.operations(height, width),
                refinement=cost,
                num_proposals=len(proposed),
                num_predictions=len(predicted),
                union_fraction=union_fraction(self.regions, height, width),
            )
        )
        return refined

    def run(self, frames: Iterable[Frame]) -> Iterator[Detections]:
        """`step` for each of a new video's frames."""
        self.reset()
        for frame in frames:
            yield self.step(frame)


class _Rejected:
    """Proposals in which nothing was found, each for the frames until it is looked at again."""

    SAME_PLACE_IOU = 0.7

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._boxes: Boxes = np.zeros((0, 4))
        self._frames_left = np.zeros(0, dtype=np.int64)

    def without(self, proposed: Boxes) -> Boxes:
        """Those of the proposals [N, 4] that are due."""
        is_same = iou_matrix(proposed, self._boxes) >= self.SAME_PLACE_IOU
        return proposed[~is_same.any(axis=1)]

    def update(self, looked_at: Boxes, found: Boxes) -> None:
        """End a frame, in which the proposals `looked_at` led to the boxes `found`."""
        is_waiting = self._frames_left > 1
        is_empty = ~(iou_matrix(looked_at, found) > 0).any(axis=1)
        fresh = looked_at[is_empty] if self.interval > 1 else looked_at[:0]
        self._boxes = np.concatenate((self._boxes[is_waiting], fresh))
        waits = np.full(len(fresh), self.interval - 1)
        self._frames_left = np.append(self._frames_left[is_waiting] - 1, waits)


def run_single(detector: Detector, frames: Iterable[Frame]) -> Iterator[tuple[Detections, Operations]]:
    """One detector on whole frames: what a CaTDet is compared with."""
    for frame in frames:
        yield detector.detect(frame), detector.operations(*frame.shape[:2])
