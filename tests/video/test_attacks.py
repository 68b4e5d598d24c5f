"""Retardation and tail boost: what they change, and that delay and average precision answer as they should."""

import pytest

from dgcomp import video
from tests.video.test_delay import PETS, mot15, seen, walk

GROUND_TRUTH = {"a": walk(2, 59)}


def test_retardation_takes_the_first_detections() -> None:
    detections = {"a": seen(3, 5, 5, 9, 20, 30, score=0.5) + [(0, "person", 0.4, 900, 0, 950, 50)]}
    first = video.retardation(GROUND_TRUTH, detections)
    assert [row[2] for row in first["a"]] == [0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4]
    second = video.retardation(GROUND_TRUTH, detections, times=2)
    assert [row[2] for row in second["a"]] == [0, 0, 0, 0.5, 0.5, 0.5, 0.4]  # both at frame 5
    assert video.retardation(GROUND_TRUTH, first)["a"] == second["a"]
    assert video.retardation(GROUND_TRUTH, detections, times=9)["a"][5][2] == 0
    assert detections["a"][0][2] == 0.5
    assert video.retardation(GROUND_TRUTH, detections, times=0) == detections
    logits = {"a": seen(3, score=-2.0) + seen(4, score=-5.0)}
    assert [row[2] for row in video.retardation(GROUND_TRUTH, logits)["a"]] == [-5, -5]
    with pytest.raises(ValueError, match="times must not be negative"):
        video.retardation(GROUND_TRUTH, detections, times=-1)


def test_tail_boost_takes_what_is_late() -> None:
    detections = {"a": seen(3, score=0.1) + seen(5, 14, 15, score=0.3) + seen(31, score=0.1) + seen(40, score=0.5)}
    boosted = video.tail_boost(GROUND_TRUTH, detections)
    # first seen, with 0.2 or more, in frame 5: 10 frames later is 15; below 0.2 nothing changes
    assert [row[2] for row in boosted["a"]] == [0.1, 0.3, 0.3, 1, 0.1, 1]
    late = {"a": seen(31, 32, score=0.3)}  # 30 frames after it appeared
    assert [row[2] for row in video.tail_boost(GROUND_TRUTH, late)["a"]] == [0.3, 1]


STRICT = (0.01, 0.02, 0.03, 0.05, 0.1)
"""False alarms a box that Faster R-CNN's detections reach: none is saturated, where a score of 0 still counts."""


@pytest.mark.data
def test_answers_on_real_video() -> None:
    ground_truth, detections = mot15(PETS)
    before = video.average_delay(ground_truth, detections, "exact", false_positive_ratios=STRICT)
    for times in (1, 2, 3, 5):
        later = video.retardation(ground_truth, detections, times)
        slow = video.average_delay(ground_truth, later, "exact", false_positive_ratios=STRICT)
        assert 0.9 < (slow.average_delay - before.average_delay) / times < 1.2
        assert abs(slow.precision.mean - before.precision.mean) < 0.005
    boosted = video.tail_boost(ground_truth, detections)
    for mode in ("official", "exact", "censored"):
        before = video.average_delay(ground_truth, detections, mode)
        sure = video.average_delay(ground_truth, boosted, mode)
        assert sure.precision.mean > before.precision.mean + 0.05
        assert sure.average_delay == pytest.approx(before.average_delay, abs=1e-6)


def test_answers_on_made_up_video() -> None:
    """The same without the data: one detection in five is unsure, and false alarms lie between those and the others."""
    ground_truth = {f"s{i}": walk(5, 105) for i in range(20)}
    detections = {
        sequence: [(f, "person", 0.8 if (7 * f + i) % 5 else 0.3, *box) for f, _, _, *box in rows]
        + seen(*range(60, 100), score=0.5 + 0.01 * i, box=(900, 0, 950, 90))
        for i, (sequence, rows) in enumerate(ground_truth.items())
    }
    before = video.average_delay(ground_truth, detections, "exact", false_positive_ratios=STRICT)
    for times in (1, 2, 4):
        later = video.retardation(ground_truth, detections, times)
        slow = video.average_delay(ground_truth, later, "exact", false_positive_ratios=STRICT)
        assert 0.9 < (slow.average_delay - before.average_delay) / times < 1.5
        assert abs(slow.precision.mean - before.precision.mean) < 0.01 * times
    sure = video.average_delay(
        ground_truth, video.tail_boost(ground_truth, detections), "exact", false_positive_ratios=STRICT
    )
    assert sure.precision.mean > before.precision.mean + 0.02
    assert sure.average_delay == pytest.approx(before.average_delay)
