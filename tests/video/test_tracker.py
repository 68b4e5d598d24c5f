"""The assignment against scipy's, and the decay tracker against its formulas by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from dgcomp.video.assignment import assign
from dgcomp.video.detectors import Detections
from dgcomp.video.tracker import DecayTracker, TrackerConfig

SIZE = (400, 600)


def seen(*boxes: tuple[float, float, float, float], classes: list[int] | None = None) -> Detections:
    n = len(boxes)
    kinds = np.array(classes if classes is not None else [0] * n, dtype=np.int64)
    return Detections(np.array(boxes, dtype=np.float64).reshape(n, 4), np.ones(n), kinds)


def box(x: float, y: float, width: float = 20, height: float = 40) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 10**6), st.booleans())
@settings(deadline=None, max_examples=60)
def test_assignment_against_scipy(rows: int, columns: int, seed: int, has_ties: bool) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.integers(-3, 3, (rows, columns)).astype(float) if has_ties else rng.normal(size=(rows, columns))
    ours, theirs = assign(cost), linear_sum_assignment(cost)
    for chosen in ours:  # with ties another choice may be as good
        assert len(set(chosen.tolist())) == min(rows, columns)
    assert (np.diff(ours[0]) > 0).all()
    assert cost[ours].sum() == pytest.approx(cost[theirs].sum())


def test_assignment_refuses_infinity() -> None:
    with pytest.raises(ValueError, match="cost must be finite"):
        assign(np.array([[np.inf]]))


def test_velocity_decays_exponentially() -> None:
    """v <- 0.7 v + 0.3 (x_now - x_before), for centre and width; the aspect is the last one."""
    tracker = DecayTracker(TrackerConfig(decay=0.7))
    positions, widths = [100.0, 104.0, 106.0, 113.0], [20.0, 20.5, 21.0, 20.0]
    for x, width in zip(positions, widths, strict=True):
        tracker.update(seen(box(x, 200, width, 40)))
    assert len(tracker) == 1
    speed = growth = 0.0
    for i in range(1, 4):
        speed = 0.7 * speed + 0.3 * (positions[i] - positions[i - 1])
        growth = 0.7 * growth + 0.3 * (widths[i] - widths[i - 1])
    x1, y1, x2, y2 = tracker.predict(*SIZE)[0]
    assert (x1 + x2) / 2 == pytest.approx(113 + speed)
    assert x2 - x1 == pytest.approx(20 + growth)
    assert (y2 - y1) / (x2 - x1) == pytest.approx(2.0)


def test_confidence_is_earned_and_spent() -> None:
    """A young track survives one miss; one with a full stock of 3 survives three, moving on, and is found again."""
    tracker = DecayTracker(TrackerConfig(max_confidence=3))
    tracker.update(seen(box(100, 200)))
    tracker.update(seen())
    assert tracker.confidences.tolist() == [0]
    tracker.update(seen())
    assert len(tracker) == 0
    for i in range(12):
        tracker.update(seen(box(100 + 2 * i, 200)))
    assert tracker.confidences.tolist() == [3]
    for _ in range(3):
        tracker.update(seen())
    x1, _, x2, _ = tracker.boxes[0]
    assert (x1 + x2) / 2 == pytest.approx(122 + 3 * 2, abs=0.3)
    tracker.update(seen(box(130, 200)))
    assert tracker.identities.tolist() == [1]


def test_crossing_objects_keep_their_identity() -> None:
    tracker = DecayTracker()
    for i in range(30):
        left, right = box(100 + 6 * i, 200), box(274 - 6 * i, 204)
        tracker.update(seen(*((left, right) if i % 2 else (right, left))))
    assert sorted(tracker.identities.tolist()) == [0, 1]
    by_identity = dict(zip(tracker.identities.tolist(), tracker.boxes.tolist(), strict=True))
    assert by_identity[0][0] < by_identity[1][0]  # the one that began on the right has gone left


def test_classes_are_apart() -> None:
    tracker = DecayTracker()
    tracker.update(seen(box(100, 200), classes=[1]))
    tracker.update(seen(box(100, 200), classes=[2]))
    assert tracker.classes.tolist() == [1, 2]
    assert tracker.confidences.tolist() == [0, 1]


def test_what_is_not_proposed() -> None:
    """Too narrow, or mostly outside of the frame; tracked all the same."""
    tracker = DecayTracker()
    tracker.update(seen(box(100, 200, width=9), box(595, 100), box(604, 300), box(300, 100)))
    assert len(tracker) == 4
    proposals = tracker.predict(*SIZE)
    assert proposals.tolist() == [[585, 80, 600, 120], [290, 80, 310, 120]]


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got 1.5"):
        TrackerConfig(decay=1.5)
    with pytest.raises(ValueError, match="max_confidence must be at least 1, got 0"):
        TrackerConfig(max_confidence=0)
    with pytest.raises(ValueError, match="boxes, scores and classes must have shapes"):
        Detections(np.zeros((2, 4)), np.zeros(3), np.zeros(2, dtype=np.int64))
