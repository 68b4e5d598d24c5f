"""Thresholds of a CaTDet for a delay that must be kept or operations that may be spent.

The sweep runs both detectors once over whole calibration frames and replays the pipeline for every setting. A region
is answered from the whole frame's detections, so that one sweep costs no more than two passes; what is found on real
regions differs a little, and the chosen setting should be run once to see it. Operations are exact for the regions.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from dgcomp.video.boxes import Boxes, contains_centers
from dgcomp.video.catdet import CaTDet, CaTDetConfig
from dgcomp.video.detectors import Detections, Detector, Operations
from dgcomp.video.frames import Frame

__all__ = ["OperatingPoint", "choose_point", "config_grid", "sweep"]

Delay = Callable[[Sequence[Detections]], float]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A setting and what it gave on the calibration frames."""

    config: CaTDetConfig
    delay: float
    """what the caller's function said, such as the average delay in frames"""
    operations: float
    """multiply-adds per frame"""


def config_grid(
    base: CaTDetConfig,
    *,
    c_thresholds: Iterable[float],
    t_thresholds: Iterable[float],
    margins: Iterable[float] | None = None,
) -> list[CaTDetConfig]:
    """Every combination of the values; what is not named stays as in `base`."""
    return [
        replace(base, c_threshold=c, t_threshold=t, margin=margin)
        for c, t, margin in itertools.product(c_thresholds, t_thresholds, margins or (base.margin,))
    ]


def sweep(
    proposal: Detector,
    refinement: Detector,
    frames: Sequence[Frame],
    delay: Delay,
    configs: Iterable[CaTDetConfig],
) -> list[OperatingPoint]:
    """Delay and operations of every setting, on the frames of one video.

    Parameters
    ----------
    delay : from the detections of every frame to a number that should be small; for example a function that makes
        rows of them and calls `dgcomp.video.average_delay` with the calibration video's ground truth.
    """
    cheap, expensive = _Recorded(proposal, frames), _Recorded(refinement, frames)
    points = []
    for config in configs:
        pipeline = CaTDet(cheap, expensive, config)
        found = list(pipeline.run(frames))
        points.append(OperatingPoint(config, delay(found), pipeline.ledger.total / len(frames)))
    return points


def choose_point(
    points: Sequence[OperatingPoint], *, max_delay: float | None = None, max_operations: float | None = None
) -> OperatingPoint:
    """The point of least operations within the delay, or of least delay within the operations; both limits hold.

    With both limits the cheapest one is taken. Raises ValueError where no point is within the limits, with the nearest.
    """
    if max_delay is None and max_operations is None:
        raise ValueError("max_delay or max_operations must be given")
    if not points:
        raise ValueError("points must hold at least one operating point, got none")
    within = [
        point
        for point in points
        if (max_delay is None or point.delay <= max_delay)
        and (max_operations is None or point.operations <= max_operations)
    ]
    by_operations = max_delay is not None
    if not within:
        fastest, cheapest = min(points, key=lambda p: p.delay), min(points, key=lambda p: p.operations)
        raise ValueError(
            f"no point has a delay of at most {max_delay} with at most {max_operations} operations: the fastest has "
            f"{fastest.delay:.3g} at {fastest.operations:.3g}, the cheapest {cheapest.delay:.3g} at "
            f"{cheapest.operations:.3g}"
        )
    if by_operations:
        return min(within, key=lambda point: (point.operations, point.delay))
    return min(within, key=lambda point: (point.delay, point.operations))


class _Recorded:
    """A detector whose answers for whole frames are known; regions are answered from them."""

    def __init__(self, detector: Detector, frames: Sequence[Frame]) -> None:
        self._detector = detector
        self._frames = frames  # kept, so that no other frame gets the identity of one of them
        self._found = {id(frame): detector.detect(frame) for frame in frames}

    def detect(self, frame: Frame, regions: Boxes | None = None) -> Detections:
        found = self._found[id(frame)]
        if regions is None:
            return found
        return found[contains_centers(regions, found.boxes)]

    def operations(self, height: int, width: int, regions: Boxes | None = None) -> Operations:
        return self._detector.operations(height, width, regions)
