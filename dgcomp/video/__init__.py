"""Detection in video: how late objects are first seen, and how to see them early at little cost."""

from dgcomp.video.attacks import retardation, tail_boost
from dgcomp.video.average_precision import COCOPrecision, VOCPrecision, coco_precision
from dgcomp.video.bootstrap import Bootstrap, bootstrap
from dgcomp.video.boxes import Boxes
from dgcomp.video.breakdown import GroupDelay, breakdown, survival_curve
from dgcomp.video.catdet import CaTDet, CaTDetConfig, Ledger
from dgcomp.video.catdet_schedule import OperatingPoint, choose_point, config_grid, sweep
from dgcomp.video.delay import DEFECTS, DelayResult, average_delay
from dgcomp.video.delay_at_precision import MeanDelayResult, mean_delay
from dgcomp.video.detectors import Detections, Detector, Operations, detection_rows
from dgcomp.video.difficulty import Difficulty, split_by_difficulty
from dgcomp.video.frames import read_frames
from dgcomp.video.patchnet import DensePatchNet, PatchNet
from dgcomp.video.patchnet_track import BoxPropagator, propagate
from dgcomp.video.readers import (
    IMAGENET_VID_CLASSES,
    Annotations,
    read_detections,
    read_ground_truth,
    write_vid_detections,
)
from dgcomp.video.streaming import as_streamed
from dgcomp.video.tracker import DecayTracker, TrackerConfig

__all__ = [
    "DEFECTS",
    "IMAGENET_VID_CLASSES",
    "Annotations",
    "Bootstrap",
    "BoxPropagator",
    "Boxes",
    "COCOPrecision",
    "CaTDet",
    "CaTDetConfig",
    "DecayTracker",
    "DelayResult",
    "DensePatchNet",
    "Detections",
    "Detector",
    "Difficulty",
    "GroupDelay",
    "Ledger",
    "MeanDelayResult",
    "OperatingPoint",
    "Operations",
    "PatchNet",
    "TrackerConfig",
    "VOCPrecision",
    "as_streamed",
    "average_delay",
    "bootstrap",
    "breakdown",
    "choose_point",
    "coco_precision",
    "config_grid",
    "detection_rows",
    "mean_delay",
    "propagate",
    "read_detections",
    "read_frames",
    "read_ground_truth",
    "retardation",
    "split_by_difficulty",
    "survival_curve",
    "sweep",
    "tail_boost",
    "write_vid_detections",
]
