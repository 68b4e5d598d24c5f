"""Average precision beside the delays: VOC's from the same matching, COCO's from pycocotools."""

import contextlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dgcomp.video.columns import ANY_CLASS, Bools, Boxes, Dataset, Floats, load
from dgcomp.video.difficulty import Difficulty, join_ignored, split_by_difficulty
from dgcomp.video.matching import Matches


@dataclass(frozen=True, kw_only=True)
class VOCPrecision:
    """Area under the precision-recall envelope at one IoU threshold (VOC 2010 on), of the classes that have objects."""

    mean: float
    by_class: dict[Any, float]


@dataclass(frozen=True, kw_only=True)
class COCOPrecision:
    """COCO's averages over 101 recalls, at most 100 detections a frame; nan where there is no object."""

    ap: float
    """Mean over classes and IoU 0.50:0.05:0.95."""
    ap50: float
    ap75: float
    ap_small: float
    """Of boxes below 32^2 square pixels; medium up to 96^2, large above."""
    ap_medium: float
    ap_large: float


def voc_precision(data: Dataset, matches: Matches) -> VOCPrecision:
    """Average precision of each class from hits and false alarms that are already known."""
    num_boxes = np.bincount(data.ground_truth.label, minlength=len(data.classes))
    by_class = {}
    for code in np.flatnonzero(num_boxes):
        own = (data.detections.label == code) & ~matches.ignored
        by_class[data.classes[code]] = average_precision(
            data.detections.score[own], matches.true_positive[own], int(num_boxes[code])
        )
    return VOCPrecision(mean=float(np.mean(list(by_class.values()))), by_class=by_class)


def average_precision(score: Floats, true_positive: Bools, num_boxes: int) -> float:
    """Area under the monotone envelope of precision over recall, of detections that are hits or false alarms."""
    hits = np.cumsum(true_positive[np.argsort(-score, kind="stable")])
    recall = np.concatenate([[0.0], hits / num_boxes])
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * envelope).sum())


def coco_precision(
    ground_truth: Mapping[Any, Any],
    detections: Mapping[Any, Any],
    *,
    classes: Iterable[Any] | None = None,
    ignored: Mapping[Any, Any] | None = None,
    difficulty: Difficulty | str | None = None,
) -> COCOPrecision:
    """COCO's average precision, computed by pycocotools; arguments as in `average_delay`.

    Regions and boxes to be ignored become "crowd" boxes, which take any number of detections without a penalty.

    Raises
    ------
    ModuleNotFoundError
        Without pycocotools.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("COCO's average precision needs pycocotools: pip install 'dgcomp[video]'") from error
    if difficulty is not None:
        ground_truth, too_hard = split_by_difficulty(ground_truth, difficulty)
        ignored = join_ignored(ignored, too_hard)
    data = load(ground_truth, detections, ignored=ignored, classes=classes)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports every stage
        truth = COCO()
        truth.dataset = _coco_dataset(data)
        truth.createIndex()
        found = truth.loadRes(_coco_results(data)) if len(data.detections) else COCO()
        evaluation = COCOeval(truth, found, "bbox")
        if len(data.detections):
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            stats = [float(value) if value >= 0 else np.nan for value in evaluation.stats[:6]]
        else:
            stats = [0.0] * 6
    return COCOPrecision(**dict(zip(COCOPrecision.__annotations__, stats, strict=True)))


def _coco_dataset(data: Dataset) -> dict[str, Any]:
    """Images are (sequence, frame) pairs; crowd boxes stand in for what is ignored."""
    keys = np.unique(np.concatenate([data.key(b, by_class=False) for b in (data.ground_truth, data.detections)]))
    boxes = [box | {"iscrowd": 0} for box in _annotations(data, data.ground_truth)]
    for box in _annotations(data, data.ignored):
        labels = range(len(data.classes)) if box["category_id"] == ANY_CLASS else [box["category_id"]]
        boxes += [box | {"iscrowd": 1, "category_id": label} for label in labels]
    return {
        "info": {},
        "images": [{"id": key} for key in keys.tolist()],
        "categories": [{"id": code} for code in np.unique(data.ground_truth.label).tolist()],
        # pycocotools takes id 0 for "not matched"
        "annotations": [box | {"id": number} for number, box in enumerate(boxes, start=1)],
    }


def _coco_results(data: Dataset) -> list[dict[str, Any]]:
    scores = data.detections.score.tolist()
    return [box | {"score": score} for box, score in zip(_annotations(data, data.detections), scores, strict=True)]


def _annotations(data: Dataset, boxes: Boxes) -> list[dict[str, Any]]:
    sides = np.concatenate([boxes.corners[:, :2], boxes.corners[:, 2:] - boxes.corners[:, :2]], axis=1)
    columns = data.key(boxes, by_class=False).tolist(), boxes.label.tolist(), sides.tolist()
    return [
        {"image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3]}
        for image, label, box in zip(*columns, strict=True)
    ]
