"""KITTI's levels of difficulty: boxes harder than the level count neither as objects nor as false alarms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dgcomp.video.columns import GroundTruthRows, IgnoredRows, as_list


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """The hardest box that still counts."""

    min_height_px: float
    max_occlusion: int
    """0: fully visible, 1: partly hidden, 2: largely hidden, 3: unknown."""
    max_truncation: float
    """Share of the object outside the picture (object benchmark), or 0, 1, 2 for none, partly, largely (tracking)."""


# KITTI object benchmark, "cvlibs.net/datasets/kitti/eval_object.php": minimum height, occlusion, truncation. Tracking
# labels give truncation as 0, 1 or 2, so that there only an object inside the picture meets any level.
LEVELS = {
    "easy": Difficulty(min_height_px=40, max_occlusion=0, max_truncation=0.15),
    "moderate": Difficulty(min_height_px=25, max_occlusion=1, max_truncation=0.30),
    "hard": Difficulty(min_height_px=25, max_occlusion=2, max_truncation=0.50),
}


def split_by_difficulty(
    ground_truth: Mapping[Any, Any], difficulty: Difficulty | str
) -> tuple[GroundTruthRows, IgnoredRows]:
    """Ground truth that meets the level, and the rest as boxes to be ignored.

    Rows are (frame, track, class, x1, y1, x2, y2, truncation, occlusion), as `readers.read_kitti` gives them. An
    object's clock starts in the first frame in which it meets the level.

    Raises
    ------
    ValueError
        For an unknown level or rows without truncation and occlusion.
    """
    if isinstance(difficulty, str):
        if difficulty not in LEVELS:
            raise ValueError(f"difficulty must be one of {', '.join(LEVELS)} or a Difficulty, got {difficulty!r}")
        difficulty = LEVELS[difficulty]
    kept: GroundTruthRows = {}
    ignored: IgnoredRows = {}
    for sequence, rows in ground_truth.items():
        kept[sequence], ignored[sequence] = [], []
        for i, row in enumerate(as_list(rows)):
            if len(row) < 9:
                raise ValueError(
                    f"difficulty needs truncation and occlusion as the 8th and 9th value of a row, "
                    f"got {len(row)} values in ground_truth[{sequence!r}] row {i}"
                )
            if _counts(row, difficulty):
                kept[sequence].append(tuple(row))
            else:
                ignored[sequence].append((row[0], row[2], *row[3:7]))
    return kept, ignored


def join_ignored(*parts: Mapping[Any, Any] | None) -> IgnoredRows:
    """Everything that any of the arguments wants ignored."""
    joined: IgnoredRows = {}
    for part in parts:
        for sequence, rows in (part or {}).items():
            joined.setdefault(sequence, []).extend(tuple(row) for row in as_list(rows))
    return joined


def _counts(row: Any, level: Difficulty) -> bool:
    y1, y2, truncation, occlusion = float(row[4]), float(row[6]), float(row[7]), float(row[8])
    return y2 - y1 >= level.min_height_px and occlusion <= level.max_occlusion and truncation <= level.max_truncation
