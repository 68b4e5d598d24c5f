"""Delays of a part of the objects: by size, class, way of entering, or anything else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from dgcomp.video.aggregate import harmonic_delay, mean_delays, survival
from dgcomp.video.columns import Bools, Floats
from dgcomp.video.delay import DelayResult

By = Literal["size", "class", "entry", "sequence"]

SIZES_PX = {"small": (0.0, 40.0), "medium": (40.0, 100.0), "large": (100.0, np.inf)}
"""Mean shorter side over an object's first 30 boxes, from and below (VMetrics, eval_map_ad.py)."""


@dataclass(frozen=True, kw_only=True)
class GroupDelay:
    """Delays of the objects of one group, at the thresholds of the whole."""

    average_delay: float
    delays: Floats
    """Shape (A,)."""
    num_tracks: int
    never_detected: float
    """Share of the objects, mean over the operating points."""


def breakdown(result: DelayResult, by: By | Sequence[Any]) -> dict[Any, GroupDelay]:
    """Average delay of groups of objects, at the thresholds chosen for all of them.

    Parameters
    ----------
    by : "size", "class", "entry", "sequence", or the group of each object in the order of `result.tracks`
        "entry" tells objects there from the start, and those that enter at the border or appear inside the picture
        (these two need `image_size`; "later" without it). Groups without objects are left out.

    Raises
    ------
    ValueError
        For an unknown name or a wrong number of groups.
    """
    groups = groups_of(result, by)
    known = list(dict.fromkeys(groups)) if by != "size" else [size for size in SIZES_PX if size in groups]
    return {group: _part(result, np.array([group == other for other in groups])) for group in known}


def groups_of(result: DelayResult, by: By | Sequence[Any]) -> list[Any]:
    """The group of each object."""
    if isinstance(by, str):
        if by not in get_args(By):
            raise ValueError(f"by must be one of {', '.join(get_args(By))} or a group for each object, got {by!r}")
        tracks = result.tracks
        named = {"class": tracks.label, "entry": tracks.entry, "sequence": tracks.sequence}
        return named[by] if by in named else [_size(size) for size in tracks.size_px.tolist()]
    if len(by) != len(result.tracks):
        raise ValueError(f"by must hold a group for each of {len(result.tracks)} objects, got {len(by)}")
    return list(by)


def survival_curve(result: DelayResult, point: int, num_frames: int | None = None) -> Floats:
    """Share of objects still unseen after each of their frames, at operating point number `point`.

    The Kaplan-Meier estimate, whatever the mode: objects that were never detected count as long as they were there.
    Shape (num_frames,), by default the result's window.
    """
    frames = num_frames or result.window or int(result.track_delays.max()) + 1
    return survival(result.track_delays[point], result.detected[point], frames)


def _part(result: DelayResult, chosen: Bools) -> GroupDelay:
    delays, detected = result.track_delays[:, chosen], result.detected[:, chosen]
    means = mean_delays(delays, detected, mode=result.mode, window=result.window)
    return GroupDelay(
        average_delay=float(harmonic_delay(means)),
        delays=means.astype(np.float64),
        num_tracks=int(chosen.sum()),
        never_detected=float(1 - detected.mean()),
    )


def _size(size_px: float) -> str:
    return next(name for name, (low, high) in SIZES_PX.items() if low <= size_px < high)
