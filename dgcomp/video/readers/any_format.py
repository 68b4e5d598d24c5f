"""Files of any known format, told by their looks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from dgcomp.video.columns import DetectionRows
from dgcomp.video.readers.annotations import Annotations, read_text
from dgcomp.video.readers.coco import read_coco, read_coco_detections
from dgcomp.video.readers.kitti import read_kitti, read_kitti_detections
from dgcomp.video.readers.mot import read_mot, read_mot_detections
from dgcomp.video.readers.pets import read_pets
from dgcomp.video.readers.vid import read_vid, read_vid_detections

Format = Literal["auto", "kitti", "mot", "pets", "vid", "coco"]


def read_ground_truth(
    path: str | Path,
    format: Format = "auto",
    *,
    sequence: str | None = None,
    classes: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Annotations:
    """Ground truth of a file or folder.

    Parameters
    ----------
    format : "kitti", "mot", "pets", "vid", "coco", or "auto": told by the ending and the first line
    sequence : optional
        Name for the sequence of a single file; otherwise it is the file's, or the folder's above gt/gt.txt.
    classes : optional
        The classes wanted of KITTI labels, where this decides what is to be ignored (see `read_kitti`).
    class_names : optional
        Names of class numbers, for "vid".

    Raises
    ------
    ValueError
        For a malformed file, naming file and line (for JSON: file and record), or an unknown format.
    FileNotFoundError
        If there is nothing to read.
    """
    path = Path(path)
    kind = _kind(path, format)
    if kind == "kitti":
        return read_kitti(path, sequence=sequence, classes=classes)
    if kind == "mot":
        return read_mot(path, sequence=sequence)
    if kind == "pets":
        return read_pets(path, sequence=sequence)
    if kind == "vid":
        return read_vid(path, sequence=sequence, class_names=class_names)
    return read_coco(path)


def read_detections(
    path: str | Path,
    format: Format = "auto",
    *,
    sequence: str | None = None,
    class_names: Sequence[str] | None = None,
    ground_truth: str | Path | None = None,
    num_frames: Mapping[str, int] | None = None,
) -> DetectionRows:
    """Detections of a file or folder; arguments and errors as in `read_ground_truth`.

    COCO results refer to images: there `ground_truth` is the path of the JSON file that lists them. With `num_frames`,
    the sequences' lengths, a detection beyond the end is an error.
    """
    path = Path(path)
    kind = _kind(path, format)
    if kind == "kitti":
        return read_kitti_detections(path, sequence=sequence, num_frames=num_frames)
    if kind == "mot":
        return read_mot_detections(path, sequence=sequence, num_frames=num_frames)
    if kind == "vid":
        return read_vid_detections(path, sequence=sequence, class_names=class_names, num_frames=num_frames)
    if kind == "pets":
        raise ValueError(f"{path}: PETS files hold ground truth, not detections")
    if ground_truth is None:
        raise ValueError(f"{path}: COCO results need the JSON file of the ground truth, which lists the images")
    return read_coco_detections(path, ground_truth, num_frames=num_frames)


def _kind(path: Path, format: str) -> str:
    if format not in get_args(Format):
        raise ValueError(f"format must be one of {', '.join(get_args(Format))}, got {format!r}")
    if format != "auto":
        return format
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".xml", ".json"))
    if not files:
        raise FileNotFoundError(f"no file to read at {path}")
    endings = {".xml": "pets", ".json": "coco"}
    return endings.get(files[0].suffix) or _kind_of_text(files)


def _kind_of_text(files: Sequence[Path]) -> str:
    """Told by the first filled line of any of the files."""
    for file in files:
        lines = read_text(file).splitlines()
        first = next((line for line in lines if line.strip() and not line.lstrip().startswith("#")), None)
        if first is not None:
            if "," in first:
                return "mot"
            return "kitti" if len(first.split()) in (17, 18) else "vid"
    return "vid"
