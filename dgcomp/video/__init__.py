"""Detection in video: how late objects are first seen, and how to see them early at little cost."""

from dgcomp.video.attacks import retardation, tail_boost
from dgcomp.video.average_precision import COCOPrecision, VOCPrecision, coco_precision
from dgcomp.video.bootstrap import Bootstrap, bootstrap
from dgcomp.video.breakdown import GroupDelay, breakdown, survival_curve
from dgcomp.video.delay import DEFECTS, DelayResult, average_delay
from dgcomp.video.delay_at_precision import MeanDelayResult, mean_delay
from dgcomp.video.difficulty import Difficulty, split_by_difficulty
from dgcomp.video.readers import (
    IMAGENET_VID_CLASSES,
    Annotations,
    read_detections,
    read_ground_truth,
    write_vid_detections,
)
from dgcomp.video.streaming import as_streamed

__all__ = [
    "DEFECTS",
    "IMAGENET_VID_CLASSES",
    "Annotations",
    "Bootstrap",
    "COCOPrecision",
    "DelayResult",
    "Difficulty",
    "GroupDelay",
    "MeanDelayResult",
    "VOCPrecision",
    "as_streamed",
    "average_delay",
    "bootstrap",
    "breakdown",
    "coco_precision",
    "mean_delay",
    "read_detections",
    "read_ground_truth",
    "retardation",
    "split_by_difficulty",
    "survival_curve",
    "tail_boost",
    "write_vid_detections",
]
