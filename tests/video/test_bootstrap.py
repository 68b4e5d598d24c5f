"""Intervals of an average delay: against direct resampling, and their coverage in a simulation."""

from typing import Any

import numpy as np
import pytest

from dgcomp import video
from dgcomp.video.aggregate import harmonic_delay, mean_delays
from dgcomp.video.bootstrap import _weights
from tests.video.scenes import make_scene


@pytest.mark.parametrize("mode", ["official", "exact", "censored"])
def test_weights_are_resamples(mode: Any) -> None:
    result = video.average_delay(*make_scene(3), mode=mode)
    interval = video.bootstrap(result, num_resamples=20, seed=4)
    for weights, sample in zip(_weights(result, "track", 20, 4), interval.samples, strict=True):
        drawn = np.repeat(np.arange(len(result.tracks)), weights.astype(int))
        assert len(drawn) == len(result.tracks)
        means = mean_delays(result.track_delays[:, drawn], result.detected[:, drawn], mode=mode, window=30)
        assert sample == pytest.approx(float(harmonic_delay(means)), rel=1e-5)
    assert interval.low <= result.average_delay <= interval.high
    assert (interval.delays_low <= interval.delays_high).all()
    assert interval.samples.tolist() == video.bootstrap(result, num_resamples=20, seed=4).samples.tolist()


def test_whole_sequences() -> None:
    result = video.average_delay(*make_scene(3, num_sequences=4), mode="exact")
    weights = _weights(result, "sequence", 50, 0)
    sequence = np.array(result.tracks.sequence)
    for name in set(sequence.tolist()):
        own = weights[:, sequence == name]
        assert (own == own[:, :1]).all()
    assert video.bootstrap(result, unit="sequence").low >= 0


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Geometric delays of chance 1/4: the mean is 3; 90 % intervals of 100 objects must hold it in about 90 %."""
    rng, hits = np.random.default_rng(0), 0
    result = video.average_delay({"a": [(f, t, 1, 0, 0, 9, 9) for t in range(100) for f in (0, 1)]}, {}, "exact")
    for trial in range(200):
        delays = rng.geometric(0.25, (1, 100)) - 1.0
        drawn = type(result)(
            **{**vars(result), "track_delays": delays, "detected": np.ones((1, 100), bool), "window": None}
        )
        interval = video.bootstrap(drawn, level=0.9, num_resamples=200, seed=trial)
        hits += interval.low <= 3 <= interval.high
    assert 0.8 < hits / 200 < 0.97


def test_bad_arguments_are_named() -> None:
    result = video.average_delay(*make_scene(3))
    bad: list[tuple[dict[str, Any], str]] = [
        ({"level": 95}, "level must lie in"),
        ({"num_resamples": 0}, "num_resamples must be at least 1"),
        ({"unit": "frame"}, "unit must be one of track, sequence, got 'frame'"),
    ]
    for options, message in bad:
        with pytest.raises(ValueError, match=message):
            video.bootstrap(result, **options)
