"""Detection delay (AD, mD) and precision of detections, as tables, JSON, Markdown and plots.

examples:
  python -m dgcomp.video evaluate --ground-truth MOT15/train --detections MOT15/train --output report
  python -m dgcomp.video evaluate --ground-truth PETS09=PETS09-gt.xml --detections PETS09=PETS09-det.txt
  python -m dgcomp.video evaluate --ground-truth label_02 --detections a --detections b --names single cascade \\
      --classes Car Pedestrian --difficulty moderate --iou-threshold 0.5 --frame-rate 10 --latency-ms 80

Files are told by their looks (KITTI, MOTChallenge, PETS XML, ImageNet-VID-like text, COCO-style JSON); a folder holds a
file for each sequence. SEQUENCE=PATH gives the sequence of a single file a name, which ground truth and detections must
share. Each --detections is a detector; several are compared.
"""

import argparse
from pathlib import Path
from typing import get_args

from dgcomp.video.bootstrap import Unit
from dgcomp.video.columns import DetectionRows
from dgcomp.video.difficulty import LEVELS
from dgcomp.video.operating import FALSE_POSITIVE_RATIOS
from dgcomp.video.readers.annotations import Annotations, merge, number_or_text
from dgcomp.video.readers.any_format import Format, read_detections, read_ground_truth
from dgcomp.video.readers.vid import IMAGENET_VID_CLASSES
from dgcomp.video.report import Settings, as_dict, evaluate_detector, write_report
from dgcomp.video.report_text import summary_rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    paths = "[SEQUENCE=]PATH"
    parser.add_argument("--ground-truth", nargs="+", required=True, metavar=paths, help="files or folders")
    parser.add_argument(
        "--detections", nargs="+", required=True, action="append", metavar=paths, help="of one detector; repeatable"
    )
    parser.add_argument("--names", nargs="+", help="of the detectors (default: their paths' last part)")
    formats = get_args(Format)
    parser.add_argument("--ground-truth-format", choices=formats, default="auto", help="default: told by the looks")
    parser.add_argument("--detections-format", choices=formats, default="auto", help="default: told by the looks")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write report.md, report.json and plots there")
    parser.add_argument(
        "--classes", nargs="+", type=number_or_text, help="evaluate these alone (default: all of the ground truth)"
    )
    parser.add_argument("--imagenet-vid", action="store_true", help="class numbers are those of ImageNet VID")
    parser.add_argument("--difficulty", choices=list(LEVELS), help="KITTI's levels; harder boxes are ignored")
    parser.add_argument("--iou-threshold", type=float, default=0.5, help="default: %(default)s")
    parser.add_argument("--false-positive-ratios", type=float, nargs="+", default=list(FALSE_POSITIVE_RATIOS))
    parser.add_argument("--window", type=int, default=30, help="frames at which delays are cut (default: %(default)s)")
    parser.add_argument("--precision", type=float, default=0.8, help="of mD (default: %(default)s)")
    parser.add_argument(
        "--image-size",
        type=float,
        nargs=2,
        metavar=("WIDTH", "HEIGHT"),
        help="where files do not tell: tells objects that enter at the border from those that appear inside",
    )
    parser.add_argument("--frame-rate", type=float, metavar="HZ", help="gives delays in milliseconds as well")
    parser.add_argument("--latency-ms", type=float, help="of the detector for a frame; needs --frame-rate")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--resample", choices=get_args(Unit), default="track", help="default: %(default)s")


def run(options: argparse.Namespace) -> None:
    """Print a row for each detector and write the report; ValueError or OSError where the input is wrong."""
    truth = _read_ground_truth(options)
    names = options.names or [Path(paths[0].split("=", 1)[-1]).stem for paths in options.detections]
    if len(names) != len(options.detections) or len(set(names)) != len(names):
        raise ValueError(f"--names must give {len(options.detections)} detectors names of their own, got {names}")
    image_size = truth.image_size
    if options.image_size:
        width, height = options.image_size
        image_size = dict.fromkeys(truth.ground_truth, (width, height)) | image_size
    settings = Settings(
        false_positive_ratios=options.false_positive_ratios,
        iou_threshold=options.iou_threshold,
        window=options.window,
        precision=options.precision,
        classes=options.classes,
        ignored=truth.ignored,
        difficulty=options.difficulty,
        num_frames=truth.num_frames,
        image_size=image_size,
        frame_rate_hz=options.frame_rate,
        latency_ms=options.latency_ms,
        num_resamples=options.resamples,
        unit=options.resample,
    )
    reports = {
        name: evaluate_detector(truth.ground_truth, _read_detections(options, paths, truth), settings)
        for name, paths in zip(names, options.detections, strict=True)
    }
    figures = as_dict(reports, settings)
    for row in summary_rows(figures["detectors"], figures["settings"]):
        print("\n".join(f"{title:>16}  {value}" for title, value in row.items()), end="\n\n")
    if options.output:
        for path in write_report(options.output, reports, settings):
            print(f"wrote {path}")


def _read_ground_truth(options: argparse.Namespace) -> Annotations:
    names = IMAGENET_VID_CLASSES if options.imagenet_vid else None
    truth = Annotations()
    for item in options.ground_truth:
        sequence, path = _split(item)
        truth.update(
            read_ground_truth(
                path, options.ground_truth_format, sequence=sequence, classes=options.classes, class_names=names
            )
        )
    return truth


def _read_detections(options: argparse.Namespace, paths: list[str], truth: Annotations) -> DetectionRows:
    names = IMAGENET_VID_CLASSES if options.imagenet_vid else None
    truth_path = _split(options.ground_truth[0])[1]
    parts = []
    for item in paths:
        sequence, path = _split(item)
        parts.append(
            read_detections(
                path,
                options.detections_format,
                sequence=sequence,
                class_names=names,
                ground_truth=truth_path,
                num_frames=truth.num_frames,
            )
        )
    return merge(parts)


def _split(item: str) -> tuple[str | None, str]:
    """Sequence and path of SEQUENCE=PATH, or None and the path."""
    sequence, equals, path = item.partition("=")
    return (sequence, path) if equals and not Path(item).exists() else (None, item)
