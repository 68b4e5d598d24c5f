"""Survival estimates against SciPy's, and the means of the modes against each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp.video.aggregate import harmonic_delay, mean_delays, restricted_mean, survival

WAITS = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=30)


def arrays(waits: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    """Delays of objects that were detected, and lengths (at least 1) of those that were not."""
    delays = np.array([delay if seen else delay + 1 for delay, seen in waits], np.float64)
    return delays, np.array([seen for _, seen in waits])


@settings(deadline=None, max_examples=50)
@given(WAITS)
def test_survival_is_kaplan_meier(waits: list[tuple[int, bool]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    delays, detected = arrays(waits)
    # a detection in frame d comes after d frames that went by unseen, and ends the wait within frame d: time d + 1
    times = stats.CensoredData.right_censored(np.where(detected, delays + 1, delays), ~detected)
    expected = stats.ecdf(times).sf.evaluate(np.arange(1, 16))
    assert survival(delays, detected, 15) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(WAITS, st.integers(1, 15))
def test_modes_agree_where_nothing_is_cut_off(waits: list[tuple[int, bool]], window: int) -> None:
    delays, _ = arrays(waits)
    everything = np.ones((1, len(delays)), bool)
    exact = mean_delays(delays[None], everything, mode="exact", window=window)
    assert exact == pytest.approx(np.minimum(delays, window).mean())
    assert mean_delays(delays[None], everything, mode="censored", window=window) == pytest.approx(exact)
    assert mean_delays(delays[None], everything, mode="official", window=window) == pytest.approx(exact, rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(WAITS, st.integers(1, 15))
def test_a_wait_that_was_cut_off_is_no_shorter_than_what_was_seen_of_it(
    waits: list[tuple[int, bool]], window: int
) -> None:
    delays, detected = arrays(waits)
    lower = np.minimum(delays, window).mean()
    assert lower - 1e-9 <= restricted_mean(delays, detected, window) <= window + 1e-9


def test_weights_are_repetitions() -> None:
    delays, detected = np.array([0.0, 3, 2, 5]), np.array([True, True, False, True])
    weights = np.array([[1.0, 2, 0, 3], [0, 1, 1, 0]])
    repeated = np.repeat(np.arange(4), [1, 2, 0, 3])
    curves = survival(delays, detected, 8, weights)
    assert curves[0] == pytest.approx(survival(delays[repeated], detected[repeated], 8))
    assert curves[1] == pytest.approx(survival(delays[1:3], detected[1:3], 8))


def test_average_delay_is_the_mean_chance() -> None:
    assert harmonic_delay(np.array([0.0, 1.0])) == pytest.approx(1 / 0.75 - 1)
    assert harmonic_delay(np.array([[3.0, 3.0], [0.0, 0.0]])) == pytest.approx([3, 0])
