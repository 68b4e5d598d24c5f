"""COCO-style JSON with tracks: videos, images with video_id and frame_id, annotations with track_id or instance_id."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dgcomp.video.columns import DetectionRows, Floats, as_floats
from dgcomp.video.readers.annotations import (
    Annotations,
    detection_rows,
    from_corner_and_size,
    ground_truth_rows,
    read_text,
)

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
        width, height = image.get("width"), image.get("height")
        if isinstance(width, int | float) and isinstance(height, int | float):
            result.image_size[name] = (width, height)
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
            partial(_where, file, rows),
            np.array([file.image_of(i, r)[1] for i, r in zip(rows, own, strict=True)], np.float64),
            [file.track_of(i, r) for i, r in zip(rows, own, strict=True)],
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
        where = partial(_where, file, rows)
        found[name] = detection_rows(
            where,
            np.array([file.image_of(i, r)[1] for i, r in own], np.float64),
            [file.category_of(i, r) for i, r in own],
            as_floats([file.get(i, r, ("score",)) for i, r in own], "score", where),
            _corners([file.box(i, r) for i, r in own]),
            length=lengths.get(name),
        )
    return found


class _File:
    """A JSON file's records by number, with the videos, images and categories that they refer to."""

    def __init__(self, path: Path, known: "_File | None" = None) -> None:
        self.path = path
        try:
            content = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from None
        self.list_name = "results" if known else "annotations"
        if known:
            content = {"results": content}
        self.annotations = self._records(content, self.list_name)
        self.videos: dict[Any, str] = known.videos if known else self._videos(content)
        self.categories: dict[Any, Any] = known.categories if known else self._categories(content)
        self.images: dict[Any, tuple[str, int, dict[str, Any]]] = known.images if known else self._images(content)

    def where(self, row: int) -> str:
        return f"{self.path}, {self.list_name}[{row}]"

    def get(self, row: int, record: dict[str, Any], keys: tuple[str, ...]) -> Any:
        for key in keys:
            if key in record:
                return record[key]
        raise ValueError(f"{self.where(row)}: needs {' or '.join(keys)}, got the keys {', '.join(record)}")

    def image_of(self, row: int, record: dict[str, Any]) -> tuple[str, int, dict[str, Any]]:
        image = self.get(row, record, ("image_id",))
        if not isinstance(image, int | str) or image not in self.images:
            raise ValueError(f"{self.where(row)}: image_id {image!r} is not among the images")
        return self.images[image]

    def track_of(self, row: int, record: dict[str, Any]) -> Any:
        track = self.get(row, record, TRACK_KEYS)
        if not isinstance(track, int | str):
            raise ValueError(f"{self.where(row)}: {' or '.join(TRACK_KEYS)} must be a number or a text, got {track!r}")
        return track

    def category_of(self, row: int, record: dict[str, Any]) -> Any:
        category = self.get(row, record, ("category_id",))
        if not isinstance(category, int | str) or category not in self.categories:
            raise ValueError(f"{self.where(row)}: category_id {category!r} is not among the categories")
        return self.categories[category]

    def box(self, row: int, record: dict[str, Any]) -> list[float]:
        box = self.get(row, record, ("bbox",))
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            raise ValueError(f"{self.where(row)}: bbox must be [left, top, width, height], got {box!r}")
        return box

    def _videos(self, content: Any) -> dict[Any, str]:
        return {video["id"]: str(video.get("name", video["id"])) for video in self._records(content, "videos", "id")}

    def _categories(self, content: Any) -> dict[Any, Any]:
        records = self._records(content, "categories", "id")
        return {category["id"]: category.get("name", category["id"]) for category in records}

    def _images(self, content: Any) -> dict[Any, tuple[str, int, dict[str, Any]]]:
        images = {}
        for row, image in enumerate(self._records(content, "images", "id")):
            video = image.get("video_id")
            frame = next((image[key] for key in FRAME_KEYS if key in image), None)
            if not isinstance(video, int | str) or video not in self.videos or not isinstance(frame, int):
                raise ValueError(
                    f"{self.path}, images[{row}]: needs video_id of a video and a whole number "
                    f"{' or '.join(FRAME_KEYS)}, got {video!r} and {frame!r}"
                )
            images[image["id"]] = self.videos[video], frame, image
        return images

    def _records(self, content: Any, name: str, *keys: str) -> list[dict[str, Any]]:
        """A list of the file, whose records have these keys."""
        records = content.get(name) if isinstance(content, dict) else None
        if not isinstance(records, list):
            raise ValueError(f"{self.path}: needs a list {name!r}, as of tracks in video")
        for row, record in enumerate(records):
            if not isinstance(record, dict) or not all(isinstance(record.get(key), int | str) for key in keys):
                needs = " and ".join(["to be a record", *(f"a number or text {key!r}" for key in keys)])
                raise ValueError(f"{self.path}, {name}[{row}]: needs {needs}, got {record!r}")
        return records


def _where(file: _File, rows: list[int], row: int) -> str:
    """The place in the file of the row-th of these records."""
    return file.where(rows[row])


def _corners(boxes: list[list[float]]) -> Floats:
    left, top, width, height = np.array(boxes, np.float64).reshape(-1, 4).T
    return from_corner_and_size(left, top, width, height)
