"""CaTDet with made-up detectors: what is looked at, what it costs, what the tracker is for, and the scheduler."""

import numpy as np
import pytest

from dgcomp import video
from dgcomp.video.boxes import Boxes
from dgcomp.video.catdet import CaTDet, CaTDetConfig, run_single
from dgcomp.video.catdet_schedule import OperatingPoint, choose_point, config_grid, sweep
from dgcomp.video.detectors import Detections, Operations, detection_rows
from dgcomp.video.frames import Frame
from dgcomp.video.regions import dilate, union_fraction
from dgcomp.video.tracker import TrackerConfig

HEIGHT, WIDTH, LENGTH = 120, 200, 40


def walkers(frame: int) -> Boxes:
    """Two objects that walk; the second appears in frame 10."""
    boxes = [[20.0 + 2 * frame, 40, 40 + 2 * frame, 80], [160.0 - 2 * frame, 20, 180 - 2 * frame, 60]]
    return np.array(boxes[: 1 + (frame >= 10)])


def frames() -> list[Frame]:
    """Empty images that carry their number in the first pixel."""
    images = [np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(LENGTH)]
    for number, image in enumerate(images):
        image[0, 0, 0] = number
    return images


def found(boxes: Boxes, score: float) -> Detections:
    return Detections(boxes, np.full(len(boxes), score), np.zeros(len(boxes), dtype=np.int64))


class Flickering:
    """A cheap detector that sees everything in every third frame only, and a false object always."""

    def detect(self, frame: Frame, regions: Boxes | None = None) -> Detections:
        number = int(frame[0, 0, 0])
        wrong = np.array([[100.0, 90, 120, 118]])
        boxes = np.concatenate((wrong, walkers(number))) if number % 3 == 0 else wrong
        return Detections(boxes, np.linspace(0.3, 0.5, len(boxes)), np.zeros(len(boxes), dtype=np.int64))

    def operations(self, height: int, width: int, regions: Boxes | None = None) -> Operations:
        return Operations(10 * height * width, 0)


class Sharp:
    """An expensive detector that finds whatever lies wholly in a region; its head costs 7000 for each of them."""

    def __init__(self) -> None:
        self.seen: list[Boxes | None] = []

    def detect(self, frame: Frame, regions: Boxes | None = None) -> Detections:
        self.seen.append(regions)
        boxes = walkers(int(frame[0, 0, 0]))
        if regions is None:
            return found(boxes, 0.9)
        inside = [any((r[:2] <= box[:2]).all() and (box[2:] <= r[2:]).all() for r in regions) for box in boxes]
        return found(boxes[inside], 0.9)

    def operations(self, height: int, width: int, regions: Boxes | None = None) -> Operations:
        share = 1.0 if regions is None else union_fraction(regions, height, width)
        count = 300 if regions is None else len(regions)
        return Operations(round(1000 * height * width * share), 7000 * count, share)


def average_delay(detections: list[Detections]) -> float:
    truth = [(n, t, 0, *box) for n in range(LENGTH) for t, box in enumerate(walkers(n).tolist())]
    return float(video.average_delay({"v": truth}, {"v": detection_rows(detections)}, "exact"))


def test_looks_at_proposals_and_predictions() -> None:
    refinement = Sharp()
    config = CaTDetConfig(c_threshold=0.2, margin=6)
    results = list(CaTDet(Flickering(), refinement, config).run(frames()))
    # Frame 0: the false proposal and the true one, with their margins, clipped.
    expected = dilate(np.array([[100.0, 90, 120, 118], [20, 40, 40, 80]]), 6, HEIGHT, WIDTH)
    assert refinement.seen[0] is not None
    np.testing.assert_allclose(refinement.seen[0], expected)
    # Once seen, an object is followed through the frames in which the cheap detector is blind.
    assert [len(one) for one in results] == [1] * 12 + [2] * (LENGTH - 12)  # the second: proposed from frame 12 on
    assert average_delay(results) == pytest.approx(1.0)  # (0 + 2) / 2


def test_without_the_tracker_objects_flicker() -> None:
    cascade = CaTDet(Flickering(), Sharp(), CaTDetConfig(c_threshold=0.2, tracker=None))
    results = list(cascade.run(frames()))
    assert [len(one) for one in results[:4]] == [1, 0, 0, 1]
    assert all(record.num_predictions == 0 for record in cascade.ledger.frames)


def test_ledger_adds_up() -> None:
    """Full-frame part + masked fraction of the refinement + its part for each region, frame by frame."""
    pipeline = CaTDet(Flickering(), Sharp(), CaTDetConfig(c_threshold=0.2, margin=4))
    list(pipeline.run(frames()))
    assert len(pipeline.ledger.frames) == LENGTH
    for record in pipeline.ledger.frames:
        regions = record.num_proposals + record.num_predictions
        whole = 1000 * HEIGHT * WIDTH
        assert record.proposal.total == 10 * HEIGHT * WIDTH
        assert record.refinement.frame == round(whole * record.union_fraction)
        assert record.refinement.proposals == 7000 * regions
        assert record.total == record.proposal.total + record.refinement.frame + record.refinement.proposals
    mean = pipeline.ledger.mean()
    assert mean["total"] == pytest.approx(pipeline.ledger.total / LENGTH)
    parts = mean["proposal"] + mean["refinement_frame"] + mean["refinement_proposals"]
    assert mean["total"] == pytest.approx(parts)
    single = [operations.total for _, operations in run_single(Sharp(), frames())]
    assert sum(single) > 5 * pipeline.ledger.total


def test_thresholds() -> None:
    """Above every score nothing is proposed, or nothing is tracked."""
    nothing = CaTDet(Flickering(), Sharp(), CaTDetConfig(c_threshold=0.9))
    assert all(len(one) == 0 for one in nothing.run(frames()))
    assert nothing.ledger.mean()["refinement_frame"] == 0
    untracked = CaTDet(Flickering(), Sharp(), CaTDetConfig(c_threshold=0.2, t_threshold=0.95))
    list(untracked.run(frames()))
    assert all(record.num_predictions == 0 for record in untracked.ledger.frames)


def test_rejected_proposals_wait() -> None:
    """The false object stays in its place: looked at in frames 0, 4, 8, ...; true ones are never put off."""
    config = CaTDetConfig(c_threshold=0.2, recheck_interval=4)
    refinement = Sharp()
    pipeline = CaTDet(Flickering(), refinement, config)
    results = list(pipeline.run(frames()))
    wrong = np.array([110.0, 104.0])
    looked = [
        number
        for number, regions in enumerate(refinement.seen)
        if regions is not None and ((regions[:, :2] <= wrong) & (wrong <= regions[:, 2:])).all(1).any()
    ]
    assert looked == list(range(0, LENGTH, 4))
    always = CaTDet(Flickering(), Sharp(), CaTDetConfig(c_threshold=0.2))
    assert [one.boxes.tolist() for one in results] == [one.boxes.tolist() for one in always.run(frames())]
    assert pipeline.ledger.total < always.ledger.total
    with pytest.raises(ValueError, match="recheck_interval must be at least 1 frame, got 0"):
        CaTDetConfig(recheck_interval=0)


def test_whole_frames() -> None:
    """Every tenth frame is computed whole, and counted so."""
    refinement = Sharp()
    pipeline = CaTDet(Flickering(), refinement, CaTDetConfig(c_threshold=0.2, whole_frame_interval=10))
    results = list(pipeline.run(frames()))
    assert [number for number, regions in enumerate(refinement.seen) if regions is None] == [0, 10, 20, 30]
    assert len(results[10]) == 2  # the second object, which no proposal shows before frame 12
    for number, record in enumerate(pipeline.ledger.frames):
        assert (record.refinement.mask_fraction == 1) == (number % 10 == 0)
        assert (record.union_fraction == 1) == (number % 10 == 0)
    with pytest.raises(ValueError, match="whole_frame_interval must be at least 0 frames, got -1"):
        CaTDetConfig(whole_frame_interval=-1)


def test_a_new_video_starts_afresh() -> None:
    pipeline = CaTDet(Flickering(), Sharp(), CaTDetConfig(c_threshold=0.2))
    first = [one.boxes.tolist() for one in pipeline.run(frames())]
    again = [one.boxes.tolist() for one in pipeline.run(frames())]
    assert first == again
    assert len(pipeline.ledger.frames) == LENGTH


def test_sweep_and_choice() -> None:
    configs = config_grid(
        CaTDetConfig(margin=4), c_thresholds=(0.2, 0.45, 0.9), t_thresholds=(0.5, 0.95), margins=(4, 12)
    )
    assert len(configs) == 12
    images = frames()
    points = sweep(Flickering(), Sharp(), images, average_delay, configs)
    by_config = {point.config: point for point in points}
    real = CaTDet(Flickering(), Sharp(), configs[0])
    results = list(real.run(images))
    assert by_config[configs[0]].operations == pytest.approx(real.ledger.total / LENGTH)
    assert by_config[configs[0]].delay == pytest.approx(average_delay(results))
    cheapest = choose_point(points, max_delay=1.0)
    assert cheapest.delay <= 1.0
    assert cheapest.operations == min(point.operations for point in points if point.delay <= 1.0)
    fastest = choose_point(points, max_operations=cheapest.operations)
    assert fastest.delay <= cheapest.delay
    assert choose_point(points, max_delay=1.0, max_operations=1e9) == cheapest


def test_what_can_not_be_had() -> None:
    points = [OperatingPoint(CaTDetConfig(), delay=2.0, operations=5e9)]
    with pytest.raises(ValueError, match="the fastest has 2 at 5e.09"):
        choose_point(points, max_delay=1.0, max_operations=6e9)
    with pytest.raises(ValueError, match="max_delay or max_operations must be given"):
        choose_point(points)
    with pytest.raises(ValueError, match="at least one operating point"):
        choose_point([], max_delay=1)
    with pytest.raises(ValueError, match="margin must be at least 0 pixels, got -1"):
        CaTDetConfig(margin=-1)
    with pytest.raises(ValueError, match="min_iou must be in"):
        CaTDetConfig(tracker=TrackerConfig(min_iou=2))


def test_rows_for_the_metrics() -> None:
    rows = detection_rows([Detections.none(), found(np.array([[1.0, 2, 3, 4]]), 0.5)], {0: "person"})
    assert rows == [(1, "person", 0.5, 1.0, 2.0, 3.0, 4.0)]
