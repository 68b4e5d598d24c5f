"""Ground truth and detections from files: KITTI, MOTChallenge, PETS, ImageNet-VID-like text, COCO-style JSON."""

from dgcomp.video.readers.annotations import Annotations
from dgcomp.video.readers.any_format import read_detections, read_ground_truth
from dgcomp.video.readers.coco import read_coco, read_coco_detections
from dgcomp.video.readers.kitti import read_kitti, read_kitti_detections
from dgcomp.video.readers.mot import read_mot, read_mot_detections
from dgcomp.video.readers.pets import read_pets
from dgcomp.video.readers.vid import IMAGENET_VID_CLASSES, read_vid, read_vid_detections, write_vid_detections

__all__ = [
    "IMAGENET_VID_CLASSES",
    "Annotations",
    "read_coco",
    "read_coco_detections",
    "read_detections",
    "read_ground_truth",
    "read_kitti",
    "read_kitti_detections",
    "read_mot",
    "read_mot_detections",
    "read_pets",
    "read_vid",
    "read_vid_detections",
    "write_vid_detections",
]
