"""COCO-style JSON with tracks: videos, images with video_id and frame_id, annotations with track_id or instance_id."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dgcomp.video.columns import DetectionRows, Floats
from dgcomp.video.readers.annotations import Annotations, detection_rows, from_corner_and_size, ground_truth_rows

FRAME_KEYS = ("frame_id", "frame_index")
TRACK_KEYS = ("track_id", "instance_id")


def read_coco(path: str | Path) -> Annotations:
    """Ground truth of one JSON file; sequences and classes are called by their names.

    Boxes marked iscrowd or ignore are to be ignored. Frames count from 0 (CocoVID's frame_id).

    Raises
    ------
    ValueError
        For malformed JSON, naming file and line, or a record without a key it needs, naming file and record.
    """
    file = _File(Path(path))
    result = Annotations()
    for name in file.videos.values():
        result.ground_truth[name], result.ignored[name], result.num_frames[name] = [], [], 0
    for name, frame, image in file.images.values():
        result.num_frames[name] = max(result.num_frames[name], frame + 1)
        if "width" in image and "height" in image:
            result.image_size[name] = (float(image["width"]), float(image["height"]))
    records: dict[str, list[int]] = {name: [] for name in result.ground_truth}
    for i, record in enumerate(file.annotations):
        name, frame, _ = file.image_of(i, record)
        if record.get("iscrowd") or record.get("ignore"):
            corners = _corners([file.box(i, record)])[0]
            result.ignored[name].append((frame, file.category_of(i, record), *corners.tolist()))
        else:
            records[name].append(i)
    for name, rows in records.items():
        own = [file.annotations[i] for i in rows]
        result.ground_truth[name] = ground_truth_rows(
            lambda row, rows=rows: file.where(rows[row]),  # type: ignore[misc]
            np.array([file.image_of(i, r)[1] for i, r in zip(rows, own, strict=True)], np.float64),
            [file.get(i, r, TRACK_KEYS) for i, r in zip(rows, own, strict=True)],
            [file.category_of(i, r) for i, r in zip(rows, own, strict=True)],
            _corners([file.box(i, r) for i, r in zip(rows, own, strict=True)]),
        )
    return result


def read_coco_detections(
    path: str | Path, ground_truth: str | Path, *, num_frames: Mapping[str, int] | None = None
) -> DetectionRows:
    """Detections of a COCO results file, [{image_id, category_id, bbox, score}], for a file of ground truth."""
    known = _File(Path(ground_truth))
    file = _File(Path(path), known)
    records: dict[str, list[int]] = {name: [] for name in known.videos.values()}
    for i, record in enumerate(file.annotations):
        records[file.image_of(i, record)[0]].append(i)
    found: DetectionRows = {}
    lengths = num_frames or {}
    for name, rows in records.items():
        own = [(i, file.annotations[i]) for i in rows]
        found[name] = detection_rows(
            lambda row, rows=rows: file.where(rows[row]),  # type: ignore[misc]
            np.array([file.image_of(i, r)[1] for i, r in own], np.float64),
            [file.category_of(i, r) for i, r in own],
            np.array([float(file.get(i, r, ("score",))) for i, r in own], np.float64),
            _corners([file.box(i, r) for i, r in own]),
            length=lengths.get(name),
        )
    return found


class _File:
    """A JSON file's records by number, with the videos, images and categories that they refer to."""

    def __init__(self, path: Path, known: "_File | None" = None) -> None:
        self.path = path
        self.list_name: str
        self.annotations: list[dict[str, Any]]
        self.videos: dict[Any, str]
        self.images: dict[Any, tuple[str, int, dict[str, Any]]]
        self.categories: dict[Any, Any]
        try:
            content = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from None
        if known is not None:
            self._needs(path, isinstance(content, list), "a list of results")
            self.list_name, self.annotations = "results", content
            self.videos, self.images, self.categories = known.videos, known.images, known.categories
            return
        for key in ("videos", "images", "annotations", "categories"):
            self._needs(path, isinstance(content, dict) and key in content, f"a list {key!r}, as of tracks in video")
        self.list_name, self.annotations = "annotations", content["annotations"]
        self.videos = {video["id"]: str(video.get("name", video["id"])) for video in content["videos"]}
        self.categories = {category["id"]: category["name"] for category in content["categories"]}
        self.images = {image["id"]: self._image(i, image) for i, image in enumerate(content["images"])}

    @staticmethod
    def _needs(path: Path, there: bool, what: str) -> None:
        if not there:
            raise ValueError(f"{path}: needs {what}")

    def where(self, row: int) -> str:
        return f"{self.path}, {self.list_name}[{row}]"

    def get(self, row: int, record: dict[str, Any], keys: tuple[str, ...]) -> Any:
        for key in keys:
            if key in record:
                return record[key]
        raise ValueError(f"{self.where(row)}: needs {' or '.join(keys)}, got the keys {', '.join(record)}")

    def image_of(self, row: int, record: dict[str, Any]) -> tuple[str, int, dict[str, Any]]:
        image = self.get(row, record, ("image_id",))
        if image not in self.images:
            raise ValueError(f"{self.where(row)}: image_id {image!r} is not among the images")
        return self.images[image]

    def category_of(self, row: int, record: dict[str, Any]) -> Any:
        category = self.get(row, record, ("category_id",))
        if category not in self.categories:
            raise ValueError(f"{self.where(row)}: category_id {category!r} is not among the categories")
        return self.categories[category]

    def box(self, row: int, record: dict[str, Any]) -> list[float]:
        box = self.get(row, record, ("bbox",))
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            raise ValueError(f"{self.where(row)}: bbox must be [left, top, width, height], got {box!r}")
        return box

    def _image(self, row: int, image: dict[str, Any]) -> tuple[str, int, dict[str, Any]]:
        video = image.get("video_id")
        frame = next((image[key] for key in FRAME_KEYS if key in image), None)
        if video not in self.videos or not isinstance(frame, int):
            raise ValueError(
                f"{self.path}, images[{row}]: needs video_id of a video and a whole number {' or '.join(FRAME_KEYS)}, "
                f"got {video!r} and {frame!r}"
            )
        return self.videos[video], frame, image


def _corners(boxes: list[list[float]]) -> Floats:
    left, top, width, height = np.array(boxes, np.float64).reshape(-1, 4).T
    return from_corner_and_size(left, top, width, height)
