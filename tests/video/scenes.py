"""Made-up videos with every trouble a metric has to live with: gaps, ties, duplicates, crossings, wrong classes."""

import numpy as np

from dgcomp.video.columns import DetectionRows, GroundTruthRows


def make_scene(
    seed: int = 0, *, num_sequences: int = 3, num_frames: int = 60, num_tracks: int = 6, false_per_frame: float = 12.0
) -> tuple[GroundTruthRows, DetectionRows]:
    """Ground truth and detections of a few sequences, the same for a seed on every machine.

    Scores have two decimals, so that many are equal; classes are 1 to 3; every track may have a gap; false detections
    suffice for 3.2 a box.
    """
    rng = np.random.default_rng(seed)
    ground_truth: GroundTruthRows = {}
    detections: DetectionRows = {}
    for s in range(num_sequences):
        name = f"s{s:02d}"
        ground_truth[name] = [row for track in range(num_tracks) for row in _track(rng, track, num_frames)]
        ground_truth[name].sort(key=lambda row: row[0])
        found = [d for row in ground_truth[name] for d in _detections(rng, row)]
        found += [_false(rng, frame) for frame in range(num_frames) for _ in range(rng.poisson(false_per_frame))]
        detections[name] = sorted(found, key=lambda row: row[0])
    return ground_truth, detections


def _track(rng: np.random.Generator, track: int, num_frames: int) -> list[tuple[float, ...]]:
    first = 0 if rng.random() < 0.3 else int(rng.integers(num_frames))
    last = min(first + int(rng.integers(1, num_frames)), num_frames)
    gap = first + int(rng.integers(1, 10))
    x, y, w, h = rng.uniform((0, 0, 15, 15), (500, 300, 140, 140))
    vx, vy = rng.uniform(-4, 4, 2)
    return [
        (frame, track, 1 + track % 3, x + vx * frame, y + vy * frame, x + vx * frame + w, y + vy * frame + h)
        for frame in range(first, last)
        if not gap <= frame < gap + 5
    ]


def _detections(rng: np.random.Generator, row: tuple[float, ...]) -> list[tuple[float, ...]]:
    """None, one or two detections of a box, jittered to about the edge of what still counts."""
    frame, _, label, *box = row
    size = min(box[2] - box[0], box[3] - box[1])
    rows = []
    for _ in range(int(rng.choice([0, 1, 2], p=[0.4, 0.5, 0.1]))):
        corners = np.array(box) + rng.normal(0, 0.12 * size, 4)
        corners[2:] = np.maximum(corners[2:], corners[:2] + 1)
        rows.append((frame, label, round(float(rng.beta(3, 2)), 2), *corners.tolist()))
    return rows


def _false(rng: np.random.Generator, frame: int) -> tuple[float, ...]:
    x, y, w, h = rng.uniform((0, 0, 15, 15), (500, 300, 140, 140))
    return (frame, int(rng.integers(1, 5)), round(float(rng.beta(2, 3)), 2), x, y, x + w, y + h)
