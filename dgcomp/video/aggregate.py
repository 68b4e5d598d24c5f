"""From the waiting times of objects to one number: clipped means, survival estimates, and the mean over thresholds."""

from typing import Literal

import numpy as np

from dgcomp.video.columns import Bools, Floats

Mode = Literal["official", "exact", "censored"]

WINDOW = 30
"""No object counts as later than this many frames (VMetrics, eval_map_ad.py, "clipmax")."""


def mean_delays(
    delays: Floats, detected: Bools, *, mode: Mode, window: int | None, weights: Floats | None = None
) -> Floats:
    """The mean delay at each operating point in a mode's manner.

    `delays` and `detected` have shape (A, T). Shape (A,), or (A, R) with weights of shape (R, T), which say how often
    each object counts in R resamples.
    """
    if mode == "censored":
        rows = zip(delays, detected, strict=True)
        return np.stack([restricted_mean(row, seen, window, weights) for row, seen in rows])
    clipped = delays if window is None else np.minimum(delays, window)
    if weights is not None:
        return np.asarray(clipped @ weights.T / weights.sum(axis=1), np.float64)
    if mode == "official":
        clipped = clipped.astype(np.float32)
    means: Floats = clipped.mean(axis=1)
    return means


def survival(delays: Floats, detected: Bools, num_frames: int, weights: Floats | None = None) -> Floats:
    """Kaplan-Meier estimate of the chance that an object is still unseen after its frame k, for k = 0 on.

    An object seen at once has delay 0 and is gone from the curve at k = 0. One that was never seen in its n frames
    counts among those at risk in each of them and leaves after the last, censored. Where nobody is left the curve
    stays where it is, which is the cautious choice.

    Parameters
    ----------
    delays, detected : shape (T,)
        Waiting time in frames, and whether it ended with a detection.
    num_frames : int
        Length K of the curve.
    weights : shape (R, T), optional
        How often each object counts, for R resamples.

    Returns
    -------
    Floats, shape (K,), or (R, K) with weights

    References
    ----------
    Kaplan and Meier, Journal of the American Statistical Association 53 (1958), in discrete time.
    """
    events, at_risk = event_table(delays, detected, num_frames)
    if weights is None:
        num_events, num_at_risk = events.sum(0), at_risk.sum(0)
    else:
        num_events, num_at_risk = weights @ events, weights @ at_risk
    hazard = np.divide(num_events, num_at_risk, out=np.zeros_like(num_events), where=num_at_risk > 0)
    curve: Floats = np.cumprod(1 - hazard, axis=-1)
    return curve


def event_table(delays: Floats, detected: Bools, num_frames: int) -> tuple[Floats, Floats]:
    """Who is detected in frame k, and who could be: 1 or 0, both of shape (T, K)."""
    frames = np.arange(num_frames)
    events = detected[:, None] & (delays[:, None] == frames)
    last_at_risk = np.where(detected, delays, delays - 1)
    return events.astype(np.float64), (last_at_risk[:, None] >= frames).astype(np.float64)


def restricted_mean(delays: Floats, detected: Bools, window: int | None, weights: Floats | None = None) -> Floats:
    """Expected min(delay, window), from the survival curve; scalar, or shape (R,) with weights.

    The clipped mean where every object is detected. Without a window, the longest wait of the data bounds it.
    """
    num_frames = int(delays.max()) if window is None else window
    total: Floats = np.asarray(survival(delays, detected, num_frames, weights).sum(-1), np.float64)
    return total


def harmonic_delay(delays: Floats) -> Floats:
    """Average delay over operating points, the last axis: 1 / mean(1 / (D + 1)) - 1.

    1 / (D + 1) is the chance per frame of a geometric law of mean D; AD averages these chances and converts back
    (Mao et al., arXiv 1908.06368; the formula is the published code's).
    """
    mean: Floats = 1 / np.mean(1 / (delays + 1), axis=-1) - 1
    return mean
