"""How much an average delay would vary with other objects: percentile bootstrap."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from dgcomp.video.aggregate import harmonic_delay, mean_delays
from dgcomp.video.columns import Floats
from dgcomp.video.delay import DelayResult

Unit = Literal["track", "sequence"]


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Percentile intervals from R resamples at A operating points."""

    level: float
    low: float
    high: float
    """Bounds of the average delay, in frames."""
    delays_low: Floats
    delays_high: Floats
    """Bounds of the mean delay at each operating point, shape (A,)."""
    samples: Floats
    """Average delay of each resample, shape (R,)."""


def bootstrap(
    result: DelayResult, *, level: float = 0.95, num_resamples: int = 1000, unit: Unit = "track", seed: int = 0
) -> Bootstrap:
    """Confidence of an average delay over the choice of objects, at fixed thresholds.

    Objects are drawn with replacement. In one video they resemble each other; with `unit="sequence"` whole sequences
    are drawn, which is honest about that and needs some ten sequences to say anything. In mode "official" the
    published measure is resampled, in 64 bits.

    Raises
    ------
    ValueError
        If level is outside (0, 1), num_resamples below 1, or unit unknown.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level!r}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples!r}")
    if unit not in get_args(Unit):
        raise ValueError(f"unit must be one of {', '.join(get_args(Unit))}, got {unit!r}")
    weights = _weights(result, unit, num_resamples, seed)
    means = mean_delays(result.track_delays, result.detected, mode=result.mode, window=result.window, weights=weights)
    samples = harmonic_delay(means.T)
    percent = [50 * (1 - level), 50 * (1 + level)]
    low, high = np.percentile(samples, percent)
    delays_low, delays_high = np.percentile(means, percent, axis=1)
    return Bootstrap(
        level=level,
        low=float(low),
        high=float(high),
        delays_low=delays_low,
        delays_high=delays_high,
        samples=samples,
    )


def _weights(result: DelayResult, unit: Unit, num_resamples: int, seed: int) -> Floats:
    """How often each object is drawn in each resample, shape (R, T)."""
    rng = np.random.default_rng(seed)
    members = np.arange(len(result.tracks))
    if unit == "sequence":
        codes = {sequence: code for code, sequence in enumerate(dict.fromkeys(result.tracks.sequence))}
        members = np.array([codes[sequence] for sequence in result.tracks.sequence])
    num_units = int(members.max()) + 1
    drawn = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size=num_resamples)
    return drawn[:, members].astype(np.float64)
