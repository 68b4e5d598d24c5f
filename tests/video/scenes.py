"""Made-up videos with every trouble a metric has to live with: gaps, ties, duplicates, crossings, wrong classes."""

from random import Random

from dgcomp.video.columns import DetectionRows, GroundTruthRows

Row = tuple[float, ...]


def make_scene(
    seed: int = 0, *, num_sequences: int = 3, num_frames: int = 60, num_tracks: int = 6, false_per_frame: float = 12.0
) -> tuple[GroundTruthRows, DetectionRows]:
    """Ground truth and detections of a few sequences, the same for a seed on every machine.

    Scores have two decimals, so that many are equal; objects have classes 1 to 3, false detections 1 to 4; every track
    may have a gap; false detections suffice for 3.2 a box. Drawn by Random.random alone, which Python promises to keep.
    """
    rng = Random(seed)
    ground_truth: GroundTruthRows = {}
    detections: DetectionRows = {}
    for s in range(num_sequences):
        rows = [row for track in range(num_tracks) for row in _track(rng, track, num_frames)]
        rows.sort(key=lambda row: row[0])
        found = [detection for row in rows for detection in _detections(rng, row)]
        num_false = [int(2 * false_per_frame * rng.random()) for _ in range(num_frames)]
        found += [_false(rng, frame) for frame, count in enumerate(num_false) for _ in range(count)]
        ground_truth[f"s{s:02d}"] = rows
        detections[f"s{s:02d}"] = sorted(found, key=lambda row: row[0])
    return ground_truth, detections


def _track(rng: Random, track: int, num_frames: int) -> list[Row]:
    first = 0 if rng.random() < 0.3 else _below(rng, num_frames)
    last = min(first + 1 + _below(rng, num_frames), num_frames)
    gap = first + 1 + _below(rng, 10)
    x1, y1, x2, y2 = _box(rng)
    vx, vy = 8 * rng.random() - 4, 8 * rng.random() - 4
    return [
        (frame, track, 1 + track % 3, x1 + vx * frame, y1 + vy * frame, x2 + vx * frame, y2 + vy * frame)
        for frame in range(first, last)
        if not gap <= frame < gap + 5
    ]


def _detections(rng: Random, row: Row) -> list[Row]:
    """None, one or two detections of a box, moved to about the edge of what still counts."""
    frame, _, label, *box = row
    size = min(box[2] - box[0], box[3] - box[1])
    rows = []
    for _ in range((0, 0, 0, 0, 1, 1, 1, 1, 1, 2)[_below(rng, 10)]):
        x1, y1, x2, y2 = (side + 0.5 * size * (rng.random() - 0.5) for side in box)
        score = round((rng.random() + rng.random() + 1) / 3, 2)
        rows.append((frame, label, score, x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)))
    return rows


def _false(rng: Random, frame: int) -> Row:
    return (frame, 1 + _below(rng, 4), round((rng.random() + rng.random()) / 2, 2), *_box(rng))


def _box(rng: Random) -> Row:
    x, y, w, h = 500 * rng.random(), 300 * rng.random(), 15 + 125 * rng.random(), 15 + 125 * rng.random()
    return (x, y, x + w, y + h)


def _below(rng: Random, end: int) -> int:
    return int(end * rng.random())
