"""Mean delay at a precision, by hand and against plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp import video
from dgcomp.video.operating import precision_point
from tests.video.test_delay import ELSEWHERE, seen, walk

TWO_CLASSES = {"a": walk(0, 9) + walk(0, 9, 2, "dog", ELSEWHERE)}


def test_the_lowest_threshold_that_has_the_precision() -> None:
    ground_truth = {"a": walk(0, 9)}
    right, wrong = seen(5, score=0.9) + seen(3, score=0.6), seen(0, score=0.8, box=ELSEWHERE)
    # precision falls to 1/2 at 0.8 and rises to 2/3 at 0.6
    result = video.mean_delay(ground_truth, {"a": right + wrong}, precision=0.6)
    assert (result.mean_delay, result.precision, result.saturated) == (3, pytest.approx(2 / 3), True)
    strict = video.mean_delay(ground_truth, {"a": right + wrong}, precision=0.8)
    assert (strict.mean_delay, strict.class_thresholds, strict.saturated) == (5, {"person": 0.9}, False)
    assert float(strict) == 5


def test_where_no_threshold_has_it() -> None:
    result = video.mean_delay({"a": walk(0, 9)}, {"a": seen(0, box=ELSEWHERE)}, precision=0.8)
    assert (result.mean_delay, result.reached, result.saturated) == (10, False, False)
    assert math.isnan(result.precision)
    assert result.class_thresholds == {"person": math.inf}
    assert not result.detected.any()
    assert video.mean_delay({"a": walk(0, 9)}, {}).mean_delay == 10
    assert video.mean_delay({"a": walk(0, 9)}, {}, mode="official").mean_delay == 8  # as the published code counts


def test_classes_count_alike() -> None:
    detections = {"a": seen(1, score=0.9) + seen(4, label="dog", box=ELSEWHERE, score=0.5)}
    result = video.mean_delay(TWO_CLASSES, detections)
    assert result.class_delays == {"person": 1, "dog": 4}
    assert result.mean_delay == 2.5
    # three false dogs: the mean over classes still is (1 + 1/4) / 2 with all detections
    detections["a"] += seen(6, 7, 8, label="dog", score=0.4)
    assert video.mean_delay(TWO_CLASSES, detections, precision=0.625).saturated
    strict = video.mean_delay(TWO_CLASSES, detections, precision=0.63)
    assert strict.class_thresholds == {"person": 0.5, "dog": 0.5}
    # detections of a class that is nowhere to be seen have no part in it
    detections["a"] += seen(2, label="cat", score=0.95)
    assert video.mean_delay(TWO_CLASSES, detections, precision=0.63).mean_delay == 2.5


def test_a_threshold_for_each_class() -> None:
    wrong = seen(0, label="dog", box=(0, 0, 5, 5), score=0.7)
    detections = {"a": seen(1, score=0.3) + seen(2, score=0.9) + seen(4, label="dog", box=ELSEWHERE, score=0.8) + wrong}
    result = video.mean_delay(TWO_CLASSES, detections, precision=0.9, per_class=True)
    assert result.class_thresholds == {"person": -math.inf, "dog": 0.8}
    assert result.class_delays == {"person": 1, "dog": 4}


def test_censored_and_window() -> None:
    ground_truth = {"a": walk(0, 9) + walk(0, 3, 2, box=ELSEWHERE)}
    detections = {"a": seen(8)}
    assert video.mean_delay(ground_truth, detections).mean_delay == (8 + 4) / 2
    assert video.mean_delay(ground_truth, detections, mode="censored").mean_delay == 8
    assert video.mean_delay(ground_truth, detections, window=6).mean_delay == (6 + 4) / 2


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.booleans()), max_size=20), st.floats(0.05, 1))
def test_threshold_equals_plain_loops(rows: list[tuple[int, int, bool]], precision: float) -> None:
    score, label, hit = (np.array([row[i] for row in rows]) for i in range(3))
    expected = math.inf
    for level in sorted({row[0] for row in rows}, reverse=True):
        kept = [row for row in rows if row[0] >= level]
        by_class = [[row[2] for row in kept if row[1] == one] for one in {row[1] for row in kept}]
        if np.mean([np.mean(own) for own in by_class]) >= precision - 1e-9:
            expected = level
    hit = hit.astype(bool)
    threshold, reached, everything = precision_point(score.astype(float), label.astype(int), hit, ~hit, precision)
    if everything:
        assert expected == min(row[0] for row in rows)
    else:
        assert threshold == expected
    assert math.isnan(reached) == math.isinf(expected)


def test_bad_precision() -> None:
    with pytest.raises(ValueError, match=r"precision must lie in \(0, 1\], got 80"):
        video.mean_delay({"a": walk(0, 9)}, {}, precision=80)
