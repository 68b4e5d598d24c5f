"""Average delay by plain loops, step by step as papers and defects are described; slow, and for tests alone."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

Rows = dict[str, list[tuple[Any, ...]]]


def iou(a: Sequence[float], b: Sequence[float], extra: float) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + extra
    height = min(a[3], b[3]) - max(a[1], b[1]) + extra
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + extra) * (box[3] - box[1] + extra) for box in (a, b)]
    return width * height / (areas[0] + areas[1] - width * height)


def official_average_delay(ground_truth: Rows, detections: Rows, alphas: Sequence[float]) -> tuple[float, list[float]]:
    """AD and the mean delay at each false-positive ratio, defects included."""
    scores, false, num_boxes = [], [], sum(map(len, ground_truth.values()))
    used = set()
    pool = [(row[2], sequence, row) for sequence, rows in detections.items() for row in rows]
    for score, sequence, row in sorted(pool, key=lambda entry: -entry[0]):
        scores.append(score)
        best, box = _best(row, ground_truth[sequence], extra=1)
        hit = best >= 0.5 and (sequence, box) not in used
        false.append(not hit)
        if hit:
            used.add((sequence, box))
    means = []
    for alpha in alphas:
        count, threshold = 0, 0.0
        for score, is_false in zip(scores, false, strict=True):
            count += is_false
            if count / num_boxes > alpha:
                threshold = score
                break
        delays = []
        for sequence, boxes in ground_truth.items():
            found = detections.get(sequence, [])
            end = max((row[0] for row in (*boxes, *found)), default=0)  # the last frame is left out
            seen: dict[Any, int] = {}
            for row in found:
                best, box = _best(row, boxes, extra=0)
                if row[2] >= threshold and row[0] < end and best > 0.5:
                    seen[boxes[box][1]] = min(seen.get(boxes[box][1], row[0]), row[0])
            frames = defaultdict(list)
            for row in boxes:
                if row[0] < end:
                    frames[row[1]].append(row[0])
            delays += [seen.get(track, max(own)) - min(own) for track, own in frames.items()]
        means.append(sum(min(delay, 30) for delay in delays) / len(delays))
    return len(means) / sum(1 / (mean + 1) for mean in means) - 1, means


def exact_average_delay(ground_truth: Rows, detections: Rows, alphas: Sequence[float]) -> tuple[float, list[float]]:
    """AD and the mean delay at each false-positive ratio, without the defects."""
    num_boxes = sum(map(len, ground_truth.values()))
    shown: dict[tuple[str, int], float] = {}  # score of the detection that takes a box
    false_scores = []
    pool = [(row[2], sequence, row) for sequence, rows in detections.items() for row in rows]
    for score, sequence, row in sorted(pool, key=lambda entry: -entry[0]):
        best, box = _best(row, ground_truth[sequence], extra=0)
        if best >= 0.5 and (sequence, box) not in shown:
            shown[sequence, box] = score
        else:
            false_scores.append(score)
    means = []
    for alpha in alphas:
        threshold = float("inf")
        for level in sorted({score for score, _, _ in pool}, reverse=True):
            if sum(score >= level for score in false_scores) / num_boxes > alpha:
                break
            threshold = level
        delays = []
        for sequence, boxes in ground_truth.items():
            for track in {row[1] for row in boxes}:
                own = sorted((row[0], i) for i, row in enumerate(boxes) if row[1] == track)
                hits = [k for k, (_, i) in enumerate(own) if shown.get((sequence, i), -float("inf")) >= threshold]
                delays.append(hits[0] if hits else len(own))
        means.append(sum(min(delay, 30) for delay in delays) / len(delays))
    return len(means) / sum(1 / (mean + 1) for mean in means) - 1, means


def _best(row: tuple[Any, ...], boxes: list[tuple[Any, ...]], extra: float) -> tuple[float, int]:
    """IoU and index of the first among the boxes of the same frame and class that overlap most."""
    best, index = 0.0, -1
    for i, box in enumerate(boxes):
        if box[0] == row[0] and box[2] == row[1]:
            overlap = iou(row[3:7], box[3:7], extra)
            if overlap > best:
                best, index = overlap, i
    return best, index
