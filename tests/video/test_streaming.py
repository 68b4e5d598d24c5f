"""Detections as seen in real time, against a simulation in small steps of time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgcomp import video
from dgcomp.video.streaming import newest_finished
from tests.video.test_delay import seen, walk


def simulate(latency: list[int], period: int) -> list[int]:
    """Newest finished frame at each frame's time, in whole ticks; one processor that takes the newest frame."""
    num_frames = len(latency)
    shown, busy_with, busy_until, last, done = [], None, 0, -1, -1
    for tick in range(num_frames * period):
        if busy_with is not None and tick == busy_until:
            done, busy_with = busy_with, None
        while busy_with is None and tick // period > last:
            busy_with = last = tick // period
            busy_until = tick + latency[busy_with]
            if latency[busy_with] == 0:
                done, busy_with = busy_with, None
        if tick % period == 0:
            shown.append(done)
    return shown


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 25), min_size=1, max_size=15), st.integers(1, 10))
def test_schedule_equals_a_simulation_in_ticks(latency: list[int], period: int) -> None:
    assert newest_finished(np.array(latency) / period) == simulate(latency, period)


def test_examples() -> None:
    assert newest_finished(np.zeros(4)) == [0, 1, 2, 3]
    assert newest_finished(np.ones(4)) == [-1, 0, 1, 2]
    assert newest_finished(np.full(6, 1.5)) == [-1, -1, 0, 1, 1, 3]
    assert newest_finished(np.full(3, 9.0)) == [-1, -1, -1]
    assert newest_finished(np.full(4, 0.1 + 0.2) / 0.3) == [-1, 0, 1, 2]  # on time but for the last bit
    assert newest_finished(np.empty(0)) == []


def test_rows_move_to_the_frames_in_which_they_are_seen() -> None:
    detections = {"a": [(0, "p", 0.5, 0, 0, 1, 1), (1, "p", 0.6, 1, 0, 2, 1), (1, "p", 0.7, 5, 0, 6, 1)], "b": []}
    streamed = video.as_streamed(detections, latency_ms=40, frame_rate_hz=25, num_frames={"a": 3, "b": 2})
    assert streamed == {
        "a": [(1, "p", 0.5, 0, 0, 1, 1), (2, "p", 0.6, 1, 0, 2, 1), (2, "p", 0.7, 5, 0, 6, 1)],
        "b": [],
    }
    as_array = {"a": np.array([(0, 1, 0.5, 0, 0, 1, 1)])}
    own = {"a": [10.0, 80.0, 10.0]}
    assert video.as_streamed(as_array, latency_ms=own, frame_rate_hz=25, num_frames={"a": 3}) == {
        "a": [(1, 1, 0.5, 0, 0, 1, 1), (2, 1, 0.5, 0, 0, 1, 1)]
    }


def test_delay_holds_what_computing_costs() -> None:
    ground_truth, detections = {"a": walk(4, 40)}, {"a": seen(*range(6, 41))}
    delays = [
        video.average_delay(ground_truth, detections, "exact", frame_rate_hz=10, latency_ms=latency).average_delay_ms
        for latency in (0, 50, 100, 150, 1000)
    ]
    # missed in two frames; a latency of half a frame or a whole one costs a frame; at 150 ms frame 6 is looked at,
    # and seen in frame 8 (900 ms after 0 would be frame 8's start); at 1 s frames 0, 10, 20 are looked at
    assert delays == pytest.approx([200, 300, 300, 400, 1600])


def test_bad_latencies_are_named() -> None:
    for latency, message in (
        (-1, "latency_ms must be finite numbers from 0 on, got -1"),
        (float("nan"), "latency_ms must be finite"),
        ({"a": [1.0]}, r"latency_ms\['a'\] must have a value for each of 2 frames, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            video.as_streamed({"a": seen(1)}, latency_ms=latency, frame_rate_hz=10, num_frames={"a": 2})
    with pytest.raises(ValueError, match="frame_rate_hz must be positive, got 0"):
        video.as_streamed({"a": seen(1)}, latency_ms=1, frame_rate_hz=0, num_frames={"a": 2})
