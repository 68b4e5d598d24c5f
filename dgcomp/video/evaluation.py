"""What every delay starts from: checked columns, matches and objects."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from dgcomp.video.aggregate import Mode
from dgcomp.video.columns import Bools, Dataset, Floats, load
from dgcomp.video.difficulty import Difficulty, join_ignored, split_by_difficulty
from dgcomp.video.matching import Matches, match_exact, match_official
from dgcomp.video.tracks import Clock, ImageSize, Tracks, collect_tracks, delays_at


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Detections matched to objects, before any threshold is chosen."""

    data: Dataset
    matches: Matches
    tracks: Tracks
    mode: Mode

    def delays_at(self, thresholds: Floats) -> tuple[Floats, Bools]:
        """Delay and detection of each object at each threshold, both of shape (A, T), by the mode's clock."""
        clock: Clock = "frames" if self.mode == "official" else "boxes"
        return delays_at(self.tracks, self.matches.box_score, thresholds, clock)


def evaluate(
    ground_truth: Mapping[Any, Any],
    detections: Mapping[Any, Any],
    mode: Mode,
    *,
    window: int | None,
    iou_threshold: float | Mapping[Any, float],
    classes: Iterable[Any] | None,
    ignored: Mapping[Any, Any] | None,
    difficulty: Difficulty | str | None,
    num_frames: Mapping[Any, int] | None,
    image_size: ImageSize | Mapping[Any, ImageSize] | None,
) -> Evaluation:
    """Match detections to objects in a mode's manner; arguments and errors as in `delay.average_delay`."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 frame, or None, got {window!r}")
    if difficulty is not None:
        ground_truth, too_hard = split_by_difficulty(ground_truth, difficulty)
        ignored = join_ignored(ignored, too_hard)
    data = load(ground_truth, detections, ignored=ignored, classes=classes, num_frames=num_frames)
    tracks = collect_tracks(data, drop_last_frame=mode == "official", image_size=image_size)
    match = match_official if mode == "official" else match_exact
    return Evaluation(data=data, matches=match(data, iou_threshold), tracks=tracks, mode=mode)
